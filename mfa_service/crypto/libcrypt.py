"""bcrypt by the machine's own C library, where it has one: the same hashes in five sixths of the package's time.

That is libxcrypt, which Linux distributions check their own passwords with. Its `crypt_rn` (crypt(3)) keeps nothing
outside the memory that it is given, and ctypes lets go of the interpreter's lock meanwhile, so threads hash side by
side. Where it is missing, or does not know bcrypt, the package `bcrypt` hashes.
"""

import ctypes
from collections.abc import Callable, Iterable
from contextlib import suppress

import bcrypt

Hash = Callable[[bytes, bytes], bytes]

#: Its name where it stands in for glibc's older library, which had no bcrypt, and where it does not.
NAMES = ("libcrypt.so.1", "libcrypt.so.2")
#: bcrypt never read more; newer versions of the package refuse to be given more.
MAX_BYTES = 72
#: sizeof(struct crypt_data), in bytes: it is a part of the library's binary interface, and `crypt_rn` asks for it.
_ROOM = 32768
_PASSWORD = b"correct horse battery staple"
_HASH = b"$2b$04$kTYFYqwZCg1upKqjnHQt2.SZRHzRNg0kGOlVqQ1LjoqZadLxg4JGe"


def choose(names: Iterable[str] = NAMES, load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> Hash:
    """The first of these libraries that is there and hashes as bcrypt does, or the package's function."""
    for name in names:
        with suppress(OSError, AttributeError):
            crypt = _crypt_of(load(name))
            if crypt(_PASSWORD, _HASH) == _HASH:
                return _or_package(crypt)
    return bcrypt.hashpw


def _crypt_of(library: ctypes.CDLL) -> Callable[[bytes, bytes], bytes | None]:
    crypt_rn = library.crypt_rn
    crypt_rn.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    crypt_rn.restype = ctypes.c_char_p
    return lambda password, salt: crypt_rn(password, salt, ctypes.create_string_buffer(_ROOM), _ROOM)


def _or_package(crypt: Callable[[bytes, bytes], bytes | None]) -> Hash:
    def hashpw(password: bytes, salt: bytes) -> bytes:
        # To C a password ends at NUL, and at 72 bytes: the package knows what to do, or says what is wrong.
        is_fit = len(password) <= MAX_BYTES and b"\0" not in password
        return (crypt(password, salt) if is_fit else None) or bcrypt.hashpw(password, salt)

    return hashpw


#: Hash as `bcrypt.hashpw` does. `salt` is one that `bcrypt.gensalt` made, or a whole hash to compare with.
hashpw = choose()
