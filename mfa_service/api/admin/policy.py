"""The policy: who must have a second factor, and from when."""

from typing import Annotated

from pydantic import Field

from mfa_service.api.admin.blueprint import ADMIN_REFUSALS, acting, blueprint
from mfa_service.api.admin.deadline import DeadlineBody, DeadlineView
from mfa_service.api.admin.users import UserEntryView, user_entry
from mfa_service.errors import InvalidRequest
from mfa_service.services.policy import Deadline, Mode, Rules
from mfa_service.services.roles import ensure_names
from mfa_service.web import services
from mfa_service.web.contract import Body, Paged, View, asks, gives, limited, refuses, takes


class PolicyBody(Body):
    """The whole policy. Under `optional` only these roles must have a second factor, and users with rules."""

    mode: Mode
    deadline: Annotated[DeadlineBody | None, Field(description="For everybody, under `required`.")] = None
    roles: Annotated[
        dict[str, DeadlineBody | None], Field(default_factory=dict, description="By name; null means at once.")
    ]
    reason: Annotated[str, Field(max_length=256)] = ""

    @property
    def rules(self) -> Rules:
        """What was meant. Raises InvalidRequest."""
        ensure_names(self.roles)
        if self.mode == "optional" and self.deadline:
            raise InvalidRequest(fields={"deadline": "goes with mode required; roles have deadlines of their own"})
        roles = {role: _deadline(body) for role, body in self.roles.items()}
        return Rules(self.mode, _deadline(self.deadline), roles)


class PolicyView(View):
    """The policy as it stands."""

    mode: Mode
    deadline: DeadlineView | None = None
    roles: dict[str, DeadlineView | None]


class PreviewView(View):
    """Accounts without a second factor, and what the rules would do to them."""

    without_factor: int
    required: Annotated[int, Field(description="Would have to enrol, now or by a deadline.")]
    late: Annotated[int, Field(description="Of these: could do nothing but enrol, from this moment on.")]
    newly_required: Annotated[int, Field(description="Of these: need not as things are.")]
    released: Annotated[int, Field(description="Must as things are, and would need no more.")]
    items: Annotated[list[UserEntryView], Field(description="A page of those that would have to enrol.")]
    next: str | None = None


@blueprint.get("/policy")
@gives(200, PolicyView)
@refuses(*ADMIN_REFUSALS)
def show_policy() -> PolicyView:
    """The policy as it stands."""
    return _view(services().policy.show())


@blueprint.put("/policy")
@limited("administration")
@takes(PolicyBody)
@gives(200, PolicyView)
@refuses(*ADMIN_REFUSALS)
def replace_policy(body: PolicyBody) -> PolicyView:
    """Put another policy in place. It holds for the next token, and the next refresh."""
    return _view(services().administration.set_policy(acting(body.reason), body.rules))


@blueprint.post("/policy/preview")
@limited("administration")
@takes(PolicyBody)
@asks(Paged)
@gives(200, PreviewView)
@refuses(*ADMIN_REFUSALS)
def preview_policy(query: Paged, body: PolicyBody) -> PreviewView:
    """Say whom a policy would make enrol, changing nothing."""
    numbers, entries, following = services().directory.preview(body.rules, query.cursor)
    return PreviewView(**vars(numbers), items=[user_entry(entry) for entry in entries], next=following)


def _deadline(body: DeadlineBody | None) -> Deadline:
    return body.deadline if body else Deadline()


def _view(rules: Rules) -> PolicyView:
    roles = {role: DeadlineView.of(deadline) for role, deadline in rules.roles.items()}
    return PolicyView(mode=rules.mode, deadline=DeadlineView.of(rules.deadline), roles=roles)
