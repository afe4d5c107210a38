"""A larger app with one blueprint for users of the service: guarded whole, so that no view of it can be forgotten.

MFA_AUDIENCES=shop make serve
AUTH_SERVICE=http://127.0.0.1:8000 flask --app examples/guarded_blueprint run --port 9000
"""

import os

from flask import Blueprint, Flask

from mfa_service import Guard, LiveCheck, current_identity, require_mfa

SERVICE = os.environ.get("AUTH_SERVICE", "http://127.0.0.1:8000")

backoffice = Blueprint("backoffice", __name__, url_prefix="/backoffice")
backoffice.before_request(require_mfa)


@backoffice.get("/orders")
def orders():
    """Whoever has completed the sign-in: the blueprint says so."""
    return {"orders": [], "of": current_identity.username}


@backoffice.post("/orders/<int:number>/refund")
@require_mfa(max_age=300)
def refund(number):
    """Besides, the second factor within five minutes."""
    return {"refunded": number, "by": current_identity.user_id}


@backoffice.get("/staff")
@require_mfa(role="staff")
def staff():
    """Besides, a role: it is asked for at the service, for no token says it (`flask mfa set-role ada staff`)."""
    return {"staff": current_identity.username}


def create_app():
    """The shop, most of which is open to everybody."""
    app = Flask(__name__)
    live = LiveCheck(f"{SERVICE}/auth/check")
    guard = Guard.from_jwks(f"{SERVICE}/.well-known/jwks.json", issuer=SERVICE, audience="shop", find_account=live)
    guard.init_app(app)
    app.register_blueprint(backoffice)
    app.add_url_rule("/", view_func=lambda: "books")
    return app
