"""The policy from a terminal: show it, change it, see beforehand whom a change concerns, report who is late."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import click

from mfa_service.cli.group import as_json, confirm, mfa, open_services, operator, show, show_one, why, yes
from mfa_service.services import Services
from mfa_service.services.directory import Standing
from mfa_service.services.policy import MAX_DAYS, Deadline, Mode, Rules
from mfa_service.services.reports import as_csv

F = TypeVar("F", bound=Callable[..., Any])


def deadline_options(command: F) -> F:
    """`--at` a date or `--days` after the first login under the rule; neither means at once."""
    at = click.option("--at", type=click.DateTime(), help="From this time on (UTC).")
    days = click.option("--days", type=click.IntRange(1, MAX_DAYS), help="So long after the first login under it.")
    return at(days(command))


def deadline_of(at: datetime | None, days: int | None) -> Deadline:
    """What the options mean. Raises a usage error for both."""
    if at is not None and days is not None:
        raise click.UsageError("--at and --days: choose one")
    return Deadline(in_utc(at), days)


def in_utc(time: datetime | None) -> datetime | None:
    """A time that was typed without a zone."""
    return time and time.replace(tzinfo=UTC)


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
    with open_services() as services:
        rules = replace(services.policy.show(), mode=mode, deadline=deadline_of(at, days))
        _replace(services, rules, reason, yes=yes)


@policy.command("enforce")
@click.argument("role")
@deadline_options
@click.option("--off", is_flag=True, help="Drop the rule about this role.")
@why
@yes
def enforce_role(role: str, at: datetime | None, days: int | None, off: bool, reason: str, yes: bool) -> None:
    """Require a second factor of everybody with a role, at once or by a deadline."""
    with open_services() as services:
        rules = services.policy.show()
        others = {name: deadline for name, deadline in rules.roles.items() if name != role}
        roles = others if off else others | {role: deadline_of(at, days)}
        _replace(services, replace(rules, roles=roles), reason, yes=yes)


@policy.command("preview")
@click.argument("mode", type=click.Choice(get_args(Mode)))
@click.option("--role", "roles", multiple=True, help="Also enforced for this role, with the same deadline.")
@deadline_options
@as_json
def preview(mode: Mode, roles: tuple[str, ...], at: datetime | None, days: int | None, is_json: bool) -> None:
    """Count whom a policy would concern, changing nothing."""
    deadline = deadline_of(at, days)
    with open_services() as services:
        rules = Rules(mode, deadline, dict.fromkeys(roles, deadline))
        show_one(vars(services.policy.preview(rules)), is_json=is_json)


@mfa.command()
@click.option("--standing", type=click.Choice(get_args(Standing)), help="Only these.")
@click.option("--csv", "is_csv", is_flag=True, help="Every account, as CSV.")
@as_json
def compliance(standing: Standing | None, is_csv: bool, is_json: bool) -> None:
    """Report who has which factor, and who is late."""
    with open_services() as services:
        if is_csv:
            sys.stdout.writelines(as_csv(services.directory.whole_report(standing)))
            return
        numbers = vars(services.directory.compliance())
        rows = [vars(row) for row in services.directory.report(standing, None)[0]]
        if is_json:
            show_one(numbers | {"items": rows}, is_json=True)
            return
        show_one(numbers, is_json=False)
        show(rows, is_json=False, title="the newest accounts; --csv has all of them")


def _replace(services: Services, rules: Rules, reason: str, *, yes: bool) -> None:
    preview = services.policy.preview(rules)
    click.echo(f"{preview.required} accounts without a second factor must enrol, {preview.late} of them at once")
    confirm("Put this policy in place?", yes=yes or not preview.late)
    services.administration.set_policy(operator(reason), rules)
    show_one(_members(services.policy.show()), is_json=False)


def _members(rules: Rules) -> dict[str, Any]:
    roles = {role: deadline.as_detail() or "at once" for role, deadline in rules.roles.items()}
    at_once = "at once" if rules.mode == "required" else None
    return {"mode": rules.mode, "deadline": rules.deadline.as_detail() or at_once, "roles": roles}
