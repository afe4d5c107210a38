"""Seals: what a signature covers, which files are taken for keys, what is read as a seal."""

import hashlib
import json
import string
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mfa_service.crypto.chain import GENESIS, Seal, SealKeys, digest_of, key_id, new_seal_key_pem
from mfa_service.errors import ConfigurationError

AT = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
SEAL = Seal(
    number=2,
    kind="seal",
    first_id=11,
    last_id=20,
    count=10,
    events_digest="ab" * 32,
    previous="cd" * 32,
    sealed_at=AT,
)
#: Another value for each member of a seal.
ALTERED: dict[str, Any] = {
    "number": 3,
    "kind": "prune",
    "first_id": 10,
    "last_id": 21,
    "count": 9,
    "events_digest": "ab" * 31 + "ac",
    "previous": GENESIS,
    "sealed_at": AT + timedelta(microseconds=1),
    "key_id": "A" * 43,
    "signature": "A" * 86,
}
KEYS = SealKeys(key := Ed25519PrivateKey.generate(), [key.public_key()])


# ── signing ──────────────────────────────────────────────────────────────────────────────────────


def test_what_we_signed_is_genuine_and_names_the_key() -> None:
    signed = KEYS.sign(SEAL)
    assert KEYS.is_genuine(signed)
    assert list(KEYS.public) == [signed.key_id]
    assert replace(signed, key_id="", signature="") == SEAL


def test_every_member_has_another_value_here() -> None:
    assert set(ALTERED) == {field.name for field in fields(Seal)}
    assert all(getattr(SEAL, name) != value for name, value in ALTERED.items())


@pytest.mark.parametrize("member", ALTERED)
def test_a_seal_with_any_member_altered_is_not_genuine(member: str) -> None:
    assert not KEYS.is_genuine(replace(KEYS.sign(SEAL), **{member: ALTERED[member]}))


@pytest.mark.parametrize("member", ALTERED)
def test_a_seal_with_any_member_altered_is_named_otherwise_by_the_next(member: str) -> None:
    assert replace(KEYS.sign(SEAL), **{member: ALTERED[member]}).digest != KEYS.sign(SEAL).digest


def test_a_signature_has_one_spelling() -> None:
    signed = KEYS.sign(SEAL)
    alphabet = string.ascii_letters + string.digits + "-_"
    spellings = [signed.signature[:-1] + last for last in alphabet]
    spellings += [signed.signature + more for more in ("=", "==", "A", "!", "\n", " ")]
    assert [it for it in spellings if KEYS.is_genuine(replace(signed, signature=it))] == [signed.signature]


@pytest.mark.parametrize("signature", ["", "=", "é" * 86, "\ud800", "A" * 85, "A" * 87, "A" * 10**6])
def test_no_other_text_is_a_signature(signature: str) -> None:
    assert not KEYS.is_genuine(replace(KEYS.sign(SEAL), signature=signature))


def test_a_seal_without_a_signature_is_not_genuine() -> None:
    assert not KEYS.is_genuine(SEAL)
    assert not KEYS.is_genuine(replace(SEAL, key_id=next(iter(KEYS.public))))


def test_a_seal_by_a_foreign_key_is_not_genuine_under_any_name() -> None:
    foreign = Ed25519PrivateKey.generate()
    signed = SealKeys(foreign, []).sign(SEAL)
    assert not KEYS.is_genuine(signed)
    assert not KEYS.is_genuine(replace(signed, key_id=next(iter(KEYS.public))))


def test_a_signature_is_over_seals_and_nothing_else() -> None:
    assert SEAL.statement().startswith(b"mfa_service/seal/1\n")


def test_the_zone_that_a_time_is_written_in_makes_no_difference() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert replace(SEAL, sealed_at=elsewhere).statement() == SEAL.statement()


# ── shipping ─────────────────────────────────────────────────────────────────────────────────────


def test_a_seal_is_one_line_of_json_and_comes_back_from_it() -> None:
    signed = KEYS.sign(SEAL)
    line = signed.as_json()
    assert "\n" not in line
    assert json.loads(line) == signed.as_members()
    assert Seal.from_json(line) == signed
    assert Seal.from_json(line + "\n").digest == signed.digest
    assert KEYS.is_genuine(Seal.from_json(line))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "seal",
        "null",
        "1",
        "[]",
        "[1]",
        '"seal"',
        "{}",
        "{",
        '{"sealed_at":"2026-01-01T00:00:00+00:00"}',
        "\0",
    ],
)
def test_anything_else_is_not_a_seal(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Seal.from_json(line)


def test_json_without_a_bottom_is_not_a_seal() -> None:
    with pytest.raises(ValueError, match=r".+"):
        Seal.from_json("[" * 100_000)


@pytest.mark.parametrize("member", sorted(set(ALTERED) - {"key_id", "signature"}))
def test_a_member_that_is_missing_is_missed(member: str) -> None:
    members = KEYS.sign(SEAL).as_members()
    del members[member]
    with pytest.raises(ValueError, match="not a seal"):
        Seal.from_json(json.dumps(members))


def test_a_member_too_many_is_one_too_many() -> None:
    with pytest.raises(ValueError, match="not a seal"):
        Seal.from_json(json.dumps(KEYS.sign(SEAL).as_members() | {"note": "x"}))


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "", "x", [], {}, [1], 10**30, "0001-01-01T00:00:00+14:00"], ids=repr
)
@pytest.mark.parametrize("member", ALTERED)
def test_a_member_of_another_kind_makes_it_no_seal_or_not_genuine(member: str, value: object) -> None:
    line = json.dumps(KEYS.sign(SEAL).as_members() | {member: value})
    assert not is_taken(line)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_key_signs_and_verifies(tmp_path: Path) -> None:
    (tmp_path / "one.pem").write_bytes(new_seal_key_pem())
    keys = SealKeys.load(tmp_path)
    assert keys.can_sign
    assert keys.is_genuine(keys.sign(SEAL))


