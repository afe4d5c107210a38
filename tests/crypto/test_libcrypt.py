"""Who hashes: the machine's library where it has one that knows bcrypt, else the package; nobody can tell."""

import ctypes
import string
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfa_service.crypto import libcrypt
from mfa_service.crypto.libcrypt import choose

PASSWORDS = st.text(string.printable, max_size=72).map(str.encode)


@settings(max_examples=50, deadline=None)
@given(PASSWORDS, st.integers(4, 6))
def test_both_hash_alike(password: bytes, cost: int) -> None:
    salt = bcrypt.gensalt(cost)
    hashed = libcrypt.hashpw(password, salt)
    assert hashed == bcrypt.hashpw(password, salt)
    assert libcrypt.hashpw(password, hashed) == hashed


def test_the_machines_library_hashes_where_there_is_one() -> None:
    assert (libcrypt.hashpw is bcrypt.hashpw) is not any(has_crypt_rn(name) for name in libcrypt.NAMES)


def has_crypt_rn(name: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(name), "crypt_rn")
    except OSError:
        return False


def test_the_package_hashes_where_there_is_none() -> None:
    assert choose(["libcrypt.so.0"]) is bcrypt.hashpw


def test_the_package_hashes_where_the_library_lacks_the_function() -> None:
    assert choose(["libm.so.6"], ctypes.CDLL) is bcrypt.hashpw


@pytest.mark.parametrize("answer", [None, b"*0", b"$2b$04$", b"\xff"])
def test_the_package_hashes_where_the_library_hashes_otherwise(answer: bytes | None) -> None:
    library: Any = SimpleNamespace(crypt_rn=lambda *_: answer)
    assert choose(["odd"], lambda _: library) is bcrypt.hashpw


def test_the_next_name_is_tried_where_the_first_is_no_use() -> None:
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        if name == "missing":
            raise OSError
        return SimpleNamespace(crypt_rn=lambda password, salt, *_: bcrypt.hashpw(password, salt) + b"\n")

    assert choose(["missing", "odd", "last"], load) is bcrypt.hashpw
    assert asked == ["missing", "odd", "last"]


@pytest.mark.parametrize("hashpw", [libcrypt.hashpw, bcrypt.hashpw])
def test_what_the_library_can_not_do_is_done_or_refused_by_the_package(hashpw: libcrypt.Hash) -> None:
    salt = bcrypt.gensalt(4)
    assert hashpw(b"a\0b", salt) not in (hashpw(b"a", salt), hashpw(b"a\0c", salt))
    with pytest.raises(ValueError, match="72 bytes"):
        hashpw(b"a" * 73, salt)
    with pytest.raises(ValueError, match="salt"):
        hashpw(b"a secret", b"$2b$04$too short")


def test_threads_hash_side_by_side_and_take_nothing_from_each_other() -> None:
    passwords = [f"secret {number}".encode() for number in range(40)]
    salt = bcrypt.gensalt(5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda password: libcrypt.hashpw(password, salt), passwords))
    assert found == [bcrypt.hashpw(password, salt) for password in passwords]


def test_others_run_while_one_hashes() -> None:
    hashing = threading.Thread(target=libcrypt.hashpw, args=(b"a secret", bcrypt.gensalt(12)))
    hashing.start()
    turns = 0
    while hashing.is_alive():
        time.sleep(0.001)  # takes the interpreter's lock anew each time
        turns += 1
    assert turns > 5
