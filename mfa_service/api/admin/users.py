"""Accounts, for administrators: find, change, unlock, reset, delete. No answer holds a secret, hash, code or token."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from mfa_service import errors
from mfa_service.api.admin.blueprint import ADMIN_REFUSALS, acting, blueprint
from mfa_service.api.admin.deadline import DeadlineBody, DeadlineView
from mfa_service.services.administration import Changes
from mfa_service.services.directory import Counter, FactorState, Profile, UserEntry, UserFilter
from mfa_service.services.policy import Deadline
from mfa_service.services.tickets import TICKET_SECONDS
from mfa_service.web import services
from mfa_service.web.contract import Body, Empty, Paged, Time, View, asks, gives, limited, refuses, takes

Reason = Annotated[str, Field(max_length=256, description="Why; it stands in the audit log.")]


class UsersQuery(Paged):
    """Which accounts."""

    q: Annotated[str | None, Field(description="How the username or address begins.")] = None
    role: str | None = None
    mfa: Annotated[FactorState | None, Field(description="`disabled` by too many failures; `none` confirmed.")] = None
    seen_since: Time | None = None
    seen_before: Time | None = None


class ChangeBody(Body):
    """What is to be different; what is left out stays."""

    roles: Annotated[list[str] | None, Field(description="All roles that the user is to have.")] = None
    disabled: bool | None = None
    mfa_required: Annotated[bool | None, Field(description="A rule about this user alone.")] = None
    mfa_deadline: Annotated[DeadlineBody | None, Field(description="Its deadline; without one it holds now.")] = None
    reason: Reason = ""


class ReasonBody(Body):
    """Why, if anybody wants to say so."""

    reason: Reason = ""


class ResetBody(Body):
    """Why: a reset takes somebody's second factor."""

    reason: Annotated[str, Field(max_length=256, pattern=r"\S", description="It stands in the audit log.")]


class UserEntryView(View):
    """An account in the list."""

    id: str
    external_id: Annotated[str | None, Field(description="The id that a host app knows its user by.")] = None
    username: str
    email: str
    roles: list[str]
    mfa: FactorState
    created_at: datetime
    last_seen_at: datetime
    disabled_at: datetime | None = None


class CounterView(View):
    """Failures in a row, and what they do."""

    subject: str
    failures: int
    open_at: datetime | None = None
    disabled_at: datetime | None = None


class UserDetailView(UserEntryView):
    """An account, with all that is nobody's secret."""

    recovery_codes_left: int
    sessions: int
    devices: int
    mfa_required: Annotated[bool, Field(description="By a rule about this user alone.")]
    mfa_rule: Annotated[DeadlineView | None, Field(description="That rule's deadline, if it has one.")] = None
    mfa_deadline: Annotated[datetime | None, Field(description="From when policy wants a second factor.")] = None
    locks: list[CounterView]


class UsersView(View):
    """A page of accounts, newest first; `next` is the cursor of the page after it."""

    items: list[UserEntryView]
    next: str | None = None


class TicketView(View):
    """What the user needs, beside the password, to enrol once. It is shown this once: hand it over in a trusted way."""

    enrolment_ticket: str
    expires_in: int = TICKET_SECONDS


@blueprint.get("/users")
@asks(UsersQuery)
@gives(200, UsersView)
@refuses(*ADMIN_REFUSALS)
def list_users(query: UsersQuery) -> UsersView:
    """Find accounts."""
    which = UserFilter(query.q, query.role, query.mfa, query.seen_since, query.seen_before)
    entries, following = services().directory.search(which, query.cursor)
    return UsersView(items=[user_entry(entry) for entry in entries], next=following)


@blueprint.get("/users/<user_id>")
@gives(200, UserDetailView)
@refuses(*ADMIN_REFUSALS, errors.NotFound)
def show_user(user_id: str) -> UserDetailView:
    """Look at one account."""
    return _detail(services().directory.show(user_id))


@blueprint.patch("/users/<user_id>")
@limited("administration")
@takes(ChangeBody)
@gives(200, UserDetailView)
@refuses(*ADMIN_REFUSALS, errors.NotFound, errors.LastAdministrator)
def change_user(body: ChangeBody, user_id: str) -> UserDetailView:
    """Change roles, disable or enable, require a second factor."""
    if body.mfa_deadline and not body.mfa_required:
        raise errors.InvalidRequest(fields={"mfaDeadline": "goes with mfaRequired: true"})
    deadline = body.mfa_deadline.deadline if body.mfa_deadline else Deadline()
    roles = None if body.roles is None else tuple(body.roles)
    changes = Changes(roles, body.disabled, body.mfa_required, deadline)
    return _detail(services().administration.change_and_show(acting(body.reason), user_id, changes))


@blueprint.delete("/users/<user_id>")
@limited("administration")
@takes(ReasonBody, optional=True)
@gives(204, Empty)
@refuses(*ADMIN_REFUSALS, errors.NotFound, errors.LastAdministrator)
def delete_user(body: ReasonBody, user_id: str) -> Empty:
    """Remove an account and all that belongs to it; its audit events stay."""
    services().administration.delete(acting(body.reason), user_id)
    return Empty()


@blueprint.post("/users/<user_id>/reset-mfa")
@limited("administration")
@takes(ResetBody)
@gives(200, TicketView)
@refuses(*ADMIN_REFUSALS, errors.NotFound, errors.LastAdministrator)
def reset_factors(body: ResetBody, user_id: str) -> TicketView:
    """Take all second factors from an account, for a lost phone. Sessions, devices and recovery codes end."""
    return TicketView(enrolment_ticket=services().administration.reset_factors(acting(body.reason), user_id))


@blueprint.post("/users/<user_id>/unlock")
@limited("administration")
@takes(ReasonBody, optional=True)
@gives(204, Empty)
@refuses(*ADMIN_REFUSALS, errors.NotFound)
def unlock_user(body: ReasonBody, user_id: str) -> Empty:
    """Forget the failures of an account: locks open, a disabled factor works again."""
    services().administration.unlock(acting(body.reason), user_id)
    return Empty()


@blueprint.delete("/users/<user_id>/sessions")
@limited("administration")
@takes(ReasonBody, optional=True)
@gives(204, Empty)
@refuses(*ADMIN_REFUSALS, errors.NotFound)
def end_user_sessions(body: ReasonBody, user_id: str) -> Empty:
    """End all sessions of an account, its remembered devices and pending tokens."""
    services().administration.end_sessions(acting(body.reason), user_id)
    return Empty()


def user_entry(entry: UserEntry) -> UserEntryView:
    """An account as it is answered in a list."""
    return UserEntryView(**entry.as_members())


def _detail(profile: Profile) -> UserDetailView:
    return UserDetailView(
        **profile.entry.as_members(),
        recovery_codes_left=profile.recovery_codes_left,
        sessions=profile.sessions,
        devices=profile.devices,
        mfa_required=profile.own_rule is not None,
        mfa_rule=DeadlineView.of(profile.own_rule) if profile.own_rule else None,
        mfa_deadline=profile.deadline,
        locks=[_counter(counter) for counter in profile.counters],
    )


def _counter(counter: Counter) -> CounterView:
    return CounterView(**vars(counter))
