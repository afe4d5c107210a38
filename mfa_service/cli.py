"""`flask mfa …`: what an operator does from a terminal. The commands need no running app, and most no keys."""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from mfa_service import doctor
from mfa_service.config import Settings, from_environment
from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.crypto.signing import file_name, new_key_pem
from mfa_service.errors import ConfigurationError, Unavailable
from mfa_service.services import Services, database, schema
from mfa_service.services.unit_of_work import cause

P = ParamSpec("P")


@click.group()
def mfa() -> None:
    """Set up and look after the multi-factor sign-in."""
    os.umask(0o077)  # whatever a command makes, keys or an SQLite file, is its owner's alone


def _explained(command: Callable[P, None]) -> Callable[P, None]:
    """Print what is wrong with the configuration instead of a traceback, and exit with 1."""

    @wraps(command)
    def explained(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ConfigurationError as error:
            problems = error.problems
        except Unavailable:
            problems = ["the database is out of order, or not migrated: see above, and `flask mfa doctor`"]
        except SQLAlchemyError as error:
            problems = [f"the database can't be reached ({cause(error)}); MFA_DATABASE_URL says where it is looked for"]
        else:
            return
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(1)

    return explained


@mfa.command()
@_explained
def init() -> None:
    """Make the keyring and a signing key in the instance folder; what exists is left alone."""
    settings = Settings.load(from_environment(os.environ), needs_keys=False)
    if not settings.keys:
        _create(settings.keyring_file, new_keyring_text().encode())
    if not settings.jwt_secret:
        made_before = sorted(settings.signing_folder.glob("*.pem"))
        _create(made_before[-1] if made_before else settings.signing_folder / file_name(time.time()), new_key_pem())


@mfa.command()
@_explained
def upgrade() -> None:
    """Bring the database to the newest schema."""
    engine = _engine()
    schema.upgrade(engine)
    click.echo(f"database is at revision {schema.find_current(engine)}")


@mfa.command()
@_explained
def prune() -> None:
    """Remove challenges, sessions, devices and counters that have ended; safe beside traffic."""
    settings = Settings.load(from_environment(os.environ))
    services = Services(settings, create_engine(settings.database), time.time)
    for name, count in services.housekeeping.prune().items():
        click.echo(f"{count:8} {name}")
    services.close()


@mfa.command(name="doctor")
@_explained
def doctor_command() -> None:
    """Check configuration, keys, database and limiter; exit with 1 if something would go wrong."""
    findings = doctor.examine(from_environment(os.environ))
    for finding in findings:
        click.secho(f"{finding.level:7}", fg=doctor.COLOURS[finding.level], nl=False)
        click.echo(f" {finding.subject}: {finding.text}")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def _engine() -> Engine:
    settings = Settings.load(from_environment(os.environ), needs_keys=False)
    return database.engine_for(create_engine(settings.database))


def _create(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, unless there is one already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        click.echo(f"kept  {path}")
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    click.echo(f"wrote {path}")
