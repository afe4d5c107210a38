"""An API of its own, in Flask, that takes access tokens of the service and verifies them by its published keys.

MFA_AUDIENCES=shop make serve
AUTH_SERVICE=http://127.0.0.1:8000 flask --app examples/api_by_jwks run --port 9000
"""

import os

from flask import Flask

from mfa_service import Guard, current_identity, require_mfa

SERVICE = os.environ.get("AUTH_SERVICE", "http://127.0.0.1:8000")

app = Flask(__name__)
Guard.from_jwks(f"{SERVICE}/.well-known/jwks.json", issuer=SERVICE, audience="shop").init_app(app)


@app.get("/orders")
@require_mfa
def orders() -> dict[str, object]:
    """Whoever has completed the sign-in."""
    return {"orders": [], "of": current_identity.username}


@app.post("/pay")
@require_mfa(max_age=300)
def pay() -> dict[str, str]:
    """Whoever has shown a second factor within five minutes."""
    return {"paid_by": current_identity.user_id}
