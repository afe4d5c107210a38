"""Apps of somebody else, for tests: a shop with users, tables and an `auth` blueprint of its own."""

import warnings
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, jsonify, request
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from mfa_service import MFA, current_identity, require_mfa
from mfa_service.services.login import MFAPending, SignedIn
from tests.factories import bearer, totp

#: Settings of tests that are about passwords and a database of our own.
STANDALONE = ("MFA_DATABASE_URL", "MFA_BCRYPT_COST")


class Shop:
    """A host: `shop.app`, `shop.db`, `shop.mfa`. Its users are made by `shop.add`."""

    def __init__(self, database: str, config: dict[str, Any], *, mfa: MFA | None = None, **options: Any) -> None:
        self.app = Flask("shop")
        self.app.config |= {"TESTING": True, "SECRET_KEY": "the shop's own", "SQLALCHEMY_DATABASE_URI": database}
        self.app.config |= {
            name: value for name, value in config.items() if name.startswith("MFA_") and name not in STANDALONE
        }
        self.db = SQLAlchemy(self.app)
        self.User = self._model()
        with self.app.app_context():
            self.db.create_all()
        self._add_views()
        self.mfa = mfa or MFA()
        self.options = options

    def embed(self) -> "Shop":
        """Put the service in, as the last thing."""
        self.mfa.init_app(self.app, **self.options)
        return self

    def add(self, name: str) -> int:
        """A user of the shop; its password is its name."""
        with self.app.app_context():
            user = self.User(name=name)
            self.db.session.add(user)
            self.db.session.commit()
            return int(user.id)

    def client(self) -> FlaskClient:
        return self.app.test_client()

    def close(self) -> None:
        """Let go of connections and threads."""
        if mount := self.app.extensions.get("mfa_service"):
            mount.services.close()
        with self.app.app_context(), warnings.catch_warnings():
            self.db.session.remove()
            self.db.engine.dispose()

    def _model(self) -> Any:
        class User(self.db.Model):  # type: ignore[name-defined]
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column()

        return User

    def _add_views(self) -> None:
        auth = Blueprint("auth", __name__, url_prefix="/auth")

        @auth.post("/login")
        def login() -> Any:
            body = request.get_json()
            user = self.db.session.scalar(self.db.select(self.User).filter_by(name=body["name"]))
            if user is None or body["password"] != user.name:
                return "no", 401
            outcome = self.mfa.login.continue_for(user.id, username=user.name, client=self.mfa.client)
            return jsonify(shown(outcome))

        @self.app.get("/orders")
        @require_mfa
        def orders() -> Any:
            return jsonify(of=current_identity.external_id, user=getattr(self.mfa.user, "name", None))

        self.app.register_blueprint(auth)


def shown(outcome: Any) -> dict[str, Any]:
    """What the shop tells its clients of an outcome."""
    if isinstance(outcome, MFAPending):
        return {"pending": outcome.token, "methods": outcome.methods}
    signed_in: SignedIn = outcome if isinstance(outcome, SignedIn) else outcome.signed_in
    return {"access": signed_in.access_token}


def log_in(client: FlaskClient, name: str) -> str:
    """Give the shop the right password; returns the pending token."""
    answer = client.post("/auth/login", json={"name": name, "password": name})
    assert answer.status_code == 200, answer.text
    token: str = answer.json["pending"]
    return token


def enrol(client: FlaskClient, name: str, now: float, prefix: str = "/auth") -> tuple[str, str]:
    """Sign somebody in for the first time; returns the access token and the secret of their authenticator."""
    pending = log_in(client, name)
    secret = client.post(f"{prefix}/enrol", json={"tempToken": pending}).json["manualEntryKey"]
    code = totp(secret, int(now) // 30)
    answer = client.post(f"{prefix}/verify-mfa", json={"tempToken": pending, "totpCode": code})
    assert answer.status_code == 200, answer.text
    return answer.json["accessToken"], secret


def orders(client: FlaskClient, token: str) -> Any:
    """What the shop answers to an access token."""
    return client.get("/orders", headers=bearer(token))


#: What makes a shop.
MakeShop = Callable[..., Shop]
