"""The command group, and what its commands share: services, errors in one line, output for people and for scripts.

Exit codes: 0 done, 1 refused or something is wrong, 2 the command was typed wrongly.
"""

import getpass
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from flask.cli import ScriptInfo
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from mfa_service.config import Settings, from_environment
from mfa_service.errors import ConfigurationError, MFAError, SealBroken, Unavailable
from mfa_service.mount import Mount
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo
from mfa_service.services.database import engine_of_command
from mfa_service.services.unit_of_work import cause, hint
from mfa_service.web import EXTENSION


class Explained(click.Group):
    """A group whose commands say what went wrong in a line instead of a traceback, and exit with 1."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except (ConfigurationError, MFAError, SQLAlchemyError, OSError) as error:
            if not (problems := _problems(error)):
                raise  # a broken pipe, say: click knows what to do
            for problem in problems:
                click.echo(f"error: {problem}", err=True)
            sys.exit(1)


@click.group(cls=Explained, context_settings={"max_content_width": 110})
def mfa() -> None:
    """Set up, run and look after the multi-factor sign-in."""
    os.umask(0o077)  # whatever a command makes, keys or an SQLite file, is its owner's alone


def _problems(error: Exception) -> list[str]:
    if isinstance(error, ConfigurationError):
        return error.problems
    if isinstance(error, SealBroken):
        return ["a sealed value does not open: its key is missing, or it was changed; the audit log says whose"]
    if isinstance(error, Unavailable):
        return ["the database is locked, full, read-only or not migrated: see above, and `flask mfa doctor`"]
    if isinstance(error, MFAError):
        return [f"{error.message}: {error.reasons}" if error.reasons else error.message]
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}"] if error.filename else []
    return [_problem_of_database(error)] if isinstance(error, SQLAlchemyError) else []


def _problem_of_database(error: SQLAlchemyError) -> str:
    if hint(error):
        return f"the database says {cause(error)!r}{hint(error)}"
    return f"the database can't be reached ({cause(error)}); MFA_DATABASE_URL says where it is looked for"


def find_host() -> Mount | None:
    """The service as it is mounted in the host's app that `flask --app` names; None for the service of its own."""
    info = click.get_current_context().find_object(ScriptInfo)
    if info is None or not (info.app_import_path or Path("app.py").is_file()):
        return None
    mount: Mount | None = info.load_app().extensions.get(EXTENSION)
    return mount if mount and mount.is_embedded else None


def load_settings(*, needs_keys: bool = True) -> Settings:
    """The settings of the host's app, or of the environment."""
    mount = find_host()
    return mount.settings if mount else Settings.load(from_environment(os.environ), needs_keys=needs_keys)


@contextmanager
def open_services() -> Iterator[Services]:
    """The services of the host's app, or as the environment configures them; the keyring is the database's own."""
    if mount := find_host():
        mount.services.health.ensure_keyring()
        yield mount.services
        return
    settings = load_settings()
    services = Services(settings, engine_of_command(settings.database), time.time)
    try:
        services.health.ensure_keyring()
        yield services
    finally:
        services.close()


def operator(reason: str = "") -> By:
    """Who acts at this terminal."""
    name = "unknown"
    with suppress(KeyError, OSError):
        name = getpass.getuser()
    return By(ClientInfo(user_agent="flask mfa", actor=f"cli:{name}"[:64]), reason=reason)


def user_id_of(services: Services, user: str) -> str:
    """The id behind a username or an id. Raises a usage error if there is none."""
    found = services.directory.find_id(user)
    if found is None:
        raise click.ClickException(f"there is no user {user!r}")
    return found


class Moment(click.DateTime):
    """A time as it is typed, UTC unless it names its zone."""

    def __init__(self) -> None:
        forms = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S%z")
        super().__init__(("%Y-%m-%d", *forms))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time, in UTC."""
        time = super().convert(value, param, ctx)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


as_json = click.option("--json", "is_json", is_flag=True, help="One JSON document instead of a table.")


def _checked_reason(_context: click.Context, _option: click.Parameter, reason: str) -> str:
    if len(reason) > _LONGEST_REASON or not (reason.isprintable()):
        raise click.BadParameter(f"takes at most {_LONGEST_REASON} printable characters")
    return reason


_LONGEST_REASON = 256
why = click.option("--reason", default="", callback=_checked_reason, help="Stands in the audit log.")
needs_why = click.option("--reason", required=True, callback=_checked_reason, help="Stands in the audit log.")
yes = click.option("--yes", is_flag=True, help="Don't ask back.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what can't be undone; anything but yes ends the command with 1."""
    if not yes:
        click.confirm(question, abort=True)


def show(rows: Sequence[Mapping[str, Any]], *, is_json: bool) -> None:
    """Print rows: a table for people, one document for scripts."""
    if is_json:
        click.echo(json.dumps(rows, indent=2, default=_plain))
        return
    table = Table()
    for name in rows[0] if rows else ("nothing",):
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    _console().print(table)


def show_one(row: Mapping[str, Any], *, is_json: bool) -> None:
    """Print one thing: a member a line for people, one document for scripts."""
    if is_json:
        click.echo(json.dumps(row, indent=2, default=_plain))
        return
    table = Table(show_header=False)
    for name, value in row.items():
        table.add_row(name.replace("_", " "), _cell(value))
    _console().print(table)


def track(steps: Iterable[int], what: str, total: int | None = None) -> int:
    """Draw a bar while batches come in, on standard error; says how many and how fast at the end."""
    began, done = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        for step in steps:
            done += step
            bar.update(task, completed=done)
    seconds = max(time.monotonic() - began, 1e-6)
    click.echo(f"{what}: {done} in {seconds:.1f} s, {done / seconds:.0f}/s", err=True)
    return done


def _console() -> Console:
    # Piped into a file there is no width to keep to. What strangers wrote is shown, never read as markup.
    width = None if sys.stdout.isatty() else 240
    return Console(width=width, markup=False, emoji=False, highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
