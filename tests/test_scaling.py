"""docs/scaling.md: its model is the arithmetic of its constants, these are what was measured, and its SQL works."""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import ProgrammingError

from mfa_service.config import Settings
from mfa_service.services import Services, schema
from tests.conftest import ROOT, Clock, new_database
from tests.services import CLIENT, Rows, log_in, register, sign_in

PAGE = (ROOT / "docs/scaling.md").read_text()
REPORT = (ROOT / "bench/REPORT.md").read_text()
COMES, IN_THE_HOUR, ASKS, HOURS = 0.3, 0.25, 100, 2
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def test_the_table_is_the_formulas_of_the_page() -> None:
    assert f"*a* = {COMES}, *p* = {IN_THE_HOUR}, *c* = {ASKS}, *h* = {HOURS}" in PAGE
    rows = re.findall(r"^\| ([\d,]{5,}) \|(.+)\|$", PAGE, re.M)
    assert [int(plain(users)) for users, _ in rows] == [10**3, 10**6, 10**8]
    for users, rest in rows:
        assert [cell.strip() for cell in rest.split("|")] == list(worked_through(int(plain(users))))


def worked_through(users: int) -> Iterator[str]:
    value = constants()
    sign_ins = users * COMES * IN_THE_HOUR / 3600
    checks = sign_ins * ASKS
    cores = sign_ins / value["sign_ins"] + sign_ins / value["codes"] + checks / value["checks"]
    events = (2 + HOURS) * users * COMES
    yield shown(sign_ins)
    yield shown(checks)
    yield f"{math.ceil(cores):,}"
    yield f"{events:,.0f}"
    yield in_bytes(events * value["bytes"])


def test_the_constants_are_what_was_measured_on_two_cores() -> None:
    measured = {
        "sign_ins": measure(r"logins under saturation, PostgreSQL .*?\| ([\d.]+)/s against"),
        "codes": measure(r"`POST /auth/verify-mfa`, PostgreSQL \|[^|]*\| ([\d,]+)/s"),
        "checks": measure(r"`GET /api/profile`, PostgreSQL \|.*?\| ([\d,]+) \("),
    }
    for name, of_both in measured.items():
        assert constants()[name] == pytest.approx(of_both / 2, rel=0.25), name


def test_for_what_two_cores_did_of_both_at_once_the_model_asks_for_some_more() -> None:
    checks = measure(r"profile at ([\d,]+)/s beside a login storm, PostgreSQL")
    logins = measure(r"logins of the storm, PostgreSQL .*?\| ([\d.]+)/s")
    value = constants()
    assert 2 <= checks / value["checks"] + logins / value["sign_ins"] <= 3


@on_postgresql
@pytest.mark.services
def test_a_sign_in_is_as_many_rows(services: Services, rows: Rows) -> None:
    ada = register(services)
    sign_in(services, ada)
    before = count_of(rows)
    sign_in(services, ada, 1)
    assert count_of(rows) - before == constants()["rows"]


def count_of(rows: Rows) -> int:
    tables = ("mfa_events", "mfa_challenges", "mfa_sessions")
    return sum(int(rows(f"SELECT count(*) AS n FROM {table}")[0]["n"]) for table in tables)


@on_postgresql
@pytest.mark.services
def test_an_event_takes_about_as_many_bytes(services: Services, rows: Rows, database: str) -> None:
    ada = register(services)
    sign_in(services, ada)
    columns = "at, event, user_id, actor, address, user_agent, request_id, detail"
    rows(
        f"INSERT INTO mfa_events ({columns}) SELECT at + n * interval '1 second', event, user_id, actor, address,"
        " user_agent, request_id, detail FROM mfa_events, generate_series(1, 5000) AS n"
    )
    [size] = rows("SELECT pg_total_relation_size('mfa_events') AS bytes, (SELECT count(*) FROM mfa_events) AS n")
    assert constants()["bytes"] == pytest.approx(size["bytes"] / size["n"], rel=0.35)


# ── partitions ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_the_log_goes_on_in_partitions(parted: Services) -> None:
    engine, ada = parted.engine, register(parted)
    sign_in(parted, ada)
    seal(parted)
    partition(engine, parted.clock())
    log_in(parted, ada)  # in the partition that holds what is old
    parted.clock.advance(40 * 86400)  # type: ignore[attr-defined]
    sign_in(parted, ada, 1)  # in the month that was added
    parted.clock.advance(40 * 86400)  # type: ignore[attr-defined]
    log_in(parted, ada)  # in none that was named
    seal(parted)
    assert [finding for progress in parted.seals.verify() for finding in progress.findings] == []
    used = query(engine, "SELECT DISTINCT tableoid::regclass::text AS name FROM mfa_events ORDER BY 1")
    assert used == ["mfa_events_first", "mfa_events_later", "mfa_events_month"]
    for name in ("mfa_events", *used):
        for statement in (f"DELETE FROM {name}", f"UPDATE {name} SET event = 'x'", f"TRUNCATE {name}"):
            with pytest.raises(ProgrammingError, match="is append-only"):
                query(engine, statement)
    before = len(query(engine, "SELECT id FROM mfa_events"))
    assert sum(parted.seals.prune(timedelta(days=60), CLIENT)) > 0
    assert 0 < len(query(engine, "SELECT id FROM mfa_events")) < before
    assert [finding for progress in parted.seals.verify() for finding in progress.findings] == []


def partition(engine: Engine, now: float) -> None:
    """Run the page's two blocks, with the months that a clock of a test says."""
    once, monthly = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    today = datetime.fromtimestamp(now, UTC)
    bounds = [(today + timedelta(days=days)).strftime("%Y-%m-%d") for days in (1, 50)]
    for block in (once.replace("2027-01-01", bounds[0]), monthly):
        named = block.replace("2027_01", "month").replace("2027-01-01", bounds[0]).replace("2027-02-01", bounds[1])
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.connection.driver_connection.execute(named)  # type: ignore[union-attr]


def seal(services: Services) -> None:
    services.clock.advance(61)  # type: ignore[attr-defined]
    assert services.seals.seal() != []


def query(engine: Engine, statement: str) -> list[Any]:
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return list(result.scalars()) if result.returns_rows else []


@pytest.fixture
def parted(postgresql: str, config: dict[str, Any], clock: Clock) -> Iterator[Services]:
    url = new_database(postgresql, "parted")
    engine = create_engine(url)
    schema.upgrade(engine)
    services = Services(Settings.load(config | {"MFA_DATABASE_URL": url}), engine, clock)
    yield services
    services.close()


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def constants() -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.M)}


def measure(pattern: str) -> float:
    found = re.search(pattern, REPORT)
    assert found, pattern
    return float(plain(found[1]))


def plain(number: str) -> str:
    return number.replace(",", "")


def shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"


def in_bytes(count: float) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.0f} {unit}"
    return f"{count / 1000:.0f} kB"
