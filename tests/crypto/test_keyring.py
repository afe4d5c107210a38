"""The keyring: keys by id, the first is active, and every purpose has a key of its own."""

import base64
import hmac
import json
from pathlib import Path

import pytest

from mfa_service.crypto.keyring import Keyring, new_keyring_text, newest_since, with_new_key, without_key
from mfa_service.errors import ConfigurationError

OLD = bytes(range(100, 132))
NEW = bytes.fromhex("c0ffee00112233445566778899aabbccddeeff102030405060708090a0b0d0e0")


def test_a_fresh_keyring_holds_one_key_under_a_name_of_its_own() -> None:
    first, second = Keyring.parse(new_keyring_text()), Keyring.parse(new_keyring_text())
    assert first.ids == (first.active_id,)
    assert first.active_id != second.active_id
    assert first.sub_key(first.active_id, "seal") != second.sub_key(second.active_id, "seal")


def test_the_first_key_is_active_and_the_others_stay_readable() -> None:
    keyring = Keyring.parse(text_of(("new", NEW), ("old", OLD)))
    assert keyring.active_id == "new"
    assert keyring.ids == ("new", "old")
    assert keyring.sub_key("old", "seal") == Keyring({"old": OLD}).sub_key("old", "seal")


def test_a_sub_key_is_hkdf_over_the_key_with_the_purpose_as_label() -> None:
    assert Keyring({"k": NEW}).sub_key("k", "seal") == hkdf(NEW, b"mfa_service/seal")


def test_each_purpose_and_each_key_has_another_sub_key_and_none_is_the_key_itself() -> None:
    keyring = Keyring({"new": NEW, "old": OLD})
    derived = {keyring.sub_key(name, purpose) for name in keyring.ids for purpose in ("seal", "refresh")}
    assert len(derived) == 4
    assert not derived & {NEW, OLD}


def test_an_unknown_id_has_no_key() -> None:
    with pytest.raises(KeyError):
        Keyring({"k": NEW}).sub_key("other", "seal")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        NEW[:31],
        NEW + b"x",
        b"A" * 32,
        bytes(32),
        b"changeme" * 4,
        b"changemechangemechangemechangem!",
        bytes(range(16)) * 2,
    ],
    ids=["none", "31 bytes", "33 bytes", "32 × A", "zeros", "changeme", "changeme!", "periodic"],
)
def test_a_key_that_is_not_32_random_bytes_is_refused_by_name_and_never_quoted(key: bytes) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Keyring.parse(text_of(("good", NEW), ("weak", key)))
    assert "'weak'" in str(refusal.value)
    assert "'good'" not in str(refusal.value)
    assert len(key) < 4 or base64.urlsafe_b64encode(key).decode().rstrip("=") not in str(refusal.value)


def test_a_keyring_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match="no key"):
        Keyring.parse('{"keys": []}')


def test_two_keys_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two keys of one id"):
        Keyring.parse(text_of(("k", NEW), ("k", OLD)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "changeme",
        "null",
        "[]",
        "{}",
        '{"keys": 1}',
        '{"keys": null}',
        '{"keys": ["k"]}',
        '{"keys": {"k": "v"}}',
        '{"keys": [{"id": "k"}]}',
        '{"keys": [{"key": "AAAA"}]}',
        '{"keys": [{"id": "k", "key": 1}]}',
        '{"keys": [{"id": 1, "key": "AAAA"}]}',
        '{"keys": [{"id": "k", "key": "A"}]}',
        '{"keys": [{"id": "k", "key": "ü"}]}',
    ],
)
def test_a_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="flask mfa init"):
        Keyring.parse(text)


@pytest.mark.parametrize("key_id", ["", "k" * 33, "a b", "../k", "k\n", "ключ"])
def test_an_id_is_a_short_plain_word(key_id: str) -> None:
    with pytest.raises(ConfigurationError):
        Keyring.parse(text_of((key_id, NEW)))


def test_a_keyring_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "keyring.json").write_text(text_of(("k", NEW)))
    assert Keyring.load(tmp_path / "keyring.json").ids == ("k",)


def test_a_file_that_is_no_text_is_refused_like_any_other_wrong_keyring(tmp_path: Path) -> None:
    (tmp_path / "keyring.json").write_bytes(b"\xff\xfe" + NEW)
    with pytest.raises(ConfigurationError):
        Keyring.load(tmp_path / "keyring.json")


def test_a_keyring_says_since_when_its_newest_key_is_used_if_anybody_knows() -> None:
    fresh = new_keyring_text()
    assert newest_since(fresh) is None
    rotated = with_new_key(fresh, active_from=1_700_000_000)
    assert newest_since(rotated) == 1_700_000_000
    assert newest_since(without_key(rotated, json.loads(fresh)["keys"][0]["id"])) == 1_700_000_000
    assert newest_since(json.dumps({"keys": [json.loads(fresh)["keys"][0] | {"activeFrom": "soon"}]})) is None


def test_a_keyring_does_not_print_its_keys() -> None:
    shown = repr(Keyring({"k": b"0123456789abcdef" + NEW[:16]}))
    assert "0123456789abcdef" not in shown


def text_of(*keys: tuple[str, bytes]) -> str:
    entries = [{"id": name, "key": base64.urlsafe_b64encode(key).decode().rstrip("=")} for name, key in keys]
    return json.dumps({"keys": entries})


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of SHA-256 and no salt."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")
