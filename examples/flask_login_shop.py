"""A shop with users and passwords of its own, signed in by Flask-Login: MFA adds the second factor.

flask mfa init
flask --app examples/flask_login_shop mfa upgrade
flask --app examples/flask_login_shop add-user ada
flask --app examples/flask_login_shop run --port 9000
"""

import os

import click
from flask import Flask, redirect, render_template_string, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import check_password_hash, generate_password_hash

from mfa_service import MFA, require_mfa

app = Flask(__name__, instance_path=os.path.abspath("instance"))
app.config.from_mapping(SECRET_KEY=os.urandom(32), SQLALCHEMY_DATABASE_URI="sqlite:///shop.db")
app.config.from_mapping({"MFA_TOKEN_LOCATIONS": "header,cookie", "MFA_TOTP_ISSUER": "Shop"})
app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_SQLALCHEMY_DATABASE_URI

db = SQLAlchemy(app)
login_manager = LoginManager(app)
login_manager.login_view = "login"
mfa = MFA(app)


class User(UserMixin, db.Model):
    """The shop's own table, which MFA never looks at."""

    id = db.Column(db.Integer, primary_key=True)
    username = db.Column(db.String(80), unique=True, nullable=False)
    password = db.Column(db.String(255), nullable=False)


login_manager.user_loader(lambda user_id: db.session.get(User, int(user_id)))
mfa.user_loader(lambda identity: db.session.get(User, int(identity.external_id)))
FORM = "<form method=post><input name=username><input name=password type=password><button>Sign in</button></form>"


@app.route("/login", methods=["GET", "POST"])
def login():
    """The shop checks the password as it always did, and MFA goes on from there."""
    user = db.session.scalar(db.select(User).filter_by(username=request.form.get("username")))
    if user is None or not check_password_hash(user.password, request.form.get("password", "")):
        return render_template_string(FORM)
    login_user(user)
    return mfa.begin(user, next=request.args.get("next", "/account"))


@app.get("/account")
@login_required
@require_mfa
def account():
    """For who has shown both factors."""
    return f"orders of {current_user.username}"


@app.post("/pay")
@login_required
@require_mfa(max_age=300)
def pay():
    """For who has shown the second one within five minutes."""
    return f"paid by {current_user.username}"


@app.post("/logout")
def logout():
    """Both sessions end."""
    mfa.end()
    logout_user()
    return redirect("/login")


@app.cli.command("add-user")
@click.argument("username")
@click.password_option()
def add_user(username, password):
    """Take somebody in, with a password of the shop's."""
    db.create_all()
    db.session.add(User(username=username, password=generate_password_hash(password)))
    db.session.commit()


@app.cli.command("delete-user")
@click.argument("username")
def delete_user(username):
    """Delete somebody, and let MFA forget whom it knew by that id: SQLite gives it to the next one."""
    user = db.session.execute(db.select(User).filter_by(username=username)).scalar_one()
    mfa.accounts.unlink(user.id)
    db.session.delete(user)
    db.session.commit()
