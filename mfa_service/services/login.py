"""Signing in: a password opens a challenge, a second factor closes it and opens a session. There is no other way.

In a host app the host has checked the password (`continue_for`); everything after it is the same.

A remembered device stands in for the second factor, and the token says so. Where policy lets an account without a
factor go without, its session has `step: password`, for as long as policy says so. Refreshing and stepping up
continue a session that was opened here; nothing but a second factor renews `auth_time`.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NoReturn

from mfa_service.crypto.opaque import RefreshToken, new_id, parse_refresh_token
from mfa_service.crypto.tokens import (
    ACCESS_SECONDS,
    AUTHENTICATED,
    PASSWORD,
    PENDING_SECONDS,
    AnotherKind,
    Identity,
    Minter,
    Pending,
    Verifier,
)
from mfa_service.errors import (
    FactorExists,
    FullAuthenticationRequired,
    InvalidPendingToken,
    InvalidRefreshToken,
    InvalidToken,
    MFAError,
    NotFound,
    NoToken,
    WrongStep,
)
from mfa_service.models import User
from mfa_service.services.accounts import Accounts, Verdict
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.challenges import Challenges
from mfa_service.services.devices import Devices
from mfa_service.services.factors import Factors, Proof
from mfa_service.services.links import ExternalId
from mfa_service.services.policy import Policy
from mfa_service.services.recovery_codes import FEW, RecoveryCodes
from mfa_service.services.sessions import Account, Found, Grant, Sessions
from mfa_service.services.tickets import Tickets
from mfa_service.services.totp import TOTP, Enrolment
from mfa_service.services.trust import Trust
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import Users


@dataclass(frozen=True)
class MFAPending:
    """The password was right; a second factor is still to come. `methods` are those the account has."""

    token: str = field(repr=False)
    methods: tuple[str, ...]
    user_id: str
    expires_in: int = PENDING_SECONDS


@dataclass(frozen=True)
class Remember:
    """A wish to have this device remembered, under a name that its user knows it by."""

    name: str = ""


@dataclass(frozen=True)
class SignedIn:
    """Somebody is let in. What is shown once (codes, device token) is None when there is nothing to show.

    `cookie` stands for the session in a browser that asked for one; the tokens are not for browsers.
    """

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    username: str
    email: str
    expires_in: int = ACCESS_SECONDS
    recovery_codes: tuple[str, ...] | None = field(default=None, repr=False)
    recovery_codes_left: int | None = None
    device_token: str | None = field(default=None, repr=False)
    cookie: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PasswordOnly(SignedIn):
    """Policy lets this account go without a second factor, until `deadline` if there is one.

    It is signed in with `step: password`, and may enrol at any time with the pending token.
    """

    pending: MFAPending | None = None
    deadline: datetime | None = None


@dataclass(frozen=True)
class Waiting:
    """Whose password was right, and the second factors they have."""

    user_id: str
    external_id: str | None
    methods: tuple[str, ...]


#: What a right password leads to.
Admission = MFAPending | SignedIn


@dataclass(frozen=True)
class Login:
    """Begins, completes, continues and ends sign-ins."""

    unit: UnitOfWork
    audit: Audit
    users: Users
    accounts: Accounts
    factors: Factors
    challenges: Challenges
    totp: TOTP
    recovery_codes: RecoveryCodes
    tickets: Tickets
    policy: Policy
    devices: Devices
    sessions: Sessions
    trust: Trust
    minter: Minter
    verifier: Verifier
    now: Callable[[], datetime]

    def begin(
        self,
        username: str,
        password: str,
        client: ClientInfo,
        device_token: str | None = None,
        *,
        wants_cookie: bool = False,
    ) -> Admission:
        """Check a password; with a remembered device, or where policy asks for no more, that is enough.

        Raises InvalidCredentials, Busy, SealBroken.
        """
        verdict = self.accounts.check_password(username, password, client)
        admission = self._admit(verdict, device_token, client, wants_cookie)
        self.accounts.renew_hash(verdict, password, client)
        return admission

    @unit_of_work
    def continue_for(
        self,
        external_id: ExternalId,
        *,
        username: str,
        email: str = "",
        client: ClientInfo | None = None,
        device_token: str | None = None,
        wants_cookie: bool = False,
    ) -> Admission:
        """Go on for a user of the host, whose password the host has just found right.

        `username` is a label; `client` is where the request came from (`MFA.client`). Raises ValueError for an id
        that is none, InvalidRequest for a name that is none, InvalidCredentials for an account that is disabled here.
        Gives MFAPending, or SignedIn on a remembered device; a SignedIn that is PasswordOnly where policy lets the
        account go without a second factor.
        """
        client = client or ClientInfo()
        user = self.accounts.link(external_id, username, email, client)
        return self._ask(user, device_token, client, wants_cookie)

    @unit_of_work
    def _admit(self, verdict: Verdict, device_token: str | None, client: ClientInfo, wants_cookie: bool) -> Admission:
        user_id = verdict.stored.user_id if verdict.stored else ""
        is_trusted = self.devices.recognises(user_id, device_token)
        user = self.accounts.settle(verdict, client, is_trusted=is_trusted)
        # Asked again now that the user's row is held: a device forgotten meanwhile is not let in.
        return self._ask(user, device_token if is_trusted else None, client, wants_cookie)

    def _ask(self, user: User, device_token: str | None, client: ClientInfo, wants_cookie: bool) -> Admission:
        """What is still wanted of somebody whose password was right."""
        if device_token and self.devices.use(user.id, device_token):
            return self._sign_in(user, ("pwd",), client, wants_cookie=wants_cookie)
        challenge_id, now = self.challenges.open(user.id), self.now()
        token = self.minter.pending(
            user_id=user.id, username=user.username, challenge_id=challenge_id, now=now.timestamp()
        )
        pending = MFAPending(token, self.factors.methods_of(user.id), user.id)
        if pending.methods or user.had_factor_at is not None:
            return pending
        deadline = self.policy.find_deadline(user.id, starts=True)
        if deadline is not None and deadline <= now:
            return pending
        signed_in = self._sign_in(user, ("pwd",), client, step=PASSWORD, wants_cookie=wants_cookie)
        return PasswordOnly(**vars(signed_in), pending=pending, deadline=deadline)

    @reading
    def find_waiting(self, token: str) -> Waiting | None:
        """Who waits behind a pending token, for showing the right form; None for a token that is no longer good."""
        try:
            pending = self.verifier.pending(token, now=self.now().timestamp())
        except MFAError:
            return None
        user = self.users.find_unheld(pending.user_id)
        if user is None or user.disabled_at is not None or not self.challenges.is_open(pending):
            return None
        return Waiting(user.id, user.external_id, self.factors.methods_of(user.id))

    @unit_of_work
    def complete(
        self,
        token: str,
        proof: Proof,
        client: ClientInfo,
        remember: Remember | None = None,
        *,
        wants_cookie: bool = False,
    ) -> SignedIn:
        """Check a second factor for a pending token.

        The secret is opened first, so that a 503 spends nothing; then the attempt is spent; then the proof is
        looked at. A refusal commits what it spent.
        Raises InvalidPendingToken, WrongStep, InvalidCode, InvalidRecoveryCode, SealBroken.
        """
        pending, user = self._waiting(token, client)
        held = self.factors.prepare(user.id, proof, client)
        self.challenges.attempt(pending, client)
        verified = self.factors.verify(user, proof, held, client)
        self.challenges.close(pending, client)
        device_token = self.devices.trust(user.id, remember.name, client) if remember else None
        amr, was_recovered = ("pwd", *verified.amr, "mfa"), verified.amr == ("recovery",)
        signed_in = self._sign_in(user, amr, client, was_recovered=was_recovered, wants_cookie=wants_cookie)
        return replace(signed_in, recovery_codes=verified.recovery_codes, device_token=device_token)

    @unit_of_work
    def enrol(self, token: str, client: ClientInfo, ticket: str | None = None) -> Enrolment:
        """A new authenticator for an account that never had one, or whose factors an administrator has reset.

        `ticket` is from the reset, and good once. Raises InvalidPendingToken, WrongStep, FactorExists.
        """
        pending, user = self._waiting(token, client)
        self.challenges.ensure_open(pending, client)
        if self.totp.is_confirmed(user.id) or (user.had_factor_at and not self.tickets.redeem(user.id, ticket)):
            self.audit.record(Event.ENROLMENT_REFUSED, client, user_id=user.id)
            raise FactorExists
        if user.had_factor_at:
            self.audit.record(Event.TICKET_USED, client, user_id=user.id)
        self.audit.record(Event.FACTOR_ENROLLED, client, user_id=user.id, factor="totp")
        return self.totp.enrol(user.id, user.username)

    @unit_of_work
    def refresh(self, refresh_token: str, client: ClientInfo) -> SignedIn:
        """Replace a refresh token, and mint an access token for the user as they are now.

        Neither renews `auth_time` nor raises `amr`. Raises InvalidRefreshToken, RefreshReused, SealBroken.
        """
        owner = None
        try:
            token = parse_refresh_token(refresh_token)
            owner = self.sessions.find_owner(token)
            user = self.users.find_active(owner or "")
            if user is None:
                raise InvalidRefreshToken
            self._ensure_password_is_enough(token, user)
            grant = self.sessions.rotate(token, client)
        except InvalidRefreshToken:
            self.audit.record(Event.REFRESH_REFUSED, client, user_id=owner)
            raise
        user.seen_at = self.now()
        return self._tokens(user, grant)

    def find_account(self, identity: Identity) -> Account | None:
        """The account behind an access token, or None if session or user have ended since.

        A session without a second factor is over, too, as soon as policy asks for one.
        """
        account = self.sessions.find_account(identity)
        return None if account is None or self._is_over(identity) else account

    def find_by_cookie(self, cookie: str) -> Found | None:
        """Who a browser's cookie stands for, and their account; None as with a token."""
        found = self.sessions.find_by_cookie(cookie)
        return None if found is None or self._is_over(found[0]) else found

    def _is_over(self, identity: Identity) -> bool:
        return identity.step == PASSWORD and self._is_due(identity.user_id)

    @reading
    def _is_due(self, user_id: str) -> bool:
        return self.policy.is_due(user_id)

    @unit_of_work
    def step_up(self, identity: Identity, proof: Proof, client: ClientInfo, cookie: str | None = None) -> SignedIn:
        """Show the second factor again, in the same session.

        A session of a password alone has none to show again: its owner signs in anew, for the first one.
        The `cookie` that stands for it is replaced in the same unit: whoever has copied it is left behind. Of two
        that come with the same one the second is refused before its proof is looked at.
        Raises FullAuthenticationRequired, InvalidToken, NoToken, InvalidCode, InvalidRecoveryCode.
        """
        if not identity.is_complete:
            raise FullAuthenticationRequired
        user = self.users.find_active(identity.user_id)
        if user is None or not self.sessions.is_live(identity.session_id, user.id):
            raise InvalidToken
        if cookie is not None and not self.sessions.has_cookie(identity.session_id, cookie):
            raise NoToken
        held = self.factors.prepare(user.id, proof, client)
        verified = self.factors.verify(user, proof, held, client)
        grant = self.sessions.authenticate_again(identity.session_id, ("pwd", *verified.amr, "mfa"))
        self.audit.record(Event.STEP_UP_COMPLETED, client, user_id=user.id, session=grant.session_id, amr=grant.amr)
        fresh_cookie = self.sessions.bind_cookie(grant.session_id) if cookie is not None else None
        return replace(self._tokens(user, grant), cookie=fresh_cookie)

    @unit_of_work
    def sign_out(self, identity: Identity, client: ClientInfo, *, everywhere: bool) -> None:
        """End this session, or all of the user's, and with them remembered devices and pending tokens."""
        if not everywhere:
            with suppress(NotFound):  # another request was faster: it has ended all the same
                self.sessions.revoke(identity.user_id, identity.session_id, client)
            return
        self.users.find(identity.user_id)
        self.trust.end(identity.user_id)
        self.audit.record(Event.SESSIONS_ENDED, client, user_id=identity.user_id)

    def _ensure_password_is_enough(self, token: RefreshToken, user: User) -> None:
        """End a session that was opened with a password alone, once policy asks this user for more."""
        if self.sessions.find_step(token) == PASSWORD and self.policy.is_due(user.id):
            self.sessions.end(token.session_id)
            raise InvalidRefreshToken

    def _waiting(self, token: str, client: ClientInfo) -> tuple[Pending, User]:
        """Who waits behind a pending token; the user comes from its signature alone."""
        try:
            pending = self.verifier.pending(token, now=self.now().timestamp())
        except AnotherKind:
            self._refuse(WrongStep(), client)
        except InvalidToken:
            self._refuse(InvalidPendingToken(), client)
        user = self.users.find_active(pending.user_id)
        return (pending, user) if user else self._refuse(InvalidPendingToken(), client, pending.user_id)

    def _refuse(self, refusal: MFAError, client: ClientInfo, user_id: str | None = None) -> NoReturn:
        self.audit.record(Event.CHALLENGE_REFUSED, client, user_id=user_id, reason=refusal.code)
        raise refusal

    def _sign_in(
        self,
        user: User,
        amr: tuple[str, ...],
        client: ClientInfo,
        *,
        was_recovered: bool = False,
        step: str = AUTHENTICATED,
        wants_cookie: bool = False,
    ) -> SignedIn:
        is_new = not self.sessions.has_seen(user.id, client)
        left = self.recovery_codes.remaining(user.id)
        user.seen_at = self.now()
        grant = self.sessions.open(user.id, amr, client, step=step)
        self.audit.record(
            Event.LOGIN_COMPLETED, client, user_id=user.id, session=grant.session_id, amr=amr, new_client=is_new
        )
        is_told = step == AUTHENTICATED and (was_recovered or left < FEW)
        cookie = self.sessions.bind_cookie(grant.session_id) if wants_cookie else None
        return replace(self._tokens(user, grant), recovery_codes_left=left if is_told else None, cookie=cookie)

    def _tokens(self, user: User, grant: Grant) -> SignedIn:
        auth_time = int(grant.authenticated_at.timestamp())
        session = grant.session_id, auth_time, grant.amr, grant.step
        identity = Identity(user.id, user.username, *session, user.external_id)
        access_token = self.minter.access(identity, token_id=new_id(), now=self.now().timestamp())
        return SignedIn(access_token, grant.refresh_token, user.username, user.email)
