"""An app with models of its own in plain SQLAlchemy, a factory, and an /auth of its own: ours moves to /mfa.

flask mfa init
flask --app examples/host_with_own_auth mfa upgrade
flask --app examples/host_with_own_auth add-user ada
flask --app examples/host_with_own_auth run --port 9000
"""

import os

import click
from flask import Blueprint, Flask, abort, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from werkzeug.security import check_password_hash, generate_password_hash

from mfa_service import MFA, MFAPending, require_mfa

engine = create_engine(os.environ.get("HOST_DATABASE", "sqlite:///instance/host.db"))
new_session = sessionmaker(engine)
mfa = MFA()
auth = Blueprint("auth", __name__, url_prefix="/auth")
orders = Blueprint("orders", __name__, url_prefix="/orders")


class Base(DeclarativeBase):
    """The host's tables."""


class Member(Base):
    """A user of the host."""

    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]


@mfa.user_loader
def load_member(identity):
    """The member behind a token of ours."""
    with new_session() as session:
        return session.get(Member, int(identity.external_id))


@auth.post("/login")
def login():
    """Check the host's password. What it answers goes to /mfa/verify-mfa with a code, or first to /mfa/enrol."""
    given = request.get_json()
    with new_session() as session:
        member = session.scalar(select(Member).filter_by(name=given["name"]))
    if member is None or not check_password_hash(member.password, given["password"]):
        abort(401)
    device = given.get("deviceToken")
    outcome = mfa.login.continue_for(member.id, username=member.name, client=mfa.client, device_token=device)
    if isinstance(outcome, MFAPending):
        return {"tempToken": outcome.token, "methods": outcome.methods}
    # On a remembered device, or where policy lets this member go without a code.
    return {"accessToken": outcome.access_token, "refreshToken": outcome.refresh_token}


@orders.get("/")
@require_mfa
def show_orders():
    """For who has shown both factors."""
    return {"orders": [], "of": mfa.user.name}


def create_app():
    """The host, with everything in it."""
    app = Flask(__name__)
    app.config["MFA_AUTH_PREFIX"] = "/mfa"
    app.register_blueprint(auth)
    app.register_blueprint(orders)
    app.cli.add_command(add_user)
    mfa.init_app(app, engine=engine)
    return app


@click.command("add-user")
@click.argument("name")
@click.password_option()
def add_user(name, password):
    """Take somebody in."""
    Base.metadata.create_all(engine)
    with new_session.begin() as session:
        session.add(Member(name=name, password=generate_password_hash(password)))
