"""Reading the documents that make claims: their tables, and the tests that they name."""

import ast
import functools
import re

from tests.conftest import ROOT

#: What stands for "nothing" in a table.
EMPTY = "–"


def table(page: str, title: str) -> list[list[str]]:
    """The rows of the first table under a heading of the second level; without heading, the first of the page."""
    text = (ROOT / page).read_text()
    if title:
        [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    rows = re.search(r"^\|.*?\n(?!\|)", text, re.M | re.S)
    assert rows, f"{page} has no table under {title!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].strip().splitlines()[2:]]


def witnesses_in(text: str) -> list[tuple[str, str]]:
    """Every `path::test` in a text."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)


def missing(text: str) -> list[str]:
    """The tests that a text names and nobody has written."""
    return [f"{path}::{name}" for path, name in witnesses_in(text) if name not in tests_of(path)]


@functools.cache
def tests_of(path: str) -> frozenset[str]:
    """The names of all tests of a file, those in classes too."""
    file = ROOT / path
    tree = ast.walk(ast.parse(file.read_text())) if file.is_file() else ()
    functions = [node for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))
