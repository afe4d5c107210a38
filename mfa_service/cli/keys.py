"""Keys that rotate while the service runs."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import click

from mfa_service.cli.group import confirm, load_settings, mfa, open_services, operator, track, yes
from mfa_service.cli.setup import create
from mfa_service.config import Settings
from mfa_service.crypto.keyring import Keyring, with_new_key, without_key
from mfa_service.crypto.signing import file_name, new_key_pem
from mfa_service.errors import ConfigurationError
from mfa_service.services.keyfiles import activation_delay


@mfa.command("rotate-keys")
def rotate_keys() -> None:
    """Seal every secret and password hash under a new key, beside traffic. It can be killed and run again.

    Takes the newest key of the keyring if anything is sealed under an older one, and adds a fresh one otherwise.
    """
    settings = load_settings()
    path = _keyring_file(settings)
    with open_services() as services:
        if not services.rotation.count_stale(Keyring.load(path).ids[0]):
            text = with_new_key(path.read_text(), active_from=time.time() + activation_delay(settings))
            _replace(path, text)
    key_id = Keyring.load(path).ids[0]
    _wait_until_alone(path, key_id, settings)
    with open_services() as services:
        stale = services.rotation.count_stale(key_id)
        track(services.rotation.reseal(key_id, operator().client), "values sealed anew", stale)
    click.echo(f"everything is sealed under {key_id}; older keys: `flask mfa retire-key ID`")


@mfa.command("retire-key")
@click.argument("key_id")
@yes
def retire_key(key_id: str, yes: bool) -> None:
    """Take a key out of the keyring; refused while anything needs it."""
    settings = load_settings()
    path = _keyring_file(settings)
    with open_services() as services:
        keyring = Keyring.load(path, delay=activation_delay(settings))
        _ensure_retirable(keyring, key_id, settings.key_reread_seconds)
        _ensure_unneeded(key_id, services.rotation.count_under(key_id), settings)
        confirm(f"Take {key_id} out of {path}? What only a backup holds under it is lost.", yes=yes)
        _replace(path, without_key(path.read_text(), key_id))
        services.rotation.record_retired(key_id, operator().client)
    click.echo(f"{key_id} is out of the keyring")


@mfa.command("new-signing-key")
def new_signing_key() -> None:
    """Add a key that will sign tokens; the one before verifies until its last token has expired."""
    settings = load_settings()
    if settings.jwt_secret:
        raise ConfigurationError(["JWT_SECRET signs tokens: there are no key files"])
    create(settings.signing_folder / file_name(time.time()), new_key_pem())
    click.echo(f"signs in {activation_delay(settings)} s, when every replica has read it; the JWKS has it sooner")


def _keyring_file(settings: Settings) -> Path:
    if settings.keys:
        raise ConfigurationError(["MFA_KEYS holds the keyring: change it there, see docs/keys.md"])
    return settings.keyring_file


def _wait_until_alone(path: Path, key_id: str, settings: Settings) -> None:
    """Wait until no replica seals with the key before: one goes on with it until it looks at the clock again."""
    delay, interval = activation_delay(settings), settings.key_reread_seconds
    while (left := Keyring.load(path, delay=delay).active_from(key_id) + interval - time.time()) > 0:
        click.echo(f"{key_id} seals everywhere in {left:.0f} s, when every replica has read it", err=True)
        time.sleep(min(left, 10))


def _ensure_unneeded(key_id: str, needed: Mapping[str, int], settings: Settings) -> None:
    if set(needed) - {"sessions"}:
        rows = ", ".join(f"{count} {name}" for name, count in needed.items())
        raise click.ClickException(f"{key_id} is needed by {rows}: run `flask mfa rotate-keys` first")
    if needed:
        hours = settings.session_idle_seconds // 3600
        raise click.ClickException(
            f"{key_id} is needed by {needed['sessions']} sessions, which move when they are refreshed or end: "
            f"try again within {hours} hours; there is nothing to rotate again"
        )


def _ensure_retirable(keyring: Keyring, key_id: str, interval: int) -> None:
    if key_id not in keyring.ids:
        raise click.ClickException(f"there is no key {key_id} in the keyring, which has {', '.join(keyring.ids)}")
    newest = keyring.ids[0]
    if key_id == newest:
        raise click.ClickException(f"{key_id} is the newest key: it seals everything, or soon will")
    # A replica may have sealed with the older key until it looked at the file again.
    if keyring.active_from(newest) + interval > time.time():
        raise click.ClickException(f"{newest} has hardly begun to seal: try again in a minute")


def _replace(path: Path, text: str) -> None:
    """Put a file in place at once: whoever reads meets the old one or the new one."""
    Keyring.parse(text)
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
