"""Reports as text, line by line, so that none is ever held whole."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mfa_service.services.directory import Row

_COLUMNS = ("id", "username", "email", "roles", "mfa", "standing", "deadline", "last_seen_at")
#: A cell that begins with one of these is a formula to a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Iterable[Row]) -> Iterator[str]:
    """The compliance report (RFC 4180), with a heading."""
    yield _line(_COLUMNS)
    for row in rows:
        deadline = row.deadline.isoformat() if row.deadline else ""
        # The id is left alone: it has to match, and what is random is no formula of anybody's.
        named = map(_tamed, (row.username, row.email, " ".join(row.roles)))
        yield _line((row.user_id, *named, row.factor, row.standing, deadline, row.seen_at.isoformat()))


def as_ndjson(objects: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One JSON object a line."""
    for each in objects:
        yield json.dumps(each, separators=(",", ":")) + "\n"


def _tamed(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()
