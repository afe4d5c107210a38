"""Signing keys: which files are taken, which key signs, what is published."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mfa_service.crypto.signing import DatedKeys, SharedSecret, SigningKeys, file_name, new_key_pem, thumbprint
from mfa_service.errors import ConfigurationError


def test_the_newest_file_signs_and_all_of_them_verify(folder: Path) -> None:
    old, new = written(folder, "2024.pem"), written(folder, "2025.pem")
    keys = loaded(folder)
    assert keys.signer[0] == thumbprint(new.public_key())
    assert keys.signer[1].private_numbers() == new.private_numbers()
    for key in (old, new):
        found = keys.find(thumbprint(key.public_key()))
        assert found
        assert found.public_numbers() == key.public_key().public_numbers()


def test_a_key_that_is_taken_away_verifies_no_longer(folder: Path) -> None:
    old, _new = written(folder, "2024.pem"), written(folder, "2025.pem")
    (folder / "2024.pem").unlink()
    assert loaded(folder).find(thumbprint(old.public_key())) is None


def test_an_old_key_that_is_put_back_as_the_newest_file_signs_again(folder: Path) -> None:
    old, _new = written(folder, "2024.pem"), written(folder, "2025.pem")
    (folder / "2026.pem").write_bytes((folder / "2024.pem").read_bytes())
    keys = loaded(folder)
    assert keys.signer[0] == thumbprint(old.public_key())
    assert len(keys.public_jwks()["keys"]) == 2


def test_what_verifies_is_the_same_object_at_any_time(folder: Path) -> None:
    kid, keys = thumbprint(written(folder, "one.pem").public_key()), DatedKeys.load(folder)
    assert keys.as_of(0).find(kid) is keys.as_of(1).find(kid) is not None


@pytest.mark.parametrize(
    "kid",
    [None, "", 1, 1.5, True, [], ["kid"], {}, b"kid", "../../dev/null", "' UNION SELECT 'x", "|sleep 10", "k" * 10**6],
    ids=lambda kid: ascii(kid)[:20],
)
def test_a_kid_is_looked_up_and_nothing_else(folder: Path, kid: object) -> None:
    written(folder, "one.pem")
    assert loaded(folder).find(kid) is None


def test_a_kid_is_the_rfc_7638_thumbprint() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    numbers = key.public_numbers()
    x, y = (base64url(number.to_bytes(32)) for number in (numbers.x, numbers.y))
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    assert thumbprint(key) == base64url(hashlib.sha256(canonical.encode()).digest())


def test_what_is_published_is_public_and_says_what_it_is_for(folder: Path) -> None:
    keys = [written(folder, "2024.pem"), written(folder, "2025.pem")]
    published = loaded(folder).public_jwks()["keys"]
    assert [jwk["kid"] for jwk in published] == [thumbprint(key.public_key()) for key in keys]
    for jwk, key in zip(published, keys, strict=True):
        assert set(jwk) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
        assert (jwk["kty"], jwk["crv"], jwk["use"], jwk["alg"]) == ("EC", "P-256", "sig", "ES256")
        assert base64url(key.private_numbers().private_value.to_bytes(32)) not in json.dumps(published)


def test_a_folder_without_keys_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no signing key"):
        loaded(folder)


def test_files_that_are_no_unencrypted_p_256_keys_are_refused_all_at_once(folder: Path) -> None:
    written(folder, "good.pem")
    for name, content in wrong_files().items():
        (folder / f"{name}.pem").write_bytes(content)
    with pytest.raises(ConfigurationError) as refusal:
        loaded(folder)
    assert len(refusal.value.problems) == len(wrong_files())
    assert "good.pem" not in str(refusal.value)


def test_a_key_of_an_unheard_of_kind_is_refused_like_the_others(folder: Path) -> None:
    # PKCS 8 with the object identifier 1.2.3, which names no algorithm.
    (folder / "odd.pem").write_bytes(pem(bytes.fromhex("300e 020100 3004 06022a03 0403 616263")))
    with pytest.raises(ConfigurationError, match=r"odd\.pem"):
        loaded(folder)


def test_a_fresh_key_is_an_unencrypted_p_256_key_of_its_own() -> None:
    keys = [serialization.load_pem_private_key(new_key_pem(), password=None) for _ in range(2)]
    assert all(isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1" for key in keys)
    assert len({thumbprint(key.public_key()) for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)}) == 2


def test_file_names_sort_by_age() -> None:
    names = [file_name(now) for now in (0, 999_999_999, 1_700_000_000, 1_700_000_001, 20_000_000_000)]
    assert names == sorted(names)
    assert names[2] == "es256-20231114T221320Z.pem"


def test_a_shared_secret_publishes_nothing_and_belongs_to_tokens_without_a_kid() -> None:
    secret = SharedSecret("correct horse battery staple of 32 bytes")
    assert secret.public_jwks() == {"keys": []}
    assert secret.find(None) == b"correct horse battery staple of 32 bytes"
    assert [secret.find(kid) for kid in ("", "kid", 0, False, [])] == [None] * 5


def test_a_shared_secret_read_from_a_file_is_the_same_as_one_that_was_not() -> None:
    assert (
        SharedSecret("correct horse battery staple of 32 bytes\n").key
        == SharedSecret("correct horse battery staple of 32 bytes").key
    )


def test_neither_prints_its_key() -> None:
    assert "battery" not in repr(SharedSecret("correct horse battery staple of 32 bytes"))
    key = ec.generate_private_key(ec.SECP256R1())
    assert str(key.private_numbers().private_value) not in repr(SigningKeys([key]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / name).write_bytes(private_pem(key))
    return key


def private_pem(key: Any, encryption: Any = None) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption or serialization.NoEncryption()))


def wrong_files() -> dict[str, bytes]:
    p256 = ec.generate_private_key(ec.SECP256R1())
    public = p256.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "empty": b"",
        "garbage": b"changeme",
        "cut": private_pem(p256)[:100],
        "encrypted": private_pem(p256, serialization.BestAvailableEncryption(b"password")),
        "public": public,
        "p384": private_pem(ec.generate_private_key(ec.SECP384R1())),
        "k256": private_pem(ec.generate_private_key(ec.SECP256K1())),
        "rsa": private_pem(rsa.generate_private_key(65537, 2048)),
        "ed25519": private_pem(ed25519.Ed25519PrivateKey.generate()),
    }


def pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(der) + b"\n-----END PRIVATE KEY-----\n"


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def loaded(folder: Path) -> SigningKeys:
    """The keys of a folder, when all of them are active."""
    return DatedKeys.load(folder).as_of(10**11)
