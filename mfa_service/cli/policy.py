"""The policy from a terminal: show it, change it, see beforehand whom a change concerns, report who is late."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, get_args

import click

from mfa_service.cli.group import Moment, as_json, confirm, mfa, open_services, operator, show, show_one, why, yes
from mfa_service.services import Services
from mfa_service.services.audit import Event
from mfa_service.services.directory import Standing
from mfa_service.services.policy import MAX_DAYS, Deadline, Mode, Rules
from mfa_service.services.reports import as_csv
from mfa_service.services.roles import ensure_names

F = TypeVar("F", bound=Callable[..., Any])


def deadline_options(command: F) -> F:
    """`--at` a date or `--days` after the first login under the rule; neither means at once."""
    at = click.option("--at", type=Moment(), help="From this time on; UTC unless it names its zone.")
    days = click.option("--days", type=click.IntRange(1, MAX_DAYS), help="So long after the first login under it.")
    return at(days(command))


def deadline_of(at: datetime | None, days: int | None, *, off: bool = False) -> Deadline:
    """What the options mean; `off` is where no rule is left to have one. Raises a usage error for contradictions."""
    if at is not None and days is not None:
        raise click.UsageError("--at and --days: choose one")
    if off and (at is not None or days is not None):
        raise click.UsageError("there is no deadline where nothing is required")
    return Deadline(at, days)


@mfa.group()
def policy() -> None:
    """Who must have a second factor, and from when."""


@policy.command("show")
@as_json
def show_policy(is_json: bool) -> None:
    """Show the policy as it stands."""
    with open_services() as services:
        show_one(_members(services.policy.show()), is_json=is_json)


@policy.command("set")
@click.argument("mode", type=click.Choice(get_args(Mode)))
@deadline_options
@why
@yes
def set_mode(mode: Mode, at: datetime | None, days: int | None, reason: str, yes: bool) -> None:
    """Require a second factor of everybody, or make it optional. Rules about roles stay as they are."""
    deadline = deadline_of(at, days, off=mode == "optional")
    with open_services() as services:
        _change(services, lambda rules: replace(rules, mode=mode, deadline=deadline), reason, yes=yes)


@policy.command("enforce")
@click.argument("role")
@deadline_options
@click.option("--off", is_flag=True, help="Drop the rule about this role.")
@why
@yes
def enforce_role(role: str, at: datetime | None, days: int | None, off: bool, reason: str, yes: bool) -> None:
    """Require a second factor of everybody with a role, at once or by a deadline."""
    deadline = deadline_of(at, days, off=off)

    def change(rules: Rules) -> Rules:
        others = {name: each for name, each in rules.roles.items() if name != role}
        return replace(rules, roles=others if off else others | {role: deadline})

    with open_services() as services:
        ensure_names([role])
        _change(services, change, reason, yes=yes)


@policy.command("preview")
@click.argument("mode", type=click.Choice(get_args(Mode)))
@click.option("--role", "roles", multiple=True, help="Also enforced for this role, with the same deadline.")
@deadline_options
@as_json
def preview(mode: Mode, roles: tuple[str, ...], at: datetime | None, days: int | None, is_json: bool) -> None:
    """Count whom a policy would concern, changing nothing. Rules about other roles stay as they are."""
    deadline = deadline_of(at, days)
    with open_services() as services:
        ensure_names(roles)
        everyone = deadline if mode == "required" else Deadline()
        rules = Rules(mode, everyone, {**services.policy.show().roles, **dict.fromkeys(roles, deadline)})
        show_one(vars(services.policy.preview(rules)), is_json=is_json)


@mfa.command()
@click.option("--standing", type=click.Choice(get_args(Standing)), help="Only these.")
@click.option("--csv", "is_csv", is_flag=True, help="Every account, as CSV.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many accounts at most.")
@as_json
def compliance(standing: Standing | None, is_csv: bool, limit: int, is_json: bool) -> None:
    """Report who has which factor, and who is late."""
    with open_services() as services:
        found = services.directory.whole_report(standing)
        if is_csv:
            services.administration.record_export(operator(), Event.REPORT_EXPORTED, {"standing": standing})
            sys.stdout.writelines(as_csv(found))
            return
        numbers = vars(services.directory.compliance())
        rows = [vars(row) for row in itertools.islice(found, limit)]
        if is_json:
            show_one(numbers | {"items": rows}, is_json=True)
        else:
            show_one(numbers, is_json=False)
            show(rows, is_json=False)
        if next(found, None):
            click.echo(f"these are the first {limit}: --limit shows more, --csv all of them", err=True)


def _change(services: Services, change: Callable[[Rules], Rules], reason: str, *, yes: bool) -> None:
    preview = services.policy.preview(change(services.policy.show()))
    click.echo(f"{preview.required} accounts without a second factor must enrol, {preview.late} of them at once")
    confirm("Put this policy in place?", yes=yes or not preview.late)
    services.administration.change_policy(operator(reason), change)
    show_one(_members(services.policy.show()), is_json=False)


def _members(rules: Rules) -> dict[str, Any]:
    roles = {role: deadline.as_detail() or "at once" for role, deadline in rules.roles.items()}
    at_once = "at once" if rules.mode == "required" else None
    return {"mode": rules.mode, "deadline": rules.deadline.as_detail() or at_once, "roles": roles}
