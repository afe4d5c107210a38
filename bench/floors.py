"""What the work costs with nothing around it: the programs that the service is measured against."""

import os
import threading
import time
from collections.abc import Callable

import bcrypt
import jwt
from flask import Flask, jsonify, request
from flask_talisman import Talisman
from sqlalchemy import Column, MetaData, String, Table, create_engine, select

from mfa_service import Guard, current_identity, require_mfa

SECRET = "a-floor-is-nobodys-secret-and-so-this-is-none"


def bare() -> Flask:
    """One token decoded by hand, one constant answer."""
    app = Flask("bare")

    @app.get("/api/profile")
    def profile() -> object:
        _claims()
        return jsonify(username="ada", email="ada@example.com", mfaEnabled=True)

    return app


def with_select() -> Flask:
    """The same with one SELECT by primary key, and Talisman."""
    app = Flask("select")
    Talisman(app, force_https=False)
    engine = create_engine(os.environ["BENCH_DATABASE"], pool_size=32)
    users = Table("mfa_users", MetaData(), *(Column(name, String) for name in ("id", "username", "email")))

    @app.get("/api/profile")
    def profile() -> object:
        query = select(users.c.username, users.c.email).where(users.c.id == _claims()["sub"])
        with engine.connect() as connection:
            row = connection.execute(query).one()
        return jsonify(username=row.username, email=row.email, mfaEnabled=True)

    return app


def by_hand() -> Flask:
    """A view that a developer guards with five lines of PyJWT."""
    app = Flask("by hand")

    @app.get("/orders")
    def orders() -> object:
        return jsonify(of=_claims()["username"])

    return app


def by_jwks() -> Flask:
    """The same view under `require_mfa`, in an app that verifies by the published keys."""
    app, service = Flask("by jwks"), os.environ["BENCH_SERVICE"]
    Guard.from_jwks(f"{service}/.well-known/jwks.json", issuer=service, audience="bench").init_app(app)

    @app.get("/orders")
    @require_mfa
    def orders() -> object:
        return jsonify(of=current_identity.username)

    return app


def _claims() -> dict[str, str]:
    claims: dict[str, str] = jwt.decode(request.headers["Authorization"][7:], SECRET, algorithms=["HS256"])
    return claims


def hashes_a_second(
    seconds: float, cost: int = 12, compare: Callable[[bytes, bytes], object] = bcrypt.checkpw
) -> float:
    """How many passwords all cores compare in a second, and nothing else."""
    stored, count, lock = bcrypt.hashpw(b"analytical-engine-1843", bcrypt.gensalt(cost)), 0, threading.Lock()
    ends = time.monotonic() + seconds

    def work() -> None:
        nonlocal count
        while time.monotonic() < ends:
            compare(b"analytical-engine-1843", stored)
            with lock:
                count += 1

    threads = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.monotonic() - began)
