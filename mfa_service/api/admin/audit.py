"""The audit log, for administrators: search it, take it away, look at its seals."""

from typing import Annotated

from flask import Response
from pydantic import Field

from mfa_service.api.activity import EventsView, EventView, event_view
from mfa_service.api.admin.blueprint import ADMIN_REFUSALS, acting, blueprint
from mfa_service.services.audit import Event
from mfa_service.services.audit_log import EventFilter
from mfa_service.services.reports import as_ndjson
from mfa_service.web import services
from mfa_service.web.contract import Paged, Query, Time, View, asks, gives, refuses


class ExportQuery(Query):
    """Which events, all of them at once. Times are bounds: `from` is in, `to` is out."""

    event: Annotated[str | None, Field(description="Its name, such as `login.completed`.")] = None
    user: Annotated[str | None, Field(description="The id of whom it happened to.")] = None
    actor: Annotated[str | None, Field(description="The id of the administrator who did it.")] = None
    since: Annotated[Time | None, Field(alias="from")] = None
    before: Annotated[Time | None, Field(alias="to")] = None

    @property
    def filter(self) -> EventFilter:
        """The same for the services."""
        return EventFilter(self.event, self.user, self.actor, self.since, self.before)


class EventsQuery(ExportQuery, Paged):
    """Which events, a page at a time."""


class SealView(View):
    """A signed link of the chain. `previous` is the digest of the seal before it."""

    number: int
    kind: str
    first_id: int
    last_id: int
    count: int
    events_digest: str
    previous: str
    sealed_at: str
    key_id: str
    signature: str


class SealKeyView(View):
    """A public key that seals are verified with (RFC 8037)."""

    kty: str
    crv: str
    x: str
    kid: str


class SealsView(View):
    """A page of seals, newest first, and the keys that verify them."""

    items: list[SealView]
    keys: list[SealKeyView]
    next: str | None = None


@blueprint.get("/audit")
@asks(EventsQuery)
@gives(200, EventsView)
@refuses(*ADMIN_REFUSALS)
def search_audit(query: EventsQuery) -> EventsView:
    """Search the audit log, newest first."""
    events, following = services().audit_log.search(query.filter, query.cursor)
    return EventsView(items=[event_view(event) for event in events], next=following)


@blueprint.get("/audit/export")
@asks(ExportQuery)
@gives(200, EventView, media="application/x-ndjson")
@refuses(*ADMIN_REFUSALS)
def export_audit(query: ExportQuery) -> Response:
    """The same as one JSON object a line, without an end of pages. That it was taken is an event itself."""
    services().administration.record_export(acting(), Event.AUDIT_EXPORTED, vars(query.filter))
    events = services().audit_log.export(query.filter)
    lines = as_ndjson(event_view(event).model_dump(by_alias=True, mode="json", exclude_none=True) for event in events)
    return Response(lines, mimetype="application/x-ndjson")


@blueprint.get("/audit/seals")
@asks(Paged)
@gives(200, SealsView)
@refuses(*ADMIN_REFUSALS)
def list_seals(query: Paged) -> SealsView:
    """The seals over the log, to keep or to compare. Verifying is `flask mfa audit verify`."""
    seals, keys, following = services().seals.page(query.cursor)
    return SealsView(
        items=[SealView(**seal.as_members()) for seal in seals],
        keys=[SealKeyView.model_validate(key) for key in keys],
        next=following,
    )
