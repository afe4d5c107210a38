"""The log is added to and never changed: PostgreSQL refuses it itself, and no code of ours tries."""

import ast
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from mfa_service.services import Services
from tests.conftest import ROOT, Clock
from tests.services import CLIENT, Rows, register

PACKAGE = ROOT / "mfa_service"
on_postgresql = pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True
)
CHANGES = [
    "UPDATE mfa_events SET event = 'nothing.happened'",
    "UPDATE mfa_events SET id = id",
    "DELETE FROM mfa_events",
    "TRUNCATE mfa_events",
    "INSERT INTO mfa_events SELECT * FROM mfa_events ON CONFLICT (id) DO UPDATE SET event = 'nothing.happened'",
    "UPDATE mfa_seals SET count = 0",
    "DELETE FROM mfa_seals",
    "TRUNCATE mfa_seals",
    "TRUNCATE mfa_events, mfa_seals CASCADE",
]


@on_postgresql
@pytest.mark.parametrize("statement", CHANGES)
def test_the_database_refuses_to_change_the_log(sealed: None, rows: Rows, statement: str) -> None:
    before = everything(rows)
    with pytest.raises(ProgrammingError, match="is append-only"):
        rows(statement)
    assert everything(rows) == before


@on_postgresql
@pytest.mark.parametrize("statement", [it for it in CHANGES if it != "DELETE FROM mfa_events"])
def test_saying_that_one_prunes_allows_nothing_but_removing_events(
    sealed: None, rows: Rows, database: str, statement: str
) -> None:
    before = everything(rows)
    with pytest.raises(ProgrammingError, match="is append-only"):
        run(database, "SET LOCAL mfa.pruning = 'on'", statement)
    assert everything(rows) == before


@on_postgresql
def test_events_are_removed_by_saying_that_one_prunes(sealed: None, rows: Rows, database: str) -> None:
    run(database, "SET LOCAL mfa.pruning = 'on'", "DELETE FROM mfa_events WHERE id = 1")
    assert [row["id"] for row in rows("SELECT id FROM mfa_events ORDER BY id")] == [2]


@on_postgresql
@pytest.mark.parametrize("value", ["off", "", "true", "ON"])
def test_it_is_said_in_one_word(sealed: None, rows: Rows, database: str, value: str) -> None:
    with pytest.raises(ProgrammingError, match="is append-only"):
        run(database, f"SET LOCAL mfa.pruning = '{value}'", "DELETE FROM mfa_events")


@on_postgresql
def test_the_word_holds_for_its_transaction_alone(sealed: None, rows: Rows, database: str) -> None:
    engine = create_engine(database)
    with engine.connect() as connection:
        with connection.begin():
            connection.execute(text("SET LOCAL mfa.pruning = 'on'"))
        with pytest.raises(ProgrammingError, match="mfa_events is append-only"), connection.begin():
            connection.execute(text("DELETE FROM mfa_events"))
    engine.dispose()


@on_postgresql
def test_after_pruning_the_service_the_log_is_closed_again(services: Services, rows: Rows, clock: Clock) -> None:
    register(services)
    clock.advance(61)
    services.seals.seal()
    clock.advance(3600)
    assert sum(services.seals.prune(timedelta(minutes=30), CLIENT)) == 1
    for connection in [services.engine.connect() for _ in range(2)]:
        with connection, pytest.raises(ProgrammingError, match="is append-only"):
            connection.execute(text("DELETE FROM mfa_events"))


def test_no_code_of_ours_changes_the_log_but_pruning() -> None:
    assert list(statements()) == [("services/seals.py", "_remove", "delete(AuditEvent)")]


def test_no_code_of_ours_changes_it_by_text() -> None:
    pattern = re.compile(r"(UPDATE|DELETE FROM|TRUNCATE|DROP TABLE|ALTER TABLE)\s+\W*mfa_(events|seals)", re.IGNORECASE)
    assert [path for path in files() if pattern.search(path.read_text())] == []


def test_no_code_of_ours_deletes_rows_that_it_has_loaded() -> None:
    calls = [node for path in files() for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert [ast.unparse(it) for it in calls if re.search(r"session\.delete$", ast.unparse(it.func))] == []


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sealed(services: Services, clock: Clock) -> None:
    """Two events, the seal over them."""
    register(services, "ada")
    register(services, "bob")
    clock.advance(61)
    assert len(services.seals.seal()) == 1


def everything(rows: Rows) -> list[object]:
    return [rows(f"SELECT * FROM mfa_{table} ORDER BY 1") for table in ("events", "seals")]


def run(database: str, *statements: str) -> None:
    """All of them in one transaction."""
    engine = create_engine(database)
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def statements() -> Iterator[tuple[str, str, str]]:
    """Each `delete(…)` and `update(…)` of the two tables: file, function, what it says."""
    for path in files():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                said = ast.unparse(node) if isinstance(node, ast.Call) else ""
                name = re.match(r"(\w+\.)*(update|delete)\((\w+\.)*(AuditEvent|SealRecord)", said)
                is_the_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                if name and is_the_call:
                    yield str(path.relative_to(PACKAGE)), function.name, said