def test_the_last_private_key_by_name_signs_and_all_of_them_verify(tmp_path: Path) -> None:
    old, new = written(tmp_path, "2024.pem"), written(tmp_path, "2025.pem")
    written(tmp_path, "2026.pem", public_only=True)
    keys = SealKeys.load(tmp_path)
    assert keys.sign(SEAL).key_id == key_id(new.public_key())
    assert keys.is_genuine(SealKeys(old, []).sign(SEAL))
    assert len(keys.public) == 3


def test_the_public_part_of_a_key_that_was_replaced_still_verifies(tmp_path: Path) -> None:
    old = written(tmp_path, "2024.pem", public_only=True)
    written(tmp_path, "2025.pem")
    signed = SealKeys(old, []).sign(SEAL)
    assert SealKeys.load(tmp_path).is_genuine(signed)
    (tmp_path / "2024.pem").unlink()
    assert not SealKeys.load(tmp_path).is_genuine(signed)


def test_public_keys_alone_verify_and_do_not_sign(tmp_path: Path) -> None:
    key = written(tmp_path, "one.pem", public_only=True)
    keys = SealKeys.load(tmp_path)
    assert not keys.can_sign
    assert keys.is_genuine(SealKeys(key, []).sign(SEAL))
    with pytest.raises(ConfigurationError, match="there is no seal key"):
        keys.sign(SEAL)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_keys_makes_no_seals_and_believes_none(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    keys = SealKeys.load(folder)
    assert (keys.can_sign, keys.public) == (False, {})
    assert not keys.is_genuine(KEYS.sign(SEAL))


def test_what_is_no_ed25519_key_is_named_all_at_once(tmp_path: Path) -> None:
    p256 = ec.generate_private_key(ec.SECP256R1())
    own = Ed25519PrivateKey.generate()
    bad = {
        "p256": pem_of(p256),
        "p256-public": public_pem_of(p256.public_key()),
        "garbage": b"\x00\xff garbage",
        "empty": b"",
        "encrypted": pem_of(own, serialization.BestAvailableEncryption(b"secret")),
        "cut": pem_of(own)[:-40],
    }
    for name, pem in bad.items():
        (tmp_path / f"{name}.pem").write_bytes(pem)
    written(tmp_path, "good.pem")
    with pytest.raises(ConfigurationError) as refused:
        SealKeys.load(tmp_path)
    expected = {f"{tmp_path / name}.pem is not an unencrypted Ed25519 key" for name in bad}
    assert set(refused.value.problems) == expected


def test_other_files_in_the_folder_are_nobodys_business(tmp_path: Path) -> None:
    written(tmp_path, "one.pem")
    (tmp_path / "README").write_text("keys")
    (tmp_path / "one.pem.bak").write_text("x")
    assert len(SealKeys.load(tmp_path).public) == 1


def test_what_is_published_is_public(tmp_path: Path) -> None:
    key = written(tmp_path, "one.pem")
    name = key_id(key.public_key())
    assert SealKeys.load(tmp_path).public_jwks() == [{"kty": "OKP", "crv": "Ed25519", "x": name, "kid": name}]
    assert len(name) == 43


# ── digests of events ────────────────────────────────────────────────────────────────────────────


def test_the_digest_of_nothing_is_that_of_nothing() -> None:
    assert digest_of([]) == (hashlib.sha256(b"").hexdigest(), 0)


def test_the_digest_is_over_canonical_lines() -> None:
    lines = b'{"a":"\\u00e9","b":1}\n{"a":null,"b":[]}\n'
    assert digest_of([{"b": 1, "a": "é"}, {"a": None, "b": []}]) == (hashlib.sha256(lines).hexdigest(), 2)


def test_order_number_and_cut_of_events_show() -> None:
    one, two = {"id": 1, "event": "x"}, {"id": 2, "event": "x"}
    series = [[one, two], [two, one], [one], [two], [one, one, two], [{"id": 1, "event": 'x"}\n{"id":2'}]]
    assert len({digest_of(events)[0] for events in series}) == len(series)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def is_taken(line: str) -> bool:
    try:
        return KEYS.is_genuine(Seal.from_json(line))
    except ValueError:
        return False


def pem_of(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    shape = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(*shape, encryption or serialization.NoEncryption())


def public_pem_of(key: Ed25519PublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def written(folder: Path, name: str, *, public_only: bool = False) -> Ed25519PrivateKey:
    """A new key, and its file."""
    key = Ed25519PrivateKey.generate()
    (folder / name).write_bytes(public_pem_of(key.public_key()) if public_only else pem_of(key))
    return key
