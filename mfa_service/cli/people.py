"""Bringing people along from another system, and giving them back."""

import csv
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from mfa_service.cli.group import confirm, find_host, mfa, open_services, operator, track, yes
from mfa_service.errors import MFAError
from mfa_service.services import Services
from mfa_service.services.people import BATCH, Newcomer, checked
from mfa_service.services.reports import as_ndjson


@dataclass
class _Count:
    """What became of the rows."""

    good: int = 0
    brought: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)


@mfa.command("import-users")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check every row, bring nobody.")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write each refused row's line and reason here, as NDJSON."
)
@yes
def import_users(file: Path, dry_run: bool, report: Path | None, yes: bool) -> None:
    """Bring accounts along: CSV with a heading, or one JSON object a line.

    Columns: username, email, password_hash (werkzeug, Django, passlib, bcrypt), and if there are any totp_secret
    (base32), roles (separated by spaces) and disabled (yes). A host app's users have its id in external_id, and no
    password_hash. Every row is checked first. A name that is there already is left alone, so a run that was killed is
    run again. Hashes are replaced at the next login; until then they take their own time.
    """
    count = _Count()
    with open_services() as services:
        track((len(batch) for batch in _batches(file, count)), "rows checked")
        _report(count, report)
        if dry_run or not count.good:
            sys.exit(1 if count.refused else 0)
        confirm(f"Bring {count.good} accounts, and leave {len(count.refused)} refused rows out?", yes=yes)
        track(_bring(services, file, count), "rows done", count.good)
    click.echo(f"{count.brought} accounts brought, {count.good - count.brought} were there already", err=True)
    sys.exit(1 if count.refused else 0)


@mfa.command("export-users")
@click.option("--with-secrets", is_flag=True, help="Password hashes and TOTP secrets too, in the clear.")
@yes
def export_users(with_secrets: bool, yes: bool) -> None:
    """Print every account as one JSON object a line, as `import-users` takes them with --with-secrets."""
    if with_secrets:
        confirm("Print password hashes and TOTP secrets of everybody in the clear?", yes=yes)
        confirm("Whoever reads them can sign in as anybody whose password they guess. Really?", yes=yes)
    with open_services() as services:
        services.people.record_export(operator().client, with_secrets=with_secrets)
        sys.stdout.writelines(as_ndjson(services.people.rows(with_secrets=with_secrets)))


def _bring(services: Services, file: Path, count: _Count) -> Iterator[int]:
    for batch in _batches(file, _Count()):
        count.brought += services.people.bring(batch, operator().client)
        yield len(batch)


def _batches(file: Path, count: _Count) -> Iterator[list[Newcomer]]:
    people = _people(file, count)
    while batch := list(itertools.islice(people, BATCH)):
        yield batch


def _people(file: Path, count: _Count) -> Iterator[Newcomer]:
    """Everybody in a file whose row does; the others are noted."""
    needs_id = find_host() is not None
    seen: set[tuple[str, str]] = set()
    for line, row in _rows(file):
        try:
            if row is None:
                raise ValueError("is not a JSON object")
            person = checked(row)
            if needs_id and person.external_id is None:
                raise ValueError("external_id is missing: the users are the app's own")
            if person.identity in seen:
                raise ValueError(f"{person.identity[0]} stands twice in the file")
        except (MFAError, ValueError) as refusal:
            reason = refusal.reasons if isinstance(refusal, MFAError) else str(refusal)
            count.refused.append({"line": line, "reason": reason})
            continue
        seen.add(person.identity)
        count.good += 1
        yield person


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if lines.read(1) != "{":
            lines.seek(0)
            reader = csv.DictReader(lines)
            yield from ((reader.line_num, row) for row in reader)
            return
        lines.seek(0)
        yield from ((number, _object(line)) for number, line in enumerate(lines, 1) if line.strip())


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _report(count: _Count, report: Path | None) -> None:
    lines = [json.dumps(refused) + "\n" for refused in count.refused]
    if report:
        report.write_text("".join(lines))
    for refused in count.refused[:10]:
        click.echo(f"line {refused['line']}: {refused['reason']}", err=True)
    if len(count.refused) > len(count.refused[:10]):
        click.echo(f"… and {len(count.refused) - 10} more: --report FILE has all of them", err=True)
    click.echo(f"{count.good} rows do, {len(count.refused)} are refused", err=True)
