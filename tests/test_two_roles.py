"""docs/administration.md: with two roles of PostgreSQL what serves can do all that it has to, and no more."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import ProgrammingError

from mfa_service import doctor
from mfa_service.models import Base
from mfa_service.services import Services, schema
from mfa_service.services.administration import By, Changes
from mfa_service.services.policy import Rules
from tests.conftest import ROOT, Clock, new_database
from tests.factories import Person, bearer, log_in, register, sign_in
from tests.services import CLIENT
from tests.test_scaling import partition

MakeApp = Callable[..., Flask]

pytestmark = pytest.mark.services
PAGE = (ROOT / "docs/administration.md").read_text().partition("## Two roles of PostgreSQL")[2]
ONCE, AFTER_UPGRADE = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
REFUSED = [
    "UPDATE mfa_events SET event = 'x'",
    "BEGIN; SET LOCAL mfa.pruning = 'on'; DELETE FROM mfa_events",
    "UPDATE mfa_seals SET count = 0",
    "DELETE FROM mfa_seals",
    "TRUNCATE mfa_events",
    "TRUNCATE mfa_users CASCADE",
    "ALTER TABLE mfa_events DISABLE TRIGGER ALL",
    "DROP TRIGGER mfa_events_append_only ON mfa_events",
    "DROP FUNCTION mfa_refuse_change() CASCADE",
    "DROP TABLE mfa_events",
    "CREATE TABLE mine (id int)",
    "CREATE FUNCTION mfa_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$",
    "SET session_replication_role = replica",
    "SELECT setval('mfa_events_id_seq', 1)",
    "UPDATE mfa_alembic_version SET version_num = 'x'",
    "SET ROLE mfa_owns",
]


def test_what_serves_can_do_all_that_it_has_to(app: Flask, clock: Clock) -> None:
    walk(app, clock)
    services = services_of(app)
    clock.advance(90 * 86400)
    assert sum(services.housekeeping.prune().values()) > 0
    clock.advance(61)
    assert services.seals.seal() != []
    assert findings(services) == []
    services.emergency.after_restore(CLIENT, burns_recovery_codes=True)


@pytest.mark.parametrize("statement", REFUSED)
def test_and_nothing_else(serving: Engine, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        run(serving, statement)


def test_what_owns_prunes_the_log_and_parts_it(owning: Engine, app: Flask, clock: Clock, make_app: MakeApp) -> None:
    services = services_of(app)
    walk(app, clock)
    clock.advance(61)
    services.seals.seal()
    clock.advance(40 * 86400)
    with pytest.raises(ProgrammingError, match="permission denied"):
        list(services.seals.prune(timedelta(days=30), CLIENT))
    owner = services_of(make_app(MFA_DATABASE_URL=owning.url.render_as_string(hide_password=False)))
    assert sum(owner.seals.prune(timedelta(days=30), CLIENT)) > 0
    partition(owning, clock())
    run(owning, AFTER_UPGRADE)
    walk(app, clock, "bob")
    assert findings(services) == []


def test_an_upgrade_that_finds_nothing_to_do_needs_no_owner(serving: Engine) -> None:
    schema.upgrade(serving)
    assert schema.find_current(serving) == schema.newest()


def test_a_doctor_is_content_with_what_serves(config: dict[str, Any]) -> None:
    [finding] = [each for each in doctor.examine(config) if each.subject == "database"]
    assert (finding.level, "postgresql at revision" in finding.text) == ("ok", True)


def test_each_table_has_its_line() -> None:
    assert set(re.findall(r"mfa_[a-z_]+", AFTER_UPGRADE)) - {"mfa_serves", "mfa_events_id_seq"} == {
        *(table.name for table in Base.metadata.sorted_tables),
        schema.VERSION_TABLE,
    }


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def walk(app: Flask, clock: Clock, name: str = "ada") -> None:
    """Everything that people and administrators do."""
    services, client = services_of(app), app.test_client()
    ada, eve = register(client, name), register(client, f"{name}-2")
    device, codes, pair = enter(app, ada, clock)
    token = bearer(pair["accessToken"])
    answers = [
        client.get("/api/profile", headers=token),
        client.post("/auth/refresh", json={"refreshToken": pair["refreshToken"]}),
        client.post("/auth/step-up", json={"recoveryCode": codes[0]}, headers=token),
        client.post("/auth/login", json={"username": name, "password": ada.password, "deviceToken": device}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    token = bearer(answers[2].json["accessToken"])
    assert client.post("/api/mfa/recovery-codes", json={}, headers=token).status_code == 200
    assert client.post("/api/mfa/totp", json={}, headers=token).status_code == 200
    change = {"currentPassword": ada.password, "newPassword": "another-horse-4712-staple"}
    assert client.post("/auth/password", json=change, headers=token).status_code == 204
    assert client.post("/auth/login", json={"username": name, "password": "wrong"}).status_code == 401
    ids = {each: services.directory.find_id(each) or "" for each in (ada.username, eve.username)}
    administration, by = services.administration, By(CLIENT, reason="because")
    administration.change(by, ids[name], Changes(roles=("admin", "staff")))
    administration.set_policy(by, Rules("optional"))
    administration.set_policy(by, Rules("required"))
    log_in(client, eve)
    clock.advance(30)
    sign_in(client, eve, clock())
    administration.reset_factors(by, ids[eve.username])
    administration.disable(by, ids[eve.username])
    administration.enable(by, ids[eve.username])
    administration.unlock(by, ids[eve.username])
    administration.delete(by, ids[eve.username])
    assert client.get("/readyz").status_code == 200
    assert client.post("/auth/logout", json={"everywhere": True}, headers=token).status_code == 204


def enter(app: Flask, person: Person, clock: Clock) -> tuple[str, list[str], dict[str, Any]]:
    client = app.test_client()
    body = {"tempToken": log_in(client, person), "totpCode": person.code(clock()), "rememberDevice": True}
    answer: dict[str, Any] = client.post("/auth/verify-mfa", json=body).json
    return answer["deviceToken"], answer["recoveryCodes"], answer


def services_of(app: Flask) -> Services:
    services: Services = app.extensions["mfa_service"].services
    return services


def findings(services: Services) -> list[str]:
    return [finding for progress in services.seals.verify() for finding in progress.findings]


def run(engine: Engine, block: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(block.replace(":", "\\:")))


def _as(role: str, url: URL) -> Engine:
    return create_engine(url.set(username=role))


@pytest.fixture
def owning(postgresql: str) -> Iterator[Engine]:
    """The role that owns the tables, on a database that was set up by the page."""
    server, above = create_engine(postgresql), create_engine(new_database(postgresql, "two_roles"))
    run(above, ONCE)
    owner = _as("mfa_owns", above.url)
    schema.upgrade(owner)
    run(owner, AFTER_UPGRADE)
    yield owner
    for engine in (owner, above):
        engine.dispose()
    for statement in ("DROP DATABASE two_roles WITH (FORCE)", "DROP ROLE mfa_owns", "DROP ROLE mfa_serves"):
        run(server, statement)
    server.dispose()


@pytest.fixture
def serving(owning: Engine) -> Iterator[Engine]:
    engine = _as("mfa_serves", owning.url)
    yield engine
    engine.dispose()


@pytest.fixture
def database(serving: Engine) -> str:
    """What the tests' app and services are given."""
    return serving.url.render_as_string(hide_password=False)
