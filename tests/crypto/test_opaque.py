"""Opaque strings: unguessable; and refresh tokens, which are derived and have one spelling each."""

import hashlib
import re
import secrets

import pytest

from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.opaque import RefreshToken, RefreshTokens, digest, new_id, new_token, parse_refresh_token
from mfa_service.errors import InvalidRefreshToken, SealBroken

SESSION = "abcdefghijklmnopqrstuv"
MAC = "A" * 43

# ── ids and tokens ───────────────────────────────────────────────────────────────────────────────


def test_ids_are_128_random_bits_in_22_url_safe_characters() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", each) for each in ids)


def test_no_id_begins_as_an_option_of_a_command_does() -> None:
    assert not [each for each in (new_id() for _ in range(5000)) if each.startswith("-")]


def test_tokens_are_256_random_bits_in_43_url_safe_characters() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", each) for each in tokens)


def test_what_is_stored_of_a_token_is_its_sha_256() -> None:
    assert digest("token") == hashlib.sha256(b"token").hexdigest()


@pytest.mark.parametrize("text", ["", "\ud800", "\0", "ü" * 1000])
def test_whatever_is_sent_has_a_digest(text: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", digest(text))


# ── refresh tokens ───────────────────────────────────────────────────────────────────────────────


def test_a_derived_token_is_genuine_and_the_same_each_time(tokens: RefreshTokens) -> None:
    for generation in (0, 1, 9, 10, 999_999_999):
        text = tokens.derive(SESSION, generation, "new")
        assert tokens.derive(SESSION, generation, "new") == text
        token = parse_refresh_token(text)
        assert (token.session_id, token.generation) == (SESSION, generation)
        assert tokens.is_genuine(token, "new")


def test_a_token_belongs_to_its_session_its_generation_and_its_key(tokens: RefreshTokens) -> None:
    token = parse_refresh_token(tokens.derive(SESSION, 3, "new"))
    for other in (
        RefreshToken(SESSION, 2, token.mac),
        RefreshToken(SESSION, 4, token.mac),
        RefreshToken(SESSION[::-1], 3, token.mac),
        RefreshToken(SESSION, 3, MAC),
    ):
        assert not tokens.is_genuine(other, "new")


def test_a_token_from_before_its_session_moved_to_the_newest_key_is_genuine_still(tokens: RefreshTokens) -> None:
    token = parse_refresh_token(tokens.derive(SESSION, 3, "old"))
    assert tokens.is_genuine(token, "new")
    assert not RefreshTokens(Keyring({"new": secrets.token_bytes(32)})).is_genuine(token, "new")


def test_no_generation_tells_anything_of_the_next(tokens: RefreshTokens) -> None:
    macs = {parse_refresh_token(tokens.derive(SESSION, generation, "new")).mac for generation in range(100)}
    assert len(macs) == 100


def test_a_new_session_takes_the_newest_key(tokens: RefreshTokens) -> None:
    assert tokens.active_key_id == "new"


def test_a_key_that_is_missing_is_an_outage_and_no_refusal(tokens: RefreshTokens) -> None:
    with pytest.raises(SealBroken):
        tokens.derive(SESSION, 0, "gone")
    with pytest.raises(SealBroken):
        tokens.is_genuine(RefreshToken(SESSION, 0, MAC), "gone")


def test_refresh_tokens_have_a_sub_key_of_their_own() -> None:
    key = secrets.token_bytes(32)
    keyring = Keyring({"k": key})
    assert len({key, keyring.sub_key("k", "refresh"), keyring.sub_key("k", "seal")}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        f"{SESSION}.0",
        f"{SESSION}.0.{MAC}.",
        f".{SESSION}.0.{MAC}",
        f"{SESSION}.00.{MAC}",
        f"{SESSION}.01.{MAC}",
        f"{SESSION}.-1.{MAC}",
        f"{SESSION}.+1.{MAC}",
        f"{SESSION}.1_0.{MAC}",
        f"{SESSION}. 1.{MAC}",
        f"{SESSION}..{MAC}",
        f"{SESSION}.1e1.{MAC}",
        f"{SESSION}.٣.{MAC}",
        f"{SESSION}.1000000000.{MAC}",
        f"{SESSION}.{'9' * 5000}.{MAC}",
        f"{SESSION}.0.{MAC}=",
        f"{SESSION}.0.{MAC}\n",
        f"{SESSION}.0.{MAC[1:]}",
        f"{SESSION}.0.{MAC}A",
        f"{SESSION[1:]}.0.{MAC}",
        f"{SESSION}a.0.{MAC}",
        f"{SESSION[1:]}ü.0.{MAC}",
        f"{SESSION[1:]}\0.0.{MAC}",
        f"{SESSION[1:]}\ud800.0.{MAC}",
        f"{SESSION[1:]}+.0.{MAC}",
    ],
    ids=lambda text: ascii(text)[:60],
)
def test_a_token_has_one_shape(text: str) -> None:
    with pytest.raises(InvalidRefreshToken):
        parse_refresh_token(text)


def test_a_token_is_not_shown_when_printed(tokens: RefreshTokens) -> None:
    token = parse_refresh_token(tokens.derive(SESSION, 0, "new"))
    assert token.mac not in repr(token)


@pytest.fixture
def tokens() -> RefreshTokens:
    return RefreshTokens(Keyring({"new": secrets.token_bytes(32), "old": secrets.token_bytes(32)}))
