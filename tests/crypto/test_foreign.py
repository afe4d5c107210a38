"""Hashes that other systems made: each kind is recognised, the right password passes, and nothing else does."""

import base64
import hashlib

import bcrypt
import pytest
from passlib.hash import argon2, bcrypt_sha256, pbkdf2_sha256, pbkdf2_sha512, sha256_crypt, sha512_crypt
from werkzeug.security import generate_password_hash

from mfa_service.crypto import foreign
from mfa_service.crypto.passwords import UnknownHash, needs_rehash, verify_password

PASSWORD = "Fräulein-analytical-1843"


def django_pbkdf2(name: str = "sha256") -> str:
    made = hashlib.pbkdf2_hmac(name, PASSWORD.encode(), b"salt", 1000)
    return f"pbkdf2_{name}$1000$salt${base64.b64encode(made).decode()}"


def plain_bcrypt(secret: str = PASSWORD, prefix: str = "2b") -> str:
    return bcrypt.hashpw(secret.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${prefix}$", 1)


HASHES = {
    "werkzeug scrypt": generate_password_hash(PASSWORD, "scrypt:1024:8:1"),
    "werkzeug pbkdf2": generate_password_hash(PASSWORD, "pbkdf2:sha256:1000"),
    "django pbkdf2": django_pbkdf2(),
    "django pbkdf2 sha1": django_pbkdf2("sha1"),
    "django bcrypt": f"bcrypt${plain_bcrypt()}",
    "django bcrypt_sha256": f"bcrypt_sha256${plain_bcrypt(hashlib.sha256(PASSWORD.encode()).hexdigest())}",
    "django argon2": "argon2" + argon2.using(rounds=1, memory_cost=64, parallelism=1).hash(PASSWORD),
    "bcrypt": plain_bcrypt(),
    "bcrypt of PHP": plain_bcrypt(prefix="2y"),
    "argon2": argon2.using(rounds=1, memory_cost=64, parallelism=1).hash(PASSWORD),
    "sha256_crypt": sha256_crypt.using(rounds=1000).hash(PASSWORD),
    "sha512_crypt": sha512_crypt.using(rounds=1000).hash(PASSWORD),
    "pbkdf2_sha256": pbkdf2_sha256.using(rounds=10).hash(PASSWORD),
    "pbkdf2_sha512": pbkdf2_sha512.using(rounds=10).hash(PASSWORD),
    "bcrypt_sha256": bcrypt_sha256.using(rounds=4).hash(PASSWORD),
}


@pytest.mark.parametrize("kind", HASHES)
def test_the_right_password_passes_and_no_other(kind: str) -> None:
    stored = HASHES[kind]
    assert foreign.is_known(stored)
    assert verify_password(PASSWORD, stored, 4)
    for wrong in ("", PASSWORD[:-1], PASSWORD.lower(), f"{PASSWORD} ", stored):
        assert not verify_password(wrong, stored, 4)
    assert needs_rehash(stored, 4)


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
@pytest.mark.parametrize("secret", ["ÿ", "été ÿÿÿÿ", "日本語" * 8, "a" * 71 + "é", "nul\0tail"])
def test_whatever_letter_bcrypt_was_written_with_it_reads_72_bytes(prefix: str, secret: str) -> None:
    read = secret.encode()[:72]
    stored = bcrypt.hashpw(read, bcrypt.gensalt(4)).decode().replace("$2b$", f"${prefix}$", 1)
    assert verify_password(secret, stored, 4)
    assert verify_password(secret + "more", stored, 4) is (len(read) == 72)
    assert not verify_password("b" + secret, stored, 4)


@pytest.mark.parametrize("kind", HASHES)
def test_a_hash_that_is_cut_or_changed_lets_nobody_in(kind: str) -> None:
    stored = HASHES[kind]
    for broken in (stored[:-3], stored[: len(stored) // 2], stored[:-4] + "....", stored.replace("$", "", 1)):
        assert not lets_in(broken)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "x",
        PASSWORD,
        "$1$salt$qJH7.N4xYta3aEG/dfqo/0",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "md5$salt$abc",
        "!",
        "plain:x",
    ],
)
def test_what_is_too_weak_or_no_hash_is_not_taken(stored: str) -> None:
    assert not foreign.is_known(stored)
    with pytest.raises(UnknownHash):
        verify_password(PASSWORD, stored, 4)


@pytest.mark.parametrize("kind", HASHES)
def test_a_damaged_hash_is_said_to_be_none_and_not_that_the_password_is_wrong(kind: str) -> None:
    whole = HASHES[kind]
    cut = [whole[: whole.rindex("$")], whole[: whole.rindex("$") + 1], whole[:-1] + "!"]
    # Argon2's hashes may be of any length: one that is cut is another one.
    cut += [] if "argon2" in kind else [whole[:-3], whole + "x"]
    for damaged in cut:
        ensure_none(damaged)


@pytest.mark.parametrize(
    "stored",
    [
        "argon2",
        "argon2$",
        "argon2$argon2id$",
        "bcrypt$",
        "bcrypt$$2b$04$cut",
        "bcrypt_sha256$$2b$99$" + "." * 53,
        "bcrypt_sha256$" + HASHES["sha256_crypt"],
        "pbkdf2_sha1$1000$salt$" + django_pbkdf2().rpartition("$")[2],
        "pbkdf2_sha256$0$salt$" + django_pbkdf2().rpartition("$")[2],
        "pbkdf2_sha256$1000$$" + django_pbkdf2().rpartition("$")[2],
        "pbkdf2_sha512$1000$salt$" + django_pbkdf2().rpartition("$")[2],
        "$2b$03$" + "." * 53,
        "$2b$32$" + "." * 53,
        "$2b$04$" + "a" * 53,
        "scrypt:1024:8$salt$" + "0" * 128,
        "pbkdf2:sha256:0$salt$" + "0" * 64,
        "pbkdf2:sha256:1000$salt$" + "0" * 40,
    ],
    ids=lambda stored: stored[:20],  # a salt is another one in each process
)
def test_nor_is_what_only_begins_like_one(stored: str) -> None:
    ensure_none(stored)


def ensure_none(stored: str) -> None:
    assert not foreign.is_known(stored), stored
    for verify in (foreign.verify, lambda password, stored: verify_password(password, stored, 4)):
        with pytest.raises(ValueError, match=r".") as refusal:
            verify(PASSWORD, stored)
        assert isinstance(refusal.value, UnknownHash) or verify is foreign.verify


def lets_in(stored: str) -> bool:
    try:
        return foreign.verify(PASSWORD, stored)
    except ValueError:
        return False


def test_bcrypt_reads_72_bytes_of_a_foreign_password_as_its_maker_did() -> None:
    stored = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert verify_password("x" * 80, stored, 4)
    assert not verify_password("x" * 71, stored, 4)
