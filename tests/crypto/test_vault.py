"""Sealed values open for the place and the key they were sealed for, and for nothing else."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.vault import Vault
from mfa_service.errors import SealBroken

OLD = bytes(range(100, 132))
NEW = bytes.fromhex("c0ffee00112233445566778899aabbccddeeff102030405060708090a0b0d0e0")
SECRET = b"JBSWY3DPEHPK3PXP"
PLACE = "mfa_secrets.sealed_secret:ada"


def test_what_was_sealed_opens_again() -> None:
    assert vault().open(vault().seal(SECRET, PLACE), PLACE) == SECRET


def test_sealing_twice_gives_two_envelopes_and_neither_shows_the_value() -> None:
    envelopes = {vault().seal(SECRET, PLACE) for _ in range(100)}
    assert len(envelopes) == 100
    assert not any(SECRET in envelope for envelope in envelopes)
    assert len({envelope[5:17] for envelope in envelopes}) == 100


def test_the_envelope_is_version_key_id_nonce_and_aes_256_gcm_over_header_and_place() -> None:
    envelope = vault().seal(SECRET, PLACE)
    header, nonce, sealed = envelope[:5], envelope[5:17], envelope[17:]
    assert header == b"\x01\x03new"
    cipher = AESGCM(Keyring({"new": NEW}).sub_key("new", "seal"))
    assert cipher.decrypt(nonce, sealed, header + PLACE.encode()) == SECRET


@pytest.mark.parametrize(
    "other", ["mfa_secrets.sealed_secret:bob", "mfa_users.sealed_password:ada", "mfa_secrets.sealed_secret:ad", ""]
)
def test_a_value_pasted_into_another_place_does_not_open(other: str) -> None:
    with pytest.raises(SealBroken):
        vault().open(vault().seal(SECRET, PLACE), other)


def test_no_bit_of_an_envelope_can_be_flipped() -> None:
    envelope = vault().seal(SECRET, PLACE)
    for bit in range(len(envelope) * 8):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            vault().open(bytes(changed), PLACE)


def test_nothing_can_be_cut_off_or_added() -> None:
    envelope = vault().seal(SECRET, PLACE)
    for end in range(len(envelope)):
        with pytest.raises(SealBroken):
            vault().open(envelope[:end], PLACE)
    with pytest.raises(SealBroken):
        vault().open(envelope + b"\0", PLACE)


@pytest.mark.parametrize("value", [b"", SECRET, b"\x01", b"\x01\x03new", b"\x00" + SECRET, b"\x01\xff" + SECRET])
def test_a_value_that_was_never_sealed_does_not_open(value: bytes) -> None:
    with pytest.raises(SealBroken):
        vault().open(value, PLACE)


@given(st.binary(max_size=80))
def test_no_bytes_crash_it(value: bytes) -> None:
    with pytest.raises(SealBroken):
        vault().open(value, PLACE)


def test_an_unknown_key_id_is_a_broken_seal() -> None:
    with pytest.raises(SealBroken):
        vault(other=OLD).open(vault().seal(SECRET, PLACE), PLACE)


def test_the_key_id_can_not_be_changed_to_another_that_is_loaded() -> None:
    envelope = vault(new=NEW, old=NEW).seal(SECRET, PLACE)
    with pytest.raises(SealBroken):
        vault(new=NEW, old=NEW).open(envelope.replace(b"new", b"old", 1), PLACE)


def test_after_a_rotation_old_values_open_and_are_known_as_stale() -> None:
    before, after = vault(old=OLD), vault(new=NEW, old=OLD)
    envelope = before.seal(SECRET, PLACE)
    assert not before.is_stale(envelope)
    assert after.is_stale(envelope)
    assert after.open(envelope, PLACE) == SECRET
    assert not after.is_stale(after.seal(SECRET, PLACE))


def test_a_keyring_that_is_read_anew_meanwhile_makes_nothing_stale() -> None:
    class ReadAnew(Keyring):
        """Its key was taken out after it was asked which one is active."""

        @property
        def ids(self) -> tuple[str, ...]:
            return ("newer", "old")

    assert not Vault(ReadAnew({"new": NEW})).is_stale(vault(old=OLD).seal(SECRET, PLACE))


def test_a_vault_does_not_print_its_keys() -> None:
    readable = b"0123456789abcdef" + NEW[:16]
    assert "0123456789abcdef" not in repr(vars(vault(k=readable)))


def vault(**keys: bytes) -> Vault:
    return Vault(Keyring(keys or {"new": NEW}))
