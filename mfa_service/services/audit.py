"""The audit log: what happened, to whom, from where; one row in the transaction of the fact, one signal after it.

The vocabulary is closed. A name is `noun.happened`: the noun is what it happened to, the verb is in the past. No
event holds a password, a code, a secret or a token, nor the name that a stranger typed: it may be a password.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from blinker import Signal
from sqlalchemy import insert
from sqlalchemy.orm import Session, scoped_session

from mfa_service.models import AuditEvent
from mfa_service.services.database import execute

_ADDING = insert(AuditEvent).inline()


class Event(StrEnum):
    """Everything that is ever recorded."""

    USER_REGISTERED = "user.registered"
    USER_IMPORTED = "user.imported"
    USERS_EXPORTED = "users.exported"
    USER_LINKED = "user.linked"
    USER_UNLINKED = "user.unlinked"
    REGISTRATION_REFUSED = "registration.refused"
    PASSWORD_ACCEPTED = "login.password_accepted"
    PASSWORD_REFUSED = "login.password_refused"
    LOGIN_CONTINUED = "login.continued"
    PASSWORD_REHASHED = "password.rehashed"
    PASSWORD_UNREADABLE = "password.unreadable"
    CHALLENGE_REFUSED = "challenge.refused"
    CODE_REFUSED = "login.code_refused"
    CODE_REPLAYED = "login.code_replayed"
    LOGIN_COMPLETED = "login.completed"
    RECOVERY_CODE_REFUSED = "login.recovery_code_refused"
    RECOVERY_CODE_USED = "recovery_code.used"
    RECOVERY_CODES_ISSUED = "recovery_codes.issued"
    FACTOR_ENROLLED = "factor.enrolled"
    FACTOR_CONFIRMED = "factor.confirmed"
    FACTOR_REPLACED = "factor.replaced"
    FACTOR_REMOVED = "factor.removed"
    FACTOR_LOCKED = "factor.locked"
    FACTOR_ATTACKED = "factor.attacked"
    FACTOR_DISABLED = "factor.disabled"
    FACTOR_REENABLED = "factor.reenabled"
    PASSWORD_LOCKED = "password.locked"
    PASSWORD_CHANGED = "password.changed"
    STEP_UP_COMPLETED = "step_up.completed"
    SESSION_REFRESHED = "session.refreshed"
    REFRESH_REFUSED = "session.refresh_refused"
    SESSION_REUSED = "session.reused"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    DEVICE_TRUSTED = "device.trusted"
    DEVICE_FORGOTTEN = "device.forgotten"
    DEVICES_FORGOTTEN = "devices.forgotten"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    USER_DELETED = "user.deleted"
    USER_UNLOCKED = "user.unlocked"
    ROLES_CHANGED = "roles.changed"
    REQUIREMENT_CHANGED = "requirement.changed"
    POLICY_CHANGED = "policy.changed"
    ACCESS_REFUSED = "access.refused"
    TICKET_USED = "ticket.used"
    AUDIT_PRUNED = "audit.pruned"
    REPORT_EXPORTED = "report.exported"
    AUDIT_EXPORTED = "audit.exported"
    KEYS_ROTATED = "keys.rotated"
    KEY_RETIRED = "key.retired"
    TRUST_REVOKED = "trust.revoked"
    BACKUP_RESTORED = "backup.restored"
    ENROLMENT_REFUSED = "enrolment.refused"
    SECRET_UNREADABLE = "secret.unreadable"


@dataclass(frozen=True)
class ClientInfo:
    """Where a request came from, as the web layer saw it; `network` is what failures and rates are counted by.

    `actor` is who acts on somebody else: an administrator's id, or `cli:` and a name; empty for one's own affairs.
    """

    address: str = ""
    network: str = ""
    user_agent: str = ""
    request_id: str = ""
    actor: str = ""


@dataclass(frozen=True)
class Recorded:
    """An event as listeners get it, after the commit."""

    event: Event
    at: datetime
    user_id: str | None
    client: ClientInfo
    detail: dict[str, Any]


class Audit:
    """Writes events and tells listeners of them. `signal` sends `record=Recorded`."""

    def __init__(self, session: scoped_session[Session], now: Callable[[], datetime]) -> None:
        self._session = session
        self._now = now
        self.signal = Signal("an audit event was committed")

    def record(self, event: Event, client: ClientInfo, *, user_id: str | None = None, **detail: Any) -> None:
        """Add an event to the running unit of work."""
        record = Recorded(event, self._now(), user_id, client, detail)
        # Past the session's own bookkeeping, which takes about as long again as the statement.
        execute(
            self._session,
            _ADDING,
            at=record.at,
            event=event,
            user_id=user_id,
            actor=client.actor or None,
            address=client.address,
            user_agent=client.user_agent,
            request_id=client.request_id,
            detail=detail,
        )
        self._session.info["events"].append(record)

    def publish(self, records: list[Recorded]) -> None:
        """Send what a unit recorded; called after its commit. A listener that fails is logged and harms nobody."""
        for record in records:
            for receiver in self.signal.receivers_for(self):
                try:
                    receiver(self, record=record)
                except Exception:
                    logging.getLogger("mfa_service").exception("a listener of the audit failed")
