"""Password hashes: every character counts, however many there are, and the cost is written in the hash."""

import base64
import hmac
import time
import unicodedata
from collections.abc import Callable

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfa_service.crypto.passwords import UnknownHash, decoy, hash_password, is_known, needs_rehash, verify_password

COST = 4
SCHEME = "$bcrypt-hmac-sha384"


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=300))
def test_the_right_password_is_recognised_whatever_it_is_made_of(password: str) -> None:
    assert verify_password(password, hash_password(password, COST), COST)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("😀" * 64, "😀" * 63 + "😁"),
        ("a" * 73, "a" * 72 + "b"),
        ("a" * 1024, "a" * 1023),
        ("a\0bcdefgh", "a\0cdefghi"),
        ("nul\0tail", "nul\0OTHER"),
        ("nul", "nul\0"),
        ("trailing", "trailing "),
        ("trailing", " trailing"),
        ("Case of it", "case of it"),
        ("ｗｉｄｅ", "wide"),
        ("ﬁne", "fine"),
        ("x", ""),
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_one_character_makes_another_password(right: str, wrong: str) -> None:
    stored = hash_password(right, COST)
    assert verify_password(right, stored, COST)
    assert not verify_password(wrong, stored, COST)


def test_a_composed_and_a_decomposed_letter_are_the_same() -> None:
    stored = hash_password("caf\u00e9 au lait", COST)
    assert verify_password("cafe\u0301 au lait", stored, COST)


def test_the_stored_form_names_scheme_and_cost() -> None:
    for cost in (4, 5):
        assert hash_password("secret", cost).startswith(f"{SCHEME}$2b${cost:02}$")


def test_the_hash_is_bcrypt_over_hmac_sha_384_of_the_nfc_form() -> None:
    stored = hash_password("cafe\u0301", COST)
    normal = unicodedata.normalize("NFC", "cafe\u0301").encode()
    reduced = base64.b64encode(hmac.digest(b"mfa_service/password/1", normal, "sha384"))
    assert bcrypt.checkpw(reduced, stored.removeprefix(SCHEME).encode())
    assert not bcrypt.checkpw(normal, stored.removeprefix(SCHEME).encode())


def test_one_password_has_as_many_hashes_as_it_is_hashed() -> None:
    assert hash_password("secret", COST) != hash_password("secret", COST)


def test_a_hash_of_another_cost_needs_to_be_made_again() -> None:
    stored = hash_password("secret", COST)
    assert not needs_rehash(stored, COST)
    assert needs_rehash(stored, COST + 1)
    assert verify_password("secret", stored, COST + 1)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "garbage",
        "secret",
        SCHEME,
        "$2b$04$" + "a" * 53,
        SCHEME + "$2b$04$" + "a" * 52,
        SCHEME + "$2b$04$" + "a" * 54,
        SCHEME + "$2b$04$" + "a" * 53 + "\n",
        SCHEME + "$2y$04$" + "a" * 53,
        SCHEME + "$2b$٠٤$" + "a" * 53,
        SCHEME + "$2b$03$" + "a" * 53,
        SCHEME + "$2b$99$" + "." * 53,
        SCHEME + "$2b$32$" + "." * 53,
    ],
)
def test_a_string_that_is_no_hash_of_ours_is_said_to_be_unknown(stored: str) -> None:
    with pytest.raises(UnknownHash):
        verify_password("secret", stored, COST)


@pytest.mark.parametrize("cost", [4, 9])
def test_a_hash_of_ours_or_another_systems_is_known_whole(cost: int) -> None:
    for stored in (hash_password("secret", cost), decoy(cost), bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()):
        assert is_known(stored)
        for damaged in (stored[:-1], stored + "x", stored[:-1] + "!", stored.replace("$0", "$9")):
            assert not is_known(damaged), damaged
    assert not is_known(SCHEME)


def test_whether_garbage_needs_a_rehash_can_not_be_said() -> None:
    with pytest.raises(UnknownHash):
        needs_rehash("garbage", COST)


def test_a_decoy_is_a_well_formed_hash_that_nothing_matches() -> None:
    decoys = {decoy(COST) for _ in range(200)}
    assert len(decoys) == 200
    assert not any(verify_password("", stored, COST) for stored in decoys)
    assert not needs_rehash(decoy(COST), COST)


@pytest.mark.parametrize("stored", [hash_password("secret", 4), decoy(9)], ids=["hashed at a lower cost", "decoy"])
def test_a_comparison_takes_as_long_as_one_at_the_current_cost(stored: str) -> None:
    current = hash_password("secret", 9)
    expected = quickest(lambda: verify_password("wrong", current, 9))
    assert 0.7 < quickest(lambda: verify_password("wrong", stored, 9)) / expected < 1.4


def quickest(act: Callable[[], object]) -> float:
    """Seconds of processor time that the quickest of five runs took."""

    def run() -> float:
        start = time.thread_time()
        act()
        return time.thread_time() - start

    return min(run() for _ in range(5))
