"""What happened to the signed-in user's own account."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from mfa_service.api.blueprint import blueprint
from mfa_service.guard import REFUSALS, current_identity, require_mfa
from mfa_service.services.audit_log import EventEntry, EventFilter
from mfa_service.web import services
from mfa_service.web.contract import Paged, View, asks, gives, refuses


class EventView(View):
    """Something happened."""

    id: int
    at: datetime
    event: str
    user: Annotated[str | None, Field(description="The id of whom it happened to.")] = None
    actor: Annotated[str | None, Field(description="Who did it, if it was somebody else.")] = None
    address: str
    user_agent: str
    request_id: str
    detail: dict[str, Any]


class EventsView(View):
    """A page of events, newest first; `next` is the cursor of the page after it."""

    items: list[EventView]
    next: str | None = None


@blueprint.get("/activity")
@require_mfa
@asks(Paged)
@gives(200, EventsView)
@refuses(*REFUSALS)
def show_activity(query: Paged) -> EventsView:
    """What happened to your account: sign-ins, refused codes, changes."""
    events, following = services().audit_log.search(EventFilter(user_id=current_identity.user_id), query.cursor)
    return EventsView(items=[event_view(event) for event in events], next=following)


def event_view(event: EventEntry) -> EventView:
    """An event as it is answered."""
    return EventView(
        id=event.id,
        at=event.at,
        event=event.event,
        user=event.user_id,
        actor=event.actor,
        address=event.address,
        user_agent=event.user_agent,
        request_id=event.request_id,
        detail=event.detail,
    )
