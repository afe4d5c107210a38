"""User names: which are allowed, and which are one and the same."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfa_service.errors import InvalidRequest
from mfa_service.services.usernames import find_key, get_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("admin", "ADMIN"),
        ("admin", "ａｄｍｉｎ"),
        ("admin", "ＡＤＭＩＮ"),
        ("straße", "STRASSE"),
        ("straße", "STRAẞE"),
        ("ﬁ", "fi"),
        ("\N{KELVIN SIGN}", "k"),
        ("caf\u00e9", "cafe\u0301"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("bob", "BoB"),
    ],
)
def test_names_that_differ_in_case_width_or_composition_are_one(one: str, other: str) -> None:
    assert get_key(one) == get_key(other)


@pytest.mark.parametrize(("one", "other"), [("ada", "adá"), ("ada", "ada1"), ("a.b", "ab"), ("i", "ı"), ("o", "0")])
def test_names_that_differ_otherwise_are_two(one: str, other: str) -> None:
    assert get_key(one) != get_key(other)


def test_every_character_of_the_basic_plane_is_compared_as_nfkc_and_case_folding_would() -> None:
    allowed = {name: key for name in map(chr, range(0x10000)) if (key := find_key(f"a{name}b"))}
    assert len(allowed) > 40_000
    for name, key in allowed.items():
        assert key == folded(f"a{name}b"), ascii(name)


@given(st.text(max_size=20))
def test_the_compared_form_is_its_own_compared_form(name: str) -> None:
    key = find_key(name)
    assert key is None or find_key(key) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "user\u200b",
        "\u200buser",
        "us\u200der",
        "us\u00ader",
        "\ufeffuser",
        "\u202eadmin",
        "\u2066admin\u2069",
        "a\u0000b",
        "a\nb",
        "a\u0085b",
        "a\x7fb",
        "\ud800",
        "a\udfffb",
        "\ue000",
        "\U000f0000",
        "\u0378",
        "\uffff",
        "ada lovelace",
        "ada\u00a0lovelace",
        "ada\u3000lovelace",
        "a\u2028b",
        "user\U000e0041",
        "😀",
    ],
    ids=ascii,
)
def test_names_of_characters_that_nobody_sees_or_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        get_key(name)
    assert set(refusal.value.fields) == {"username"}
    assert find_key(name) is None


@pytest.mark.parametrize("name", ["аdmin", "αdmin", "admіn", "раураl", "pаypal", "ad𝗆iń" + "а", "Αdmin", "adaאב"])
def test_names_that_mix_scripts_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        get_key(name)


@pytest.mark.parametrize(
    "name", ["адмін", "αλφα", "山田太郎", "山田たろう", "yamada山田", "김철수kim", "אבג", "ada_99"]
)
def test_names_in_one_script_or_in_those_that_are_written_together_are_taken(name: str) -> None:
    assert get_key(name)


@pytest.mark.parametrize("name", ["a:b", ":", "a：b", "a:"])
def test_a_colon_would_separate_issuer_and_account_and_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid request") as refusal:
        get_key(name)
    assert refusal.value.fields == {"username": "must not hold a colon"}


@pytest.mark.parametrize("name", ["a+b@x.io", "ü", "%41", "a/b", "a?b&secret=AAAA", '"><svg>', "O'Brien", "a;--", "-"])
def test_punctuation_is_no_reason_to_refuse(name: str) -> None:
    assert get_key(name) == name.casefold()


@pytest.mark.parametrize("letter", ["a", "é", "е", "山", "𠀀"])
def test_a_name_has_at_most_64_characters(letter: str) -> None:
    assert len(get_key(letter * 64)) == 64
    with pytest.raises(InvalidRequest):
        get_key(letter * 65)


@pytest.mark.parametrize("name", ["ß" * 33, "ﬁ" * 33, "ﷺ" * 64, "ﷺ" * 100, "ﷺ"])
def test_the_length_counts_after_normalisation(name: str) -> None:
    with pytest.raises(InvalidRequest):
        get_key(name)


def folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
