"""Accounts: find, look at, unlock, reset, disable, give roles. A user is named by username or id."""

from datetime import datetime
from typing import Any, get_args

import click

from mfa_service.cli.group import (
    Moment,
    as_json,
    confirm,
    mfa,
    needs_why,
    open_services,
    operator,
    show,
    show_one,
    user_id_of,
    why,
    yes,
)
from mfa_service.cli.policy import deadline_of, deadline_options
from mfa_service.services import Services
from mfa_service.services.administration import Changes
from mfa_service.services.directory import FactorState, Profile, UserEntry, UserFilter
from mfa_service.services.roles import ADMIN
from mfa_service.services.tickets import TICKET_SECONDS

user_argument = click.argument("user")


@mfa.command("list")
@click.option("--begins-with", "text", help="How the username or e-mail address begins.")
@click.option("--role", help="Only who has this role.")
@click.option("--mfa", "factor", type=click.Choice(get_args(FactorState)), help="Only in this state.")
@click.option("--seen-before", type=Moment(), help="Only who was not seen since; UTC unless it names its zone.")
@click.option("--seen-since", type=Moment(), help="Only who was seen since; UTC unless it names its zone.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="So many at most, newest first.")
@as_json
def list_users(limit: int, is_json: bool, **which: Any) -> None:
    """List accounts, newest first."""
    with open_services() as services:
        show([entry.as_members() for entry in _some(services, UserFilter(**which), limit)], is_json=is_json)


@mfa.command("show")
@user_argument
@as_json
def show_user(user: str, is_json: bool) -> None:
    """Show one account: factors, roles, locks, sessions, what policy says."""
    with open_services() as services:
        show_one(_detail(services.directory.show(user_id_of(services, user))), is_json=is_json)


@mfa.command()
@user_argument
@why
def unlock(user: str, reason: str) -> None:
    """Forget the failures of an account: locks open, a disabled factor works again."""
    with open_services() as services:
        services.administration.unlock(operator(reason), user_id_of(services, user))
    click.echo(f"{user} is unlocked")


@mfa.command("reset-mfa")
@user_argument
@needs_why
@yes
@as_json
def reset_factors(user: str, reason: str, yes: bool, is_json: bool) -> None:
    """Take all second factors from an account, for a lost phone, and print a ticket for enrolling anew.

    Make sure who asks. Hand the ticket over in a way that you trust: with it, a known password enrols.
    """
    with open_services() as services:
        user_id = user_id_of(services, user)
        confirm(f"Take the second factors of {user}, and end their sessions?", yes=yes)
        ticket = services.administration.reset_factors(operator(reason), user_id)
    if is_json:
        show_one({"enrolmentTicket": ticket, "expiresIn": TICKET_SECONDS}, is_json=True)
        return
    click.echo(f"enrolment ticket, good once within {TICKET_SECONDS // 3600} hours:\n\n  {ticket}\n")
    click.echo("With it: log in, then POST /auth/enrol with tempToken and enrolmentTicket.")


@mfa.command()
@user_argument
@why
@yes
def disable(user: str, reason: str, yes: bool) -> None:
    """Let nobody in with this account, and end its sessions."""
    with open_services() as services:
        user_id = user_id_of(services, user)
        confirm(f"Disable {user}, and end their sessions?", yes=yes)
        services.administration.disable(operator(reason), user_id)
    click.echo(f"{user} is disabled")


@mfa.command()
@user_argument
@why
def enable(user: str, reason: str) -> None:
    """Undo `disable`."""
    with open_services() as services:
        services.administration.enable(operator(reason), user_id_of(services, user))
    click.echo(f"{user} can sign in again")


@mfa.command()
@user_argument
@why
@yes
def delete(user: str, reason: str, yes: bool) -> None:
    """Remove an account and all that belongs to it; its audit events stay."""
    with open_services() as services:
        user_id = user_id_of(services, user)
        confirm(f"Delete {user}? This can't be undone.", yes=yes)
        services.administration.delete(operator(reason), user_id)
    click.echo(f"{user} is gone")


@mfa.command("end-sessions")
@user_argument
@why
def end_sessions(user: str, reason: str) -> None:
    """End all sessions of an account, its remembered devices and pending tokens."""
    with open_services() as services:
        services.administration.end_sessions(operator(reason), user_id_of(services, user))
    click.echo(f"{user} is signed out everywhere")


@mfa.command("set-role")
@user_argument
@click.argument("role")
@click.option("--remove", is_flag=True, help="Take the role away instead.")
@why
def set_role(user: str, role: str, remove: bool, reason: str) -> None:
    """Give a user a role, or take it away. `admin` opens the admin routes."""
    with open_services() as services:
        changes = Changes(removes_role=role) if remove else Changes(adds_role=role)
        user_id = user_id_of(services, user)
        services.administration.change(operator(reason), user_id, changes)
        has_factor = services.directory.show(user_id).entry.factor != "none"
    click.echo(f"{user} {'no longer has' if remove else 'has'} the role {role}")
    if role == ADMIN and not remove and not has_factor:
        click.echo("and has to enrol a second factor before it opens anything")


@mfa.command("require-mfa")
@user_argument
@deadline_options
@click.option("--off", is_flag=True, help="Drop the rule about this user.")
@why
def require_factor(user: str, at: datetime | None, days: int | None, off: bool, reason: str) -> None:
    """Make one user enrol a second factor, at once or by a deadline, whatever the policy says of others."""
    changes = Changes(mfa_required=not off, deadline=deadline_of(at, days, off=off))
    with open_services() as services:
        services.administration.change(operator(reason), user_id_of(services, user), changes)
    click.echo(f"{user} {'is under the general policy alone' if off else 'must have a second factor'}")


def _some(services: Services, which: UserFilter, limit: int) -> list[UserEntry]:
    found, cursor = services.directory.search(which, None)
    entries = list(found)
    while cursor and len(entries) < limit:
        found, cursor = services.directory.search(which, cursor)
        entries += found
    return entries[:limit]


def _detail(profile: Profile) -> dict[str, Any]:
    return profile.entry.as_members() | {
        "recovery_codes_left": profile.recovery_codes_left,
        "sessions": profile.sessions,
        "devices": profile.devices,
        "own_rule": profile.own_rule is not None,
        "mfa_deadline": profile.deadline,
        "locks": [vars(counter) for counter in profile.counters],
    }
