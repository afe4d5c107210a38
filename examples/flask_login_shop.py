"""A shop with users of its own, in its own tables, signed in by Flask-Login: the second factor is what MFA adds.

MFA_INSTANCE=instance flask mfa init
flask --app examples/flask_login_shop mfa upgrade
flask --app examples/flask_login_shop run
"""

import os

from flask import Flask, redirect, render_template_string, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import check_password_hash, generate_password_hash

from mfa_service import MFA, require_mfa

app = Flask(__name__)
app.config["SECRET_KEY"] = os.environ.get("SHOP_SECRET_KEY") or os.urandom(32)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("SHOP_DATABASE", "sqlite:///shop.db")
app.config["MFA_TOKEN_LOCATIONS"] = "header,cookie"
app.config["MFA_TOTP_ISSUER"] = "Shop"

db = SQLAlchemy(app)
login_manager = LoginManager(app)
login_manager.login_view = "login"
mfa = MFA(app)


class User(UserMixin, db.Model):
    """The shop's own table, which MFA never looks at."""

    id = db.Column(db.Integer, primary_key=True)
    username = db.Column(db.String(80), unique=True, nullable=False)
    password = db.Column(db.String(255), nullable=False)


@login_manager.user_loader
def load_user(user_id):
    """Who the shop's own session is of."""
    return db.session.get(User, int(user_id))


@mfa.user_loader
def load_user_of_token(identity):
    """Whose token or cookie this is: nobody's if the shop has deleted the user."""
    return load_user(identity.external_id)


FORM = (
    """<form method="post"><input name="username"><input name="password" type="password"><button>Go</button></form>"""
)


@app.route("/login", methods=["GET", "POST"])
def login():
    """The shop checks the password as it always did, and MFA goes on from there."""
    user = db.session.scalar(db.select(User).filter_by(username=request.form.get("username")))
    if user is None or not check_password_hash(user.password, request.form.get("password", "")):
        return render_template_string(FORM)
    login_user(user)
    return mfa.begin(user, next=request.args.get("next", "/account"))


@app.get("/")
def shelf():
    """Open to everybody."""
    return "books"


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
    return redirect("/")


with app.app_context():
    db.create_all()
    if os.environ.get("SHOP_FIRST_USER") and not db.session.scalar(db.select(User)):
        username, _, password = os.environ["SHOP_FIRST_USER"].partition(":")
        db.session.add(User(username=username, password=generate_password_hash(password)))
        db.session.commit()
