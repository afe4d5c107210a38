"""Recovery codes: unguessable, easy to read out, and one spelling for each."""

import hashlib
import re

import pytest

from mfa_service.crypto.recovery import digest, new_codes

CODE = "0123-4567-89AB-CDEF-GHJK-MNPQ"
#: What is left when nothing can be taken for anything else: no I, L, O, U.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_there_are_ten_and_no_two_alike() -> None:
    codes = [code for _ in range(100) for code in new_codes()]
    assert len(codes) == len(set(codes)) == 1000


def test_a_code_is_six_groups_of_four_unambiguous_characters() -> None:
    for code in new_codes():
        assert re.fullmatch(rf"[{ALPHABET}]{{4}}(-[{ALPHABET}]{{4}}){{5}}", code)


def test_a_code_has_120_bits_and_each_character_all_of_its_five() -> None:
    codes = [code.replace("-", "") for _ in range(200) for code in new_codes()]
    assert {len(code) for code in codes} == {24}
    for place in range(24):
        assert {code[place] for code in codes} == set(ALPHABET)


def test_what_is_stored_is_the_sha_256_of_the_canonical_form() -> None:
    assert digest(CODE) == hashlib.sha256(b"0123456789ABCDEFGHJKMNPQ").hexdigest()


@pytest.mark.parametrize(
    "typed",
    [
        CODE.lower(),
        CODE.replace("-", ""),
        CODE.replace("-", " "),
        CODE.replace("-", "").lower(),
        f"  {CODE} ",
        "-".join(CODE),
        CODE.replace("-", " - "),
        "0123-4567-89aB-cDEF-gHJK-MNPq",
    ],
)
def test_case_hyphens_and_spaces_do_not_count(typed: str) -> None:
    assert digest(typed) == digest(CODE)


@pytest.mark.parametrize(
    ("code", "typed"),
    [
        (CODE, CODE.replace("0", "O")),
        (CODE, CODE.replace("1", "I")),
        (CODE, CODE.replace("1", "l")),
        (CODE, CODE.translate({48 + number: 0xFF10 + number for number in range(10)})),
        (CODE, CODE.replace("-", "_")),
        (CODE, CODE.replace("-", "\u2013")),
        (CODE, CODE.replace("-", "\u00a0")),
        (CODE, CODE + "\n"),
        (CODE, CODE + "\0"),
        (CODE, "\t" + CODE),
        (CODE, CODE.replace("K", "\u212a")),
        (CODE, CODE[:-1]),
        (CODE, CODE + "0"),
        (CODE, ""),
        ("SSSS-SSSS", "\u017f\u017f\u017f\u017f-SSSS"),
        ("SSSS-SSSS", "\u00df\u00df-SSSS"),
        ("STST-STST", "\ufb06\ufb06-STST"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_nothing_else_is_another_spelling_of_a_code(code: str, typed: str) -> None:
    assert digest(typed) != digest(code)


@pytest.mark.parametrize("typed", ["\ud800", "\0", "ü", "💥" * 1000, "x" * 100_000], ids=lambda text: ascii(text)[:12])
def test_whatever_is_typed_has_a_digest(typed: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", digest(typed))
