"""The signed-in user's own sessions and remembered devices: list them, end them."""

from datetime import datetime

from mfa_service import errors
from mfa_service.api.blueprint import blueprint
from mfa_service.guard import REFUSALS, current_identity, require_login, require_mfa
from mfa_service.web import services
from mfa_service.web.client import client_info
from mfa_service.web.contract import Empty, Paged, View, asks, gives, limited, refuses


class SessionView(View):
    """A place where you are signed in."""

    id: str
    started_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    address: str
    user_agent: str
    amr: list[str]
    is_current: bool


class SessionsView(View):
    """A page of sessions, newest first; `next` is the cursor of the page after it."""

    items: list[SessionView]
    next: str | None = None


class DeviceView(View):
    """A device that skips the code."""

    id: str
    name: str
    address: str
    user_agent: str
    trusted_at: datetime
    last_used_at: datetime
    expires_at: datetime


class DevicesView(View):
    """A page of devices, newest first; `next` is the cursor of the page after it."""

    items: list[DeviceView]
    next: str | None = None


@blueprint.get("/sessions")
@require_login
@asks(Paged)
@gives(200, SessionsView)
@refuses(*REFUSALS)
def list_sessions(query: Paged) -> SessionsView:
    """Where you are signed in."""
    rows, following = services().sessions.list(current_identity.user_id, query.cursor)
    items = [
        SessionView(
            id=row.id,
            started_at=row.created_at,
            last_seen_at=row.seen_at,
            expires_at=row.expires_at,
            address=row.address,
            user_agent=row.user_agent,
            amr=row.amr.split(),
            is_current=row.id == current_identity.session_id,
        )
        for row in rows
    ]
    return SessionsView(items=items, next=following)


@blueprint.delete("/sessions/<session_id>")
@require_login
@limited("sessions")
@gives(204, Empty)
@refuses(*REFUSALS, errors.NotFound)
def end_session(session_id: str) -> Empty:
    """End one of your sessions, at once and everywhere."""
    services().sessions.revoke(current_identity.user_id, session_id, client_info())
    return Empty()


@blueprint.get("/devices")
@require_mfa
@asks(Paged)
@gives(200, DevicesView)
@refuses(*REFUSALS)
def list_devices(query: Paged) -> DevicesView:
    """Your remembered devices."""
    rows, following = services().devices.list(current_identity.user_id, query.cursor)
    items = [
        DeviceView(
            id=row.id,
            name=row.name,
            address=row.address,
            user_agent=row.user_agent,
            trusted_at=row.created_at,
            last_used_at=row.used_at,
            expires_at=row.expires_at,
        )
        for row in rows
    ]
    return DevicesView(items=items, next=following)


@blueprint.delete("/devices/<device_id>")
@require_mfa
@limited("sessions")
@gives(204, Empty)
@refuses(*REFUSALS, errors.NotFound)
def forget_device(device_id: str) -> Empty:
    """Forget one of your devices: it will be asked for a code again."""
    services().devices.forget(current_identity.user_id, device_id, client_info())
    return Empty()


@blueprint.delete("/devices")
@require_mfa
@limited("sessions")
@gives(204, Empty)
@refuses(*REFUSALS)
def forget_devices() -> Empty:
    """Forget all of your devices."""
    services().devices.forget_own(current_identity.user_id, client_info())
    return Empty()
