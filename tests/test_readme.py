"""What the README and its sisters say is true: names, tables, links, and the walk as it stands."""

import ast
import importlib
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest

from mfa_service.cli import mfa
from mfa_service.config import Settings, env_name
from mfa_service.errors import published
from mfa_service.services.audit import Event
from tests.conftest import ROOT, program

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
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
    made_by_serve = {"instance/"}
    assert [path for path in named if path not in made_by_serve and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text_of(page), re.M)) <= targets
    assert set(re.findall(r"flask mfa ([a-z-]+)", text_of(page))) <= set(mfa.commands)


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
    assert sorted(name for name, _ in table("Audit events")) == sorted(Event)


def test_the_limits_are_those_of_the_code() -> None:
    said = {where: int(how_much.split()[0].replace(",", "")) for _, how_much, where in table("Limits and lifetimes")}
    assert said == {where: value_of(where) for where in said}


@pytest.mark.parametrize("title", ["Settings", "Error codes", "Audit events", "Limits and lifetimes"])
def test_no_row_stands_twice_and_none_is_without_its_reason(title: str) -> None:
    rows = table(title)
    assert len({row[0] for row in rows}) == len(rows)
    assert all(cell for row in rows for cell in row)


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
    blocks = [(code.replace("http://127.0.0.1:8000", address), output) for code, output in walk()]
    outputs = outputs_of([code for code, _ in blocks])
    for (code, shown_output), output in zip(blocks, outputs, strict=True):
        assert re.fullmatch(as_pattern(shown_output), output), f"{code}\nanswered\n{output}\nand not\n{shown_output}"


def test_the_walk_has_its_steps_and_the_refusal_without_a_code() -> None:
    walked = " ".join(code for code, _ in walk())
    steps = ["/auth/register", "/auth/login", "/api/profile", "/auth/verify-mfa", "/api/profile"]
    assert re.findall(r"/(?:auth|api)/[a-z-]+", walked) == steps
    assert "401" in walk()[2][1]


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
    """The value of a constant named `path.py:NAME`."""
    path, _, name = where.partition(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def resolves(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = ROOT / (path or page)
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
    return '[^ "]+'.join(re.escape(part) for part in shown_output.split("…"))
