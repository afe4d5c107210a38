"""Setting up: keys, schema, the first administrator; and whether all is well."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from sqlalchemy import Engine

from mfa_service import doctor
from mfa_service.cli.group import find_host, load_settings, mfa, open_services, operator
from mfa_service.config import Settings, from_environment
from mfa_service.crypto import qr
from mfa_service.crypto.chain import new_seal_key_pem
from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.crypto.signing import file_name, new_key_pem
from mfa_service.services import database, schema
from mfa_service.services.roles import ADMIN


@mfa.command()
def init() -> None:
    """Make the keyring, a signing key and a seal key in the instance folder; what exists is left alone."""
    settings = Settings.load(from_environment(os.environ), needs_keys=False)
    if not settings.keys:
        create(settings.keyring_file, new_keyring_text().encode())
    if not settings.jwt_secret:
        made_before = sorted(settings.signing_folder.glob("*.pem"))
        create(made_before[-1] if made_before else settings.signing_folder / file_name(time.time()), new_key_pem())
    sealing = sorted(settings.seal_folder.glob("*.pem"))
    create(sealing[-1] if sealing else settings.seal_folder / "ed25519-1.pem", new_seal_key_pem())


@mfa.command()
def upgrade() -> None:
    """Bring the database to the newest schema: in a host's app that of the app, beside its own tables."""
    mount = find_host()
    engine = mount.services.engine if mount else _own_engine()
    schema.upgrade(engine)
    by_whom = ", of a newer version: left as it is" if schema.is_ahead(engine) else ""
    click.echo(f"{engine.url.render_as_string()} is at revision {schema.find_current(engine)}{by_whom}")
    engine.dispose()


def _own_engine() -> Engine:
    return database.engine_for(database.engine_of_command(load_settings(needs_keys=False).database))


def _creates(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands that make an account take."""
    email = click.option("--email", help="Where notices go; asked for if it is left out.")
    stdin = click.option(
        "--password-stdin", is_flag=True, help="Read the password from standard input instead of asking."
    )
    return click.argument("username")(email(stdin(command)))


@mfa.command("create-admin")
@_creates
def create_admin(username: str, email: str | None, password_stdin: bool) -> None:
    """Make an administrator, and show the QR code for their phone. The first sign-in with a code confirms it.

    Somebody who has an account already gets the role by `flask mfa set-role`.
    """
    _create(username, email, (ADMIN,), password_stdin=password_stdin)
    click.echo(f"{username} is an administrator. Scan the code, then sign in: it is not shown again.")


@mfa.command("create-user")
@_creates
def create_user(username: str, email: str | None, password_stdin: bool) -> None:
    """Make an account, also where registration is closed, and show the QR code for its phone."""
    _create(username, email, (), password_stdin=password_stdin)
    click.echo(f"{username} has an account. Scan the code, then sign in: it is not shown again.")


def _create(username: str, email: str | None, roles: tuple[str, ...], *, password_stdin: bool) -> None:
    if password_stdin and not email:
        raise click.UsageError("--password-stdin needs --email: standard input holds the password alone")
    if find_host():
        raise click.UsageError("the users are the app's own: let USER sign in, then `flask mfa set-role USER admin`")
    email = email or click.prompt("Email")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    with open_services() as services:
        enrolment = services.accounts.create(username, password, email, operator().client, roles=roles)
    click.echo(qr.as_text(enrolment.uri))
    click.echo(f"key for typing: {enrolment.secret}")


@mfa.command()
def prune() -> None:
    """Remove challenges, sessions, devices and counters that have ended; safe beside traffic."""
    with open_services() as services:
        for name, count in services.housekeeping.prune().items():
            click.echo(f"{count:8} {name}")


@mfa.command(name="doctor")
@click.option("--strict", is_flag=True, help="Exit with 1 for keys that are due and unknown settings, too.")
def doctor_command(strict: bool) -> None:
    """Check configuration, keys, database and limiter; exit with 1 if something would go wrong."""
    mount = find_host()
    findings = doctor.examine_mounted(mount) if mount else doctor.examine(from_environment(os.environ))
    for finding in findings:
        click.secho(f"{finding.level:7}", fg=doctor.COLOURS[finding.level], nl=False)
        click.echo(f" {finding.subject}: {finding.text}")
    due = doctor.DUE if strict else set()
    if any(finding.level == "error" or (finding.level == "warning" and finding.subject in due) for finding in findings):
        sys.exit(1)


def create(path: Path, content: bytes) -> None:
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
