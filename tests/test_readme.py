"""What the README and its sisters say is true: names, tables, links, and the walk as it stands."""

import ast
import importlib
import queue
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from mfa_service.cli import mfa
from mfa_service.config import Settings, env_name
from mfa_service.errors import published
from mfa_service.services.audit import ClientInfo, Event, Recorded
from mfa_service.services.notices import _is_noteworthy
from tests.conftest import ROOT, Clock, program
from tests.factories import register, sign_in

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    # What attackers ask for is not ours to name.
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "attack-report.md"),
)
README = (ROOT / "README.md").read_text()
#: What stands for "nothing" in a table.
EMPTY = "–"


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES)
def test_every_symbol_named_exists(page: str) -> None:
    named = re.findall(r"([\w./-]+\.py):([A-Za-z_][\w.]*)", text_of(page))
    assert [f"{path}:{symbol}" for path, symbol in named if symbol not in symbols_of(path)] == []


def test_symbols_are_named_at_all() -> None:
    assert len(re.findall(r"\.py:[A-Za-z_]", README)) > 10


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+\.(?:py|cfg|in|txt|toml|md)|[\w.-]+(?:/[\w.-]+)*/)[:`]", text_of(page))
    made_by_serve = {"instance/", "seal-keys/"}
    assert [path for path in named if path not in made_by_serve and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text_of(page), re.M)) <= targets
    assert set(re.findall(r"flask mfa ([a-z-]+)", text_of(page))) <= set(mfa.commands)


def test_every_command_is_named_somewhere() -> None:
    named = set(re.findall(r"flask mfa ([a-z-]+)", " ".join(map(text_of, PAGES))))
    assert set(mfa.commands) <= named


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_named_is_a_setting(page: str) -> None:
    known = {env_name(spec) for spec in fields(Settings)}
    assert set(re.findall(r"\b(?:MFA_[A-Z_]+|JWT_SECRET)\b", text_of(page))) <= known


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_the_settings_are_those_of_the_code() -> None:
    known = {env_name(spec): shown(spec.default) for spec in fields(Settings) if spec.name != "testing"}
    assert {name: default for name, default, _ in table("Settings")} == known


def test_the_error_codes_are_those_of_the_code() -> None:
    known = {error.code: (str(error.status), error.message) for error in published()}
    assert {code: (status, sentence) for code, status, sentence, _ in table("Error codes")} == known


def test_the_audit_events_are_those_of_the_code() -> None:
    assert sorted(name for name, _, _ in table("Audit events")) == sorted(Event)


def test_the_notices_are_those_of_the_code() -> None:
    marked = {name for name, _, notice in table("Audit events") if notice != EMPTY}
    unmarked = set(Event) - marked
    assert all(_is_noteworthy(recorded(Event(name), new_client=True)) for name in marked)
    assert not any(_is_noteworthy(recorded(event, new_client=True)) for event in unmarked)
    assert not _is_noteworthy(recorded(Event.LOGIN_COMPLETED, new_client=False))


def test_the_limits_are_those_of_the_code() -> None:
    for what, how_much, _, where in table("Limits and lifetimes"):
        value = value_of(where)
        number = re.match(r"[\d,]+", how_much)
        assert number, what
        assert how_much == value or int(number[0].replace(",", "")) == value, what


def test_no_limit_of_the_code_is_missing() -> None:
    said = {where for _, _, _, where in table("Limits and lifetimes")}
    assert set(public_numbers()) | {env_name(spec) for spec in fields(Settings) if is_limit(spec)} <= said


def test_the_ends_of_a_session_stand_there_and_why_they_are_later_than_nists() -> None:
    hours, days = Settings.session_idle_seconds / 3600, Settings.session_seconds / 86400
    assert f"{hours:.0f} hours since the last refresh, {days:.0f} days in all" in section("The life of a session")
    [why] = [each for each in section("Decisions").split("\n\n") if "MFA_SESSION_IDLE_SECONDS" in each]
    for said in ("NIST", f"{days:.0f} days and a day, since", "`MFA_SESSION_SECONDS=86400`"):
        assert said in why


def test_what_ends_what_is_a_full_table() -> None:
    assert all(len(row) == 5 and all(row) for row in table("The life of a session"))


@pytest.mark.parametrize("title", ["Settings", "Error codes", "Audit events", "Limits and lifetimes"])
def test_no_row_stands_twice_and_none_is_without_its_reason(title: str) -> None:
    rows = table(title)
    assert len({row[0] for row in rows}) == len(rows)
    assert all(cell for row in rows for cell in row)


@pytest.mark.parametrize(
    ("title", "example"), [("Guard another app", "api_by_jwks.py"), ("Embed it", "flask_login_shop.py")]
)
def test_the_code_that_is_shown_is_that_of_a_tested_example(title: str, example: str) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", section(title), re.M | re.S)
    assert code in (ROOT / "examples" / example).read_text()


# ── links ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_resolve(page: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", text_of(page))
    assert [target for target in targets if not resolves(page, target)] == []


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_the_walk_goes_as_shown(serve: Callable[..., str]) -> None:
    for needed in ("curl", "oathtool"):
        program(needed)
    address = serve(MFA_AUTH_RATE_LIMIT="5 per 15 minutes")
    blocks = [(code.replace("http://127.0.0.1:${PORT:-8000}", address), output) for code, output in walk()]
    outputs = outputs_of([code for code, _ in blocks])
    for (code, shown_output), output in zip(blocks, outputs, strict=True):
        assert re.fullmatch(as_pattern(shown_output), output), f"{code}\nanswered\n{output}\nand not\n{shown_output}"


def test_the_walk_has_its_steps_and_the_refusal_without_a_code() -> None:
    walked = " ".join(code for code, _ in walk())
    steps = ["/auth/register", "/auth/login", "/api/profile", "/auth/verify-mfa", "/api/profile"]
    staying = ["/auth/refresh", "/auth/login", "/auth/verify-mfa", "/auth/login", "/api/mfa/recovery-codes"]
    ending = ["/auth/step-up", "/api/mfa/recovery-codes", "/api/sessions", "/auth/logout", "/api/profile"]
    assert re.findall(r"/(?:auth|api)/[a-z/-]+", walked) == steps + staying + ending
    assert "401" in walk()[2][1]


def test_every_route_named_exists(app: Flask) -> None:
    known = {re.sub("<.*?>", "<id>", rule.rule) for rule in app.url_map.iter_rules()}
    named = re.findall(r"(?:GET|POST|PUT|PATCH|DELETE) (/[a-z./<>-]+)", " ".join(map(text_of, PAGES)))
    assert len(named) > 10
    assert set(named) <= known


def test_the_listener_of_notices_hears(make_app: Callable[..., Flask], clock: Clock) -> None:
    app, heard = make_app(), queue.Queue[str]()
    [code] = re.findall(r"^```python\n(.*?)^```$", section("Audit events"), re.M | re.S)
    code = code.replace("from mfa_service.app import create_app", "")
    exec(code, kept := {"create_app": lambda: app, "print": heard.put})
    client = app.test_client()
    sign_in(client, register(client, "ada"), clock())
    assert kept["send"]
    texts = {heard.get(timeout=10) for _ in range(3)}
    events = {"factor.confirmed", "recovery_codes.issued", "login.completed"}
    assert texts == {f"to someone@example.com: {event} at 22:13 UTC from 127.0.0.1" for event in events}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def section(title: str) -> str:
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"the README has no section {title!r}"
    return found[1]


def table(title: str) -> list[list[str]]:
    """The rows of a section's table, without heading and backticks around a cell."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown(default: Any) -> str:
    """A default as the table shows it."""
    if isinstance(default, tuple):
        return ",".join(default) or EMPTY
    return str(default).lower() if isinstance(default, bool) else str(default or EMPTY) if default != 0 else "0"


def symbols_of(path: str) -> set[str]:
    """Names that a file defines on its top level, and `Class.member`."""
    return set(defined(ast.parse((ROOT / path).read_text()).body))


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from defined(statement.body, f"{prefix}{statement.name}.")
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield prefix + statement.name
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (prefix + ast.unparse(target) for target in targets)


def value_of(where: str) -> object:
    """The value of a constant named `path.py:NAME`, or the default of a setting."""
    path, _, name = where.partition(":")
    if not name:
        return next(spec.default for spec in fields(Settings) if env_name(spec) == where)
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def public_numbers() -> Iterator[str]:
    """Every number that a module of ours names in capitals, as `path.py:NAME`; sizes of columns and keys left out."""
    for path in (ROOT / "mfa_service").rglob("*.py"):
        where = str(path.relative_to(ROOT))
        for symbol in defined(ast.parse(path.read_text()).body):
            is_public = re.fullmatch("[A-Z][A-Z_]+", symbol) and symbol not in ("ID_LENGTH", "KEY_BYTES")
            if is_public and type(value_of(f"{where}:{symbol}")) is int:
                yield f"{where}:{symbol}"


def is_limit(spec: "Field[Any]") -> bool:
    return spec.name.endswith(("_rate_limit", "_seconds", "_window", "_queue"))


def recorded(event: Event, **detail: object) -> Recorded:
    return Recorded(event, datetime.now(UTC), "someone", ClientInfo(), detail)


def resolves(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    return file.is_file() and (not anchor or anchor in anchors_of(file.read_text()))


def anchors_of(text: str) -> set[str]:
    """The anchors that a repository's page gives to headings."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", without_code, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def walk() -> list[tuple[str, str]]:
    """Each block of the walk with the output that is shown under it."""
    return re.findall(r"^```sh\n(.*?)^```\n\n^```(?:json|text)\n(.*?)^```$", section("The walk"), re.M | re.S)


def outputs_of(blocks: list[str]) -> list[str]:
    """Paste blocks into one shell, and tell the output of one from that of the next."""
    divider = "-- next block --"
    script = f"\necho '{divider}'\n".join(blocks)
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.split(f"{divider}\n")


def as_pattern(shown_output: str) -> str:
    """The output as a pattern, in which … stands for what is different each time."""
    pattern = '[^ "]+'.join(re.escape(part) for part in shown_output.split("…"))
    return pattern.replace(r'\[[^ "]+\]', r"\[[^\]]+\]")
