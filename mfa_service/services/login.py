"""Signing in: a password opens a challenge, a code closes it and opens a session. There is no other way to one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.tokens import ACCESS_SECONDS, PENDING_SECONDS, AnotherKind, Identity, Minter, Pending, Verifier
from mfa_service.errors import FactorExists, InvalidPendingToken, InvalidToken, MFAError, WrongStep
from mfa_service.models import User
from mfa_service.services.accounts import Accounts, Verdict
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.challenges import Challenges
from mfa_service.services.sessions import Sessions
from mfa_service.services.totp import TOTP, Enrolment
from mfa_service.services.unit_of_work import UnitOfWork, unit_of_work


@dataclass(frozen=True)
class MFAPending:
    """The password was right; a second factor is still to come. `methods` are those the account has."""

    token: str = field(repr=False)
    methods: tuple[str, ...]
    expires_in: int = PENDING_SECONDS


@dataclass(frozen=True)
class SignedIn:
    """Both factors were right."""

    access_token: str = field(repr=False)
    username: str
    email: str
    expires_in: int = ACCESS_SECONDS


class Login:
    """Begins and completes sign-ins."""

    def __init__(
        self,
        unit: UnitOfWork,
        audit: Audit,
        accounts: Accounts,
        challenges: Challenges,
        totp: TOTP,
        sessions: Sessions,
        minter: Minter,
        verifier: Verifier,
        now: Callable[[], datetime],
    ) -> None:
        self.unit = unit
        self._audit = audit
        self._accounts = accounts
        self._challenges = challenges
        self._totp = totp
        self._sessions = sessions
        self._minter = minter
        self._verifier = verifier
        self._now = now

    def begin(self, username: str, password: str, client: ClientInfo) -> MFAPending:
        """Check a password. Raises InvalidCredentials, Busy, SealBroken."""
        return self._open_challenge(self._accounts.check_password(username, password, client), client)

    @unit_of_work
    def _open_challenge(self, verdict: Verdict, client: ClientInfo) -> MFAPending:
        user = self._accounts.settle(verdict, client)
        challenge_id, now = self._challenges.open(user.id), self._now().timestamp()
        token = self._minter.pending(user_id=user.id, username=user.username, challenge_id=challenge_id, now=now)
        return MFAPending(token, ("totp",) if self._totp.is_confirmed(user.id) else ())

    @unit_of_work
    def complete(self, token: str, code: str, client: ClientInfo) -> SignedIn:
        """Check a code for a pending token. Raises InvalidPendingToken, WrongStep, InvalidCode, SealBroken.

        The secret is opened first, so that a 503 spends nothing; then the attempt is spent; then the code is
        looked at. A refusal commits what it spent.
        """
        pending, user = self._waiting(token, client)
        held = self._totp.find_open(user.id, client)
        self._challenges.attempt(pending, client)
        self._totp.claim(held, code, client, user_id=user.id)
        self._challenges.close(pending, client)
        return self._sign_in(user, client)

    @unit_of_work
    def enrol(self, token: str, client: ClientInfo) -> Enrolment:
        """A new authenticator for an account that never had one.

        Raises InvalidPendingToken, WrongStep, FactorExists.
        """
        pending, user = self._waiting(token, client)
        self._challenges.ensure_open(pending, client)
        if self._totp.is_confirmed(user.id):
            self._audit.record(Event.ENROLMENT_REFUSED, client, user_id=user.id)
            raise FactorExists
        self._audit.record(Event.FACTOR_ENROLLED, client, user_id=user.id, factor="totp")
        return self._totp.enrol(user.id, user.username)

    def _waiting(self, token: str, client: ClientInfo) -> tuple[Pending, User]:
        """Who waits behind a pending token; the user comes from its signature alone."""
        try:
            pending = self._verifier.pending(token, now=self._now().timestamp())
        except AnotherKind:
            self._refuse(WrongStep(), client)
        except InvalidToken:
            self._refuse(InvalidPendingToken(), client)
        user = self._accounts.find_active(pending.user_id)
        return (pending, user) if user else self._refuse(InvalidPendingToken(), client, pending.user_id)

    def _refuse(self, refusal: MFAError, client: ClientInfo, user_id: str | None = None) -> NoReturn:
        self._audit.record(Event.CHALLENGE_REFUSED, client, user_id=user_id, reason=refusal.code)
        raise refusal

    def _sign_in(self, user: User, client: ClientInfo) -> SignedIn:
        now = self._now().timestamp()
        session_id = self._sessions.open(user.id, client)
        identity = Identity(user.id, user.username, session_id, int(now), ("pwd", "otp", "mfa"))
        self._audit.record(Event.LOGIN_COMPLETED, client, user_id=user.id, session=session_id, amr=identity.amr)
        token = self._minter.access(identity, token_id=new_id(), now=now)
        return SignedIn(token, user.username, user.email)
