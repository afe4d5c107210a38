"""docs/asvs.md answers every requirement of its chapters, and each test that it calls to witness exists."""

import re
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.documents import EMPTY, missing, table, witnesses_in

PAGE = "docs/asvs.md"
STATES = ["met", "not met", "not applicable"]
#: The sections of OWASP ASVS 5.0.0 with the level of each requirement, in order: 6.1.1 is of level 1, 6.1.2 of level 2.
LEVELS = dict(
    re.findall(
        r"([\d.]+) ([123]+)",
        """
        6.1 122   6.2 111111112222   6.3 11223333   6.4 112233   6.5 22222333   6.6 2223   6.7 33   6.8 2222
        7.1 222   7.2 1111   7.3 22   7.4 11222   7.5 223   7.6 22
        9.1 111   9.2 1222
        11.1 2233   11.2 22233   11.3 11233   11.4 1222   11.5 23   11.6 23   11.7 33
        13.1 2333   13.2 222223   13.3 2233   13.4 1222233
        14.1 22   14.2 12223333   14.3 122
        16.1 2   16.2 22222   16.3 2222   16.4 222   16.5 2223
        """,
    )
)
CHAPTERS = re.findall(r"^## (V.+)$", (ROOT / PAGE).read_text(), re.M)
ROWS = [row for chapter in CHAPTERS for row in table(PAGE, chapter)]


def test_no_requirement_is_left_out_and_each_has_its_level() -> None:
    known = [
        (f"{section}.{number}", level)
        for section, levels in LEVELS.items()
        for number, level in enumerate(levels, start=1)
    ]
    assert [(number, level) for number, level, *_ in ROWS] == known


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_requirement_stands_in_its_own_chapter(chapter: str) -> None:
    assert {f"V{row[0].partition('.')[0]}" for row in table(PAGE, chapter)} == {chapter.partition(" ")[0]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_state_is_one_of_three_and_says_what_it_rests_on(row: list[str]) -> None:
    _, _, asks, state, why, witnesses = row
    assert state in STATES
    assert asks != EMPTY
    assert witnesses_in(witnesses) if state == "met" else why != EMPTY
    assert not why.startswith("Partly") or state == "not met"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_its_witnesses_exist_and_nothing_else_is_named(row: list[str]) -> None:
    witnesses = row[-1]
    assert missing(witnesses) == []
    assert witnesses == (" ".join(f"`{path}::{name}`" for path, name in witnesses_in(witnesses)) or EMPTY)


def test_the_summary_counts_what_is_below() -> None:
    counted = {chapter: Counter(row[3] for row in table(PAGE, chapter)) for chapter in CHAPTERS}
    counted["all"] = sum(counted.values(), Counter())
    known = [[chapter, *(str(of[state]) for state in STATES), str(of.total())] for chapter, of in counted.items()]
    assert table(PAGE, "") == known
