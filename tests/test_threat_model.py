"""docs/threat-model.md forgets nothing that is kept, says the bounds of the code, and no promise is without witness."""

import re
from typing import cast

import pytest
from flask.testing import FlaskClient
from sqlalchemy import QueuePool, create_engine

from mfa_service import jwks, live
from mfa_service.config import Settings
from mfa_service.models import Base
from mfa_service.services import admission, database, notices, unit_of_work
from mfa_service.web import stores
from tests.conftest import ROOT
from tests.documents import EMPTY, missing, table, witnesses_in

PAGE = "docs/threat-model.md"
ATTACKS = ROOT / "tests/attacks"
CASES = re.findall(r'@case\(\s*"(\w+)"', "".join(path.read_text() for path in sorted(ATTACKS.glob("test_*.py"))))
PROMISES = table(PAGE, "What is promised")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[0][:40])
def test_a_promise_has_witnesses_that_exist(promise: list[str]) -> None:
    _, cases, witnesses = promise
    assert witnesses_in(witnesses)
    assert missing(witnesses) == []
    assert cases == EMPTY or set(cases.split()) <= set(CASES)


def test_every_case_of_the_attack_suite_belongs_to_one_promise() -> None:
    named = [case for _, cases, _ in PROMISES if cases != EMPTY for case in cases.split()]
    assert sorted(named) == sorted(CASES)
    assert {f"T{number}" for number in range(1, 51)} <= set(named)


def test_the_page_about_attacks_names_every_case() -> None:
    named = {case for _, cases in table("docs/attacks.md", "What is attacked") for case in cases.split()}
    assert named == set(CASES)


def test_every_table_of_the_database_is_an_asset() -> None:
    named = re.findall(r"`(mfa_\w+)`", " ".join(row[2] for row in table(PAGE, "What there is to lose")))
    assert sorted(set(named)) == sorted(Base.metadata.tables)


def test_everything_there_is_to_lose_has_a_class_and_a_time() -> None:
    rows = table(PAGE, "What there is to lose")
    assert {row[1] for row in rows} == {"secret", "personal", "internal"}
    assert all(len(row) == 5 and all(row) for row in rows)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_route_that_gives_a_token_is_a_way_in(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    holders = {name for name, each in document["components"]["schemas"].items() if "accessToken" in each["properties"]}
    giving = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if any(f"/{name}'" in str(operation["responses"]) for name in holders)
    }
    assert {"POST /auth/login", "POST /auth/verify-mfa"} <= giving
    assert giving <= set(re.findall(r"`(\w+ /[\w/-]+)`", " ".join(row[0] for row in table(PAGE, "Ways in"))))


def test_the_bounds_are_those_of_the_code() -> None:
    bounds = {with_whom: " ".join(rest) for with_whom, *rest in table(PAGE, "What it talks to")}
    options, timeouts = database.options_for("postgresql://db.example/mfa"), database._POSTGRESQL_TIMEOUTS
    for said in (
        f"{options['pool_size'] + options['max_overflow']} connections for each process",
        f"{options['pool_timeout']} s for a connection",
        f"{timeouts['lock_timeout']} s for a lock",
        f"{timeouts['statement_timeout']} s for a statement",
        f"{unit_of_work.LONGEST_SECONDS} s for a transaction",
        f"tried {unit_of_work.TRIES} times",
        f"given up after {database._LONGEST_SILENCE} s at most",
        f"idle, after {database._LONGEST_PING} s",
    ):
        assert said in bounds["PostgreSQL"]
    for said in (f"{admission.AT_ONCE} requests at once", f"{admission._PATIENCE:.0f} s to be one of these"):
        assert said in bounds["PostgreSQL"]
        assert said in bounds["SQLite"]
    assert f"{database._BUSY_SECONDS} s for the writer" in bounds["SQLite"]
    pool = cast("QueuePool", database.engine_for(create_engine("sqlite:///never-opened.db")).pool)
    assert f"{pool.size() + pool._max_overflow} connections" in bounds["SQLite"]
    assert f"{stores._TIMEOUT} s" in bounds["Redis"]
    [keys] = [text for whom, text in bounds.items() if "from_jwks" in whom]
    assert f"{jwks.PAUSE_SECONDS} s apart at least {jwks._TIMEOUT} s" in keys
    [asking] = [text for whom, text in bounds.items() if "LiveCheck" in whom]
    assert f"{live._TIMEOUT} s" in asking
    assert f"{notices._CAPACITY:,} that wait" in bounds["listeners of notices"]
    assert bounds["hashing"].startswith(f"{Settings.hashing_queue} that wait")
    assert f"every {Settings.key_reread_seconds} s" in bounds["files of keys"]
