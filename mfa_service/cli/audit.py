"""The audit log from a terminal: search, take away, seal, verify, prune."""

import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, TextIO

import click

from mfa_service.cli.group import Moment, as_json, confirm, mfa, open_services, operator, show, track, user_id_of, yes
from mfa_service.crypto.chain import Seal
from mfa_service.crypto.opaque import is_id
from mfa_service.services import Services
from mfa_service.services.audit import Event
from mfa_service.services.audit_log import EventEntry, EventFilter
from mfa_service.services.reports import as_ndjson

_EVENTS = [str(event) for event in Event]
_UNITS = {"d": "days", "h": "hours", "w": "weeks"}


@mfa.group()
def audit() -> None:
    """The audit log and its seals."""


def _filters(command: Any) -> Any:
    options = (
        click.option("--event", type=click.Choice(_EVENTS), metavar="NAME", help="Such as login.completed."),
        click.option("--user", help="Whom it happened to: a username or an id."),
        click.option("--actor", help="Who did it: an administrator's id, or cli:NAME."),
        click.option("--from", "since", type=Moment(), help="From this time on; UTC unless it names its zone."),
        click.option("--to", "before", type=Moment(), help="Before this time; UTC unless it names its zone."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@audit.command("search")
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many at most, newest first.")
@as_json
def search(limit: int, is_json: bool, **which: Any) -> None:
    """Search the audit log, newest first."""
    with open_services() as services:
        found = services.audit_log.export(_filter(services, **which))
        show([vars(entry) for entry, _ in zip(found, range(limit), strict=False)], is_json=is_json)


@audit.command("export")
@_filters
def export(**which: Any) -> None:
    """Print events as JSON, one a line, newest first. That they were taken is an event itself."""
    with open_services() as services:
        chosen = _filter(services, **which)
        services.administration.record_export(operator(), Event.AUDIT_EXPORTED, vars(chosen))
        sys.stdout.writelines(as_ndjson(_members(entry) for entry in services.audit_log.export(chosen)))


@audit.command("seal")
def seal() -> None:
    """Seal the events that no seal speaks of yet. A running service does so by itself."""
    with open_services() as services:
        counts: list[int] = []
        events = track(_counted(services, counts), "events sealed")
    click.echo(f"{len(counts)} seals over {events} events", err=True)


@audit.command("verify")
@click.option("--seals", "shipped", type=click.File(), help="Seals that were kept elsewhere, as JSON lines.")
def verify(shipped: TextIO | None) -> None:
    """Look at every seal and every sealed event; exit with 1 and name what was tampered with.

    Without --seals nothing can show that the newest events were cut off together with their seals.
    """
    findings: list[str] = []
    with open_services() as services:
        kept = list(_shipped(shipped)) if shipped else []
        if shipped and not kept:
            raise click.ClickException("the file of shipped seals holds none")
        looked = track(_looked_at(services, kept, findings), "events verified")
    for finding in findings:
        click.secho(f"tampered: {finding}", fg="red")
    if findings:
        sys.exit(1)
    if not looked:
        click.echo("nothing is sealed yet: events are when they are a minute old")
        return
    compared = f", {len(kept)} shipped seals among them" if shipped else ""
    click.echo(f"sound: {looked} sealed events are what was written{compared}")


@audit.command("prune")
@click.option("--older-than", required=True, help="Such as 365d, 52w or 48h.")
@yes
def prune(older_than: str, yes: bool) -> None:
    """Remove whole sealed ranges that are older, and leave a signed record that `verify` accepts."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([dhw])", older_than)
    if not match:
        raise click.UsageError("--older-than must read like 365d, 52w or 48h")
    age = timedelta(**{_UNITS[match[2]]: int(match[1])})
    confirm(f"Remove audit events older than {older_than} for ever?", yes=yes)
    with open_services() as services:
        track(services.seals.prune(age, operator().client), "events removed")
        oldest = services.seals.find_oldest()
    if oldest:
        seal, newest = oldest
        click.echo(f"kept from seal {seal.number} on, whose newest event is of {newest:%Y-%m-%d %H:%M}", err=True)


def _filter(
    services: Services,
    event: str | None,
    user: str | None,
    actor: str | None,
    since: datetime | None,
    before: datetime | None,
) -> EventFilter:
    # The account may be gone: its events are found by its id all the same.
    user_id = user if user and is_id(user) else user_id_of(services, user) if user else None
    return EventFilter(event, user_id, actor, since, before)


def _members(entry: EventEntry) -> dict[str, Any]:
    return vars(entry) | {"at": entry.at.isoformat()}


def _counted(services: Services, counts: list[int]) -> Iterator[int]:
    """The steps of sealing; how many events each seal has goes to `counts`."""
    for made in services.seals.sealing():
        counts.append(made.count)
        yield made.count


def _shipped(lines: TextIO) -> Iterator[Seal]:
    read = 0
    try:
        for line in lines:
            yield Seal.from_json(line)
            read += 1
    except ValueError:
        raise click.ClickException(f"line {read + 1} of the shipped seals is none") from None


def _looked_at(services: Services, kept: list[Seal], findings: list[str]) -> Iterator[int]:
    """The steps of verifying; what is found goes to `findings`."""
    before = 0
    for progress in services.seals.verify(kept):
        findings += progress.findings
        yield progress.events - before
        before = progress.events
