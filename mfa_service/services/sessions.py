"""Sessions: who is signed in, and for how long.

A session lives until it is ended, until it was not refreshed for the idle time, or until its absolute end; an access
token only for as long as its session, on every worker. Refreshing replaces the refresh token. The one just replaced
is answered, for ten seconds, with the very same successor, so that two tabs or a lost answer do no harm; any older
one means that somebody has a copy, and ends the session (RFC 9700 section 4.14.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, select, update
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import scoped_session

from mfa_service.crypto.opaque import RefreshToken, RefreshTokens, digest, is_id, new_id, new_token
from mfa_service.crypto.tokens import AUTHENTICATED, Identity
from mfa_service.errors import InvalidRefreshToken, NotFound, RefreshReused, Unavailable
from mfa_service.models import Session, User, UserRole
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, execute, page, rows_changed
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import has_factor

#: How long a replaced refresh token is answered with its successor, in seconds.
GRACE_SECONDS = 10
#: How often `seen_at` is written at most, in seconds.
SEEN_SECONDS = 60


@dataclass(frozen=True)
class Account:
    """The user behind a live session, as of now."""

    username: str
    email: str
    mfa_enabled: bool
    roles: frozenset[str] = frozenset()
    external_id: str | None = None


def _live(*which: ColumnElement[bool]) -> Select[Any]:
    """A live session with its user, as of `now`, once for each role or without one.

    Made once: putting it together takes longer than running it.
    """
    is_fresh = and_(Session.expires_at > bindparam("now"), Session.refreshed_at > bindparam("idle_since"))
    return (
        select(User.id, User.external_id, User.username, User.email, has_factor(), UserRole.role)
        .add_columns(Session.id, Session.authenticated_at, Session.amr, Session.step, Session.seen_at)
        .join(Session, Session.user_id == User.id)
        .outerjoin(UserRole, UserRole.user_id == User.id)
        .where(*which, Session.revoked_at.is_(None), is_fresh, User.disabled_at.is_(None))
    )


_BY_ID = _live(Session.id == bindparam("session_id"), User.id == bindparam("user_id"))
_BY_COOKIE = _live(Session.cookie_digest == bindparam("cookie_digest"))

_SEEN = (
    select(Session.id)
    .where(Session.user_id == bindparam("user"), Session.user_agent == bindparam("agent"))
    .where(Session.network == bindparam("of_network"))
    .limit(1)
)

#: Somebody in a live session, and their account as of now.
Found = tuple[Identity, Account]


@dataclass(frozen=True)
class Grant:
    """A live session, and the refresh token that continues it."""

    session_id: str
    step: str
    amr: tuple[str, ...]
    authenticated_at: datetime
    refresh_token: str = field(repr=False)


class Sessions:
    """Opens, continues and ends sessions."""

    def __init__(
        self,
        session: scoped_session[Transaction],
        unit: UnitOfWork,
        audit: Audit,
        tokens: RefreshTokens,
        now: Callable[[], datetime],
        *,
        seconds: int,
        idle_seconds: int,
    ) -> None:
        self._session = session
        self.unit = unit
        self._audit = audit
        self._tokens = tokens
        self._now = now
        self._lifetime = timedelta(seconds=seconds)
        self._idle = timedelta(seconds=idle_seconds)
        self._touches_from = datetime.min.replace(tzinfo=UTC)

    def open(self, user_id: str, amr: tuple[str, ...], client: ClientInfo, *, step: str = AUTHENTICATED) -> Grant:
        """Start a session. Its id is never the client's to choose."""
        now = self._now()
        session = Session(
            id=new_id(),
            user_id=user_id,
            address=client.address,
            network=client.network,
            user_agent=client.user_agent,
            step=step,
            amr=" ".join(amr),
            key_id=self._tokens.active_key_id,
            generation=0,
            created_at=now,
            authenticated_at=now,
            refreshed_at=now,
            seen_at=now,
            expires_at=now + self._lifetime,
        )
        self._session.add(session)
        return self._grant(session)

    def bind_cookie(self, session_id: str) -> str:
        """Let a browser's cookie stand for a session whose user's row is held: what is to be in it from now on."""
        cookie = new_token()
        self._session.get_one(Session, session_id).cookie_digest = digest(cookie)
        return cookie

    def has_cookie(self, session_id: str, cookie: str) -> bool:
        """Whether this cookie still stands for this session."""
        same = select(Session.id).where(Session.id == session_id, Session.cookie_digest == digest(cookie))
        return self._session.scalar(same) is not None

    def has_seen(self, user_id: str, client: ClientInfo) -> bool:
        """Whether the user has signed in with this agent from this network before, as far as sessions are kept."""
        values = {"user": user_id, "agent": client.user_agent, "of_network": client.network}
        return execute(self._session, _SEEN, **values).scalar() is not None

    def _find_live(self, statement: Select[Any], **values: str) -> tuple[Identity, Account, datetime] | None:
        now = self._now()
        rows = self.unit.fetch(statement, values | {"now": now, "idle_since": now - self._idle})
        if not rows:
            return None
        user_id, external_id, username, email, mfa_enabled, _, session_id, since, amr, step, seen_at = tuple(rows[0])
        roles = frozenset(row.role for row in rows if row.role is not None)
        account = Account(username, email, mfa_enabled, roles, external_id)
        auth_time = int(since.timestamp())
        identity = Identity(user_id, username, session_id, auth_time, tuple(amr.split()), step, external_id)
        return identity, account, seen_at

    def find_account(self, identity: Identity) -> Account | None:
        """The account behind a token, or None if session or user have ended since. One SELECT, mostly."""
        found = self._find_live(_BY_ID, session_id=identity.session_id, user_id=identity.user_id)
        if found and self._is_unseen(found[2]):
            self._touch(Session.id == identity.session_id, seen_at=self._now())
        return found[1] if found else None

    def find_by_cookie(self, cookie: str) -> Found | None:
        """Who a browser's cookie stands for, and their account; None if session or user have ended since."""
        found = self._find_live(_BY_COOKIE, cookie_digest=digest(cookie))
        if found and self._is_unseen(found[2]):
            # A browser refreshes nothing: that it comes is what keeps its session from being idle.
            now = self._now()
            self._touch(Session.id == found[0].session_id, seen_at=now, refreshed_at=now)
        return found[:2] if found else None

    def _is_unseen(self, seen_at: datetime) -> bool:
        return seen_at <= self._now() - timedelta(seconds=SEEN_SECONDS)

    def _touch(self, which: ColumnElement[bool], **times: datetime) -> None:
        if self._now() < self._touches_from:
            return
        try:
            self._write_seen(which, times)
        except Unavailable:
            # A database that can only be read is no reason to turn somebody away, nor to wait for it each time.
            self._touches_from = self._now() + timedelta(seconds=SEEN_SECONDS)

    @unit_of_work
    def _write_seen(self, which: ColumnElement[bool], times: dict[str, datetime]) -> None:
        self._session.execute(update(Session).where(which).values(times))

    def find_step(self, token: RefreshToken) -> str | None:
        """The step of the live session that a genuine refresh token is of, whether or not it is the current one."""
        live = select(Session.step, Session.key_id).where(Session.id == token.session_id, self._is_live())
        row = self._session.execute(live).first()
        return row.step if row and self._tokens.is_genuine(token, row.key_id) else None

    def find_owner(self, token: RefreshToken) -> str | None:
        """Whose session a refresh token claims to be of; nothing is checked yet."""
        return self._session.scalar(select(Session.user_id).where(Session.id == token.session_id))

    def rotate(self, token: RefreshToken, client: ClientInfo) -> Grant:
        """Replace a refresh token. Raises InvalidRefreshToken, RefreshReused, SealBroken.

        The caller holds the row of the user, who is neither gone nor disabled.
        """
        # A session that is over is none, before its key is asked for: that may have been retired since.
        live = select(Session).where(Session.id == token.session_id, self._is_live())
        session = self._session.scalar(live, execution_options={"populate_existing": True})
        if session is None or not self._tokens.is_genuine(token, session.key_id):
            raise InvalidRefreshToken
        this = (Session.id == session.id, Session.generation == token.generation, self._is_live())
        now, following, key_id = self._now(), token.generation + 1, self._tokens.active_key_id
        if changes_one(
            self._session,
            update(Session).where(*this).values(generation=following, rotated_at=now, refreshed_at=now, key_id=key_id),
        ):
            self._audit.record(Event.SESSION_REFRESHED, client, user_id=session.user_id, session=session.id)
        else:
            self._ensure_just_replaced(session, token, client)
        self._session.refresh(session)
        return self._grant(session)

    def _ensure_just_replaced(self, session: Session, token: RefreshToken, client: ClientInfo) -> None:
        """Let the predecessor of the current token pass for ten seconds; end the session for any older one."""
        self._session.refresh(session)
        if not self.is_live(session.id, session.user_id) or token.generation >= session.generation:
            raise InvalidRefreshToken
        grace_ends = session.rotated_at and session.rotated_at + timedelta(seconds=GRACE_SECONDS)
        if token.generation == session.generation - 1 and grace_ends and self._now() < grace_ends:
            return
        self._end(Session.id == session.id)
        self._audit.record(Event.SESSION_REUSED, client, user_id=session.user_id, session=session.id)
        raise RefreshReused

    def is_live(self, session_id: str, user_id: str) -> bool:
        """Whether this session of this user has not ended."""
        live = select(Session.id).where(Session.id == session_id, Session.user_id == user_id, self._is_live())
        return self._session.scalar(live) is not None

    def authenticate_again(self, session_id: str, amr: tuple[str, ...]) -> Grant:
        """Note that the second factor was shown again in a session that is live, and whose user's row is held."""
        session = self._session.get_one(Session, session_id)
        session.authenticated_at, session.amr = self._now(), " ".join(amr)
        return self._grant(session)

    @reading
    def list(self, user_id: str, cursor: str | None) -> tuple[Sequence[Session], str | None]:
        """A page of a user's live sessions, newest first, and the cursor of the next page."""
        return page(
            self._session,
            select(Session).where(Session.user_id == user_id, self._is_live()),
            Session.created_at,
            Session.id,
            cursor,
        )

    def count(self, user_id: str) -> int:
        """How many live sessions a user has."""
        live = select(func.count(Session.id)).where(Session.user_id == user_id, self._is_live())
        return self._session.scalar(live) or 0

    def count_under(self, key_id: str) -> int:
        """How many live sessions have refresh tokens that are derived from this key."""
        live = select(func.count(Session.id)).where(Session.key_id == key_id, self._is_live())
        return self._session.scalar(live) or 0

    @unit_of_work
    def revoke(self, user_id: str, session_id: str, client: ClientInfo) -> None:
        """End one session. Raises NotFound if the user has no such live session."""
        if not is_id(session_id) or not self._end(
            and_(Session.user_id == user_id, Session.id == session_id, self._is_live())
        ):
            raise NotFound
        self._audit.record(Event.SESSION_ENDED, client, user_id=user_id, session=session_id)

    def end(self, session_id: str) -> None:
        """End a session whose user's row is held."""
        self._end(Session.id == session_id)

    def revoke_all(self, user_id: str, *, keep: str = "") -> None:
        """End every session of a user but the one to `keep`."""
        self._end(and_(Session.user_id == user_id, Session.id != keep))

    def revoke_weak(self, user_id: str) -> None:
        """End the sessions of a user in which no second factor was shown."""
        self._end(and_(Session.user_id == user_id, ~Session.amr.contains("mfa")))

    def _end(self, which: ColumnElement[bool]) -> int:
        ending = update(Session).where(which, Session.revoked_at.is_(None)).values(revoked_at=self._now())
        return rows_changed(self._session, ending)

    def _grant(self, session: Session) -> Grant:
        token = self._tokens.derive(session.id, session.generation, session.key_id)
        return Grant(session.id, session.step, tuple(session.amr.split()), session.authenticated_at, token)

    def _is_live(self) -> ColumnElement[bool]:
        now = self._now()
        is_fresh = and_(Session.expires_at > now, Session.refreshed_at > now - self._idle)
        return and_(Session.revoked_at.is_(None), is_fresh)
