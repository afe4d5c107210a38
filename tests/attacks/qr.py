"""What a QR code says, from its PNG: for pictures as they were made, dark on light and without a flaw, to version 20.

Nothing is corrected: a module that is wrong is an answer that is wrong, and a case says so.
"""

import base64
import zlib
from collections.abc import Callable, Iterator

Modules = list[list[bool]]

#: By level (L, M, Q, H): codewords for correction in each block, and blocks; by version, from 1.
_CORRECTION = {
    0b01: (7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28),
    0b00: (10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26),
    0b11: (13, 22, 18, 26, 18, 24, 18, 22, 20, 24, 28, 26, 24, 20, 30, 24, 28, 28, 26, 30),
    0b10: (17, 28, 22, 16, 22, 28, 26, 26, 24, 28, 24, 28, 22, 24, 24, 30, 28, 28, 26, 28),
}
_BLOCKS = {
    0b01: (1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8),
    0b00: (1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16),
    0b11: (1, 1, 2, 2, 4, 4, 6, 6, 8, 8, 8, 10, 12, 16, 12, 17, 16, 18, 21, 20),
    0b10: (1, 1, 2, 4, 4, 4, 5, 6, 8, 8, 11, 11, 16, 16, 18, 16, 19, 21, 25, 25),
}
_MASKS: tuple[Callable[[int, int], int], ...] = (
    lambda x, y: (x + y) % 2,
    lambda x, y: y % 2,
    lambda x, y: x % 3,
    lambda x, y: (x + y) % 3,
    lambda x, y: (x // 3 + y // 2) % 2,
    lambda x, y: x * y % 2 + x * y % 3,
    lambda x, y: (x * y % 2 + x * y % 3) % 2,
    lambda x, y: ((x + y) % 2 + x * y % 3) % 2,
)


def read(data_uri: str) -> str:
    """The text in a picture."""
    head, _, content = data_uri.partition(",")
    assert head == "data:image/png;base64", head
    modules = _modules(_pixels(base64.b64decode(content, validate=True)))
    version = (len(modules) - 17) // 4
    form = sum(modules[y][x] << bit for bit, (x, y) in enumerate(_format_places())) ^ 0x5412
    level, mask = form >> 13, form >> 10 & 7
    data = _in_order(_codewords(modules, version, mask), level, version)
    bits = "".join(f"{each:08b}" for each in data)
    assert bits.startswith("0100"), "not in bytes"
    start = 12 if version < 10 else 20
    length = int(bits[4:start], 2)
    return bytes(int(bits[at : at + 8], 2) for at in range(start, start + 8 * length, 8)).decode()


def _pixels(png: bytes) -> Modules:
    """Dark or not, of a PNG with one bit for a pixel."""
    said, packed = _chunks(png, b"IHDR"), _chunks(png, b"IDAT")
    width, depth = int.from_bytes(said[:4], "big"), said[8]
    assert (depth, said[9]) == (1, 0), "not black and white"
    raw, line = zlib.decompress(packed), (width + 7) // 8
    rows = [bytes(line)]
    for start in range(0, len(raw), line + 1):
        kind, row = raw[start], raw[start + 1 : start + 1 + line]
        assert kind in (0, 2), "neither as it is nor as a difference to the row above"
        rows.append(bytes((new + above) % 256 for new, above in zip(row, rows[-1], strict=True)) if kind else row)
    return [[not row[x // 8] >> (7 - x % 8) & 1 for x in range(width)] for row in rows[1:]]


def _chunks(png: bytes, kind: bytes) -> bytes:
    at, found = 8, b""
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        found += png[at + 8 : at + 8 + size] if png[at + 4 : at + 8] == kind else b""
        at += 12 + size
    return found


def _modules(pixels: Modules) -> Modules:
    """One value for each module, without the margin."""
    margin = next(y for y, row in enumerate(pixels) if any(row))
    scale = pixels[margin][margin:].index(False) // 7
    inner = range(margin + scale // 2, len(pixels) - margin, scale)
    return [[pixels[y][x] for x in inner] for y in inner]


def _format_places() -> list[tuple[int, int]]:
    """Where level and mask are said, the last bit first."""
    return [*((8, y) for y in (0, 1, 2, 3, 4, 5, 7, 8)), (7, 8), *((x, 8) for x in (5, 4, 3, 2, 1, 0))]


def _is_taken(x: int, y: int, size: int, version: int) -> bool:
    """Whether a module is none of the text: patterns to find and to align by, and what is said of the code."""
    if (x < 9 and (y < 9 or y >= size - 8)) or (x >= size - 8 and y < 9) or 6 in (x, y):
        return True
    if version >= 7 and min(x, y) < 6 and max(x, y) >= size - 11:
        return True
    places, corner = _alignments(version), {6, size - 7}
    near = [(cx, cy) for cx in places for cy in places if abs(x - cx) <= 2 and abs(y - cy) <= 2]
    return any(not ({cx, cy} <= corner and (cx, cy) != (size - 7, size - 7)) for cx, cy in near)


def _alignments(version: int) -> list[int]:
    if version == 1:
        return []
    number = version // 7 + 2
    step = (version * 8 + number * 3 + 5) // (number * 4 - 4) * 2
    return [6, *(version * 4 + 10 - back * step for back in range(number - 1))]


def _codewords(modules: Modules, version: int, mask: int) -> bytes:
    size = len(modules)
    bits = [modules[y][x] ^ (_MASKS[mask](x, y) == 0) for x, y in _walk(size) if not _is_taken(x, y, size, version)]
    text = "".join("01"[bit] for bit in bits)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text) // 8 * 8, 8))


def _walk(size: int) -> Iterator[tuple[int, int]]:
    """Up and down in columns of two, from the right; the upright line of dots is no column."""
    for right in (column - (column <= 6) for column in range(size - 1, 0, -2)):
        for step in range(size):
            y = size - 1 - step if (right + 1) & 2 == 0 else step
            yield from ((right, y), (right - 1, y))


def _in_order(codewords: bytes, level: int, version: int) -> bytes:
    """The codewords of the text: those of the blocks are dealt out like cards, the longer blocks last."""
    blocks, correction = _BLOCKS[level][version - 1], _CORRECTION[level][version - 1]
    short, longer = divmod(len(codewords), blocks)
    lengths = [short - correction + (index >= blocks - longer) for index in range(blocks)]
    dealt: list[list[int]] = [[] for _ in range(blocks)]
    following = iter(codewords)
    for turn in range(max(lengths)):
        for index in range(blocks):
            if turn < lengths[index]:
                dealt[index].append(next(following))
    return bytes(each for block in dealt for each in block)
