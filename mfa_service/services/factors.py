"""Second factors: the one place that looks at a code, whatever it is for, and counts it.

Verify, step-up and confirmation share the counters of `lockout.py`, by account and factor. A recovery code stands in
for an authenticator that is lost or disabled; it never replaces the password.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NoReturn

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import InvalidCode, InvalidRecoveryCode, InvalidToken, MFAError, NothingToConfirm
from mfa_service.models import User
from mfa_service.services import lockout
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.challenges import Challenges
from mfa_service.services.devices import Devices
from mfa_service.services.lockout import Lockout, Subject
from mfa_service.services.policy import Mode, Policy
from mfa_service.services.recovery_codes import RecoveryCodes
from mfa_service.services.roles import Roles
from mfa_service.services.sessions import Sessions
from mfa_service.services.totp import TOTP, Enrolment, OpenSecret
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import Users


@dataclass(frozen=True)
class Proof:
    """What a user shows for a second factor."""

    method: Literal["totp", "recovery_code"]
    value: str = field(repr=False)


@dataclass(frozen=True)
class Verified:
    """A proof was right. `amr` (RFC 8176) says how; the codes are there when it was the account's first."""

    amr: tuple[str, ...]
    recovery_codes: tuple[str, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Summary:
    """The factors of an account, for its owner."""

    methods: tuple[str, ...]
    recovery_codes_left: int
    roles: tuple[str, ...]
    policy: Mode
    is_required: bool
    deadline: datetime | None


@dataclass(frozen=True)
class Factors:
    """Verifies, replaces and removes second factors."""

    unit: UnitOfWork
    audit: Audit
    users: Users
    roles: Roles
    locks: Lockout
    totp: TOTP
    recovery_codes: RecoveryCodes
    challenges: Challenges
    sessions: Sessions
    devices: Devices
    policy: Policy
    now: Callable[[], datetime]

    def methods_of(self, user_id: str) -> tuple[str, ...]:
        """The second factors that an account has; empty until the first is confirmed."""
        if not self.totp.is_confirmed(user_id):
            return ()
        return ("totp", "recovery_code") if self.recovery_codes.remaining(user_id) else ("totp",)

    @reading
    def summary(self, user_id: str) -> Summary:
        """What a user may know of their own factors."""
        return Summary(
            methods=self.methods_of(user_id),
            recovery_codes_left=self.recovery_codes.remaining(user_id),
            roles=self.roles.of(user_id),
            policy=self.policy.read().mode,
            is_required=self.policy.find_deadline(user_id) is not None,
            deadline=self.policy.find_date(user_id),
        )

    def prepare(self, user_id: str, proof: Proof, client: ClientInfo) -> OpenSecret | None:
        """Open what the proof is compared with, before anything is spent. Raises SealBroken."""
        return self.totp.find_open(user_id, client) if proof.method == "totp" else None

    def verify(self, user: User, proof: Proof, held: OpenSecret | None, client: ClientInfo) -> Verified:
        """Look at a proof; `held` is from `prepare`. Raises InvalidCode, InvalidRecoveryCode, both counted."""
        if proof.method == "recovery_code":
            return self._redeem(user, proof.value, client)
        step = self._matching_step(user, held, proof.value, client)
        if held is None or not self.totp.claim(held, step):
            self._refuse(user, lockout.TOTP, Event.CODE_REPLAYED, client)
        self.locks.passed(user.id, lockout.TOTP)
        return Verified(("otp",), None if held.is_confirmed else self._first_factor(user, client))

    @unit_of_work
    def replace(self, identity: Identity, client: ClientInfo) -> Enrolment:
        """Begin to replace the authenticator; the old one works until the new one is confirmed."""
        user = self._get_active(identity)
        self.audit.record(Event.FACTOR_ENROLLED, client, user_id=user.id, factor="totp")
        return self.totp.enrol(user.id, user.username)

    @unit_of_work
    def confirm_replacement(self, identity: Identity, code: str, client: ClientInfo) -> None:
        """Put the new authenticator in place of the old one. Raises NothingToConfirm, InvalidCode, SealBroken."""
        user = self._get_active(identity)
        held = self.totp.find_replacement(user.id, client)
        if held is None:
            raise NothingToConfirm
        step = self._matching_step(user, held, code, client)
        self.totp.forget_confirmed(user.id)
        self.totp.claim(held, step)
        self.locks.passed(user.id, lockout.TOTP)
        self.audit.record(Event.FACTOR_REPLACED, client, user_id=user.id, factor="totp")
        self._forget_trust(user.id)
        self.sessions.revoke_weak(user.id)

    @unit_of_work
    def renew_recovery_codes(self, identity: Identity, client: ClientInfo) -> tuple[str, ...]:
        """Ten new recovery codes; the old ones are dead."""
        user = self._get_active(identity)
        self.locks.passed(user.id, lockout.RECOVERY_CODES)
        self.audit.record(Event.RECOVERY_CODES_ISSUED, client, user_id=user.id)
        return self.recovery_codes.issue(user.id)

    @unit_of_work
    def remove(self, identity: Identity, client: ClientInfo) -> None:
        """Go without a second factor, where policy lets; all that rested on it ends. Raises MFARequired.

        The account is as if it had never had one: its owner, with the factor in hand, has said so.
        """
        user = self._get_active(identity)
        self.policy.ensure_may_go_without(user.id, self.roles.of(user.id))
        self.totp.forget_all(user.id)
        self.recovery_codes.forget_all(user.id)
        self.locks.passed(user.id, *lockout.FACTORS)
        user.had_factor_at = None
        self._forget_trust(user.id)
        self.sessions.revoke_all(user.id)
        self.audit.record(Event.FACTOR_REMOVED, client, user_id=user.id)

    def _redeem(self, user: User, code: str, client: ClientInfo) -> Verified:
        if not self.locks.attempt(user.id, lockout.RECOVERY_CODES):
            self._refuse_unseen(user, Event.RECOVERY_CODE_REFUSED, InvalidRecoveryCode(), client)
        if not self.recovery_codes.redeem(user.id, code):
            self._refuse(user, lockout.RECOVERY_CODES, Event.RECOVERY_CODE_REFUSED, client)
        if self.locks.is_disabled(user.id, lockout.TOTP):
            self.audit.record(Event.FACTOR_REENABLED, client, user_id=user.id, factor="totp")
            self.locks.passed(user.id, lockout.TOTP)
        self.locks.passed(user.id, lockout.RECOVERY_CODES)
        left = self.recovery_codes.remaining(user.id)
        self.audit.record(Event.RECOVERY_CODE_USED, client, user_id=user.id, left=left)
        return Verified(("recovery",))

    def _matching_step(self, user: User, held: OpenSecret | None, code: str, client: ClientInfo) -> int:
        if not self.locks.attempt(user.id, lockout.TOTP):
            self._refuse_unseen(user, Event.CODE_REFUSED, InvalidCode(), client)
        step = self.totp.matching_step(held, code) if held else None
        return self._refuse(user, lockout.TOTP, Event.CODE_REFUSED, client) if step is None else step

    def _refuse(self, user: User, subject: Subject, event: Event, client: ClientInfo) -> NoReturn:
        self.audit.record(event, client, user_id=user.id, factor=subject.name)
        if self.locks.failed(user.id, subject, client):
            self.challenges.close_all(user.id)
        raise InvalidCode if subject is lockout.TOTP else InvalidRecoveryCode

    def _refuse_unseen(self, user: User, event: Event, refusal: MFAError, client: ClientInfo) -> NoReturn:
        self.audit.record(event, client, user_id=user.id, locked=True)
        raise refusal

    def _first_factor(self, user: User, client: ClientInfo) -> tuple[str, ...]:
        user.had_factor_at = user.had_factor_at or self.now()
        self.sessions.revoke_weak(user.id)
        self.audit.record(Event.FACTOR_CONFIRMED, client, user_id=user.id, factor="totp")
        self.audit.record(Event.RECOVERY_CODES_ISSUED, client, user_id=user.id)
        return self.recovery_codes.issue(user.id)

    def _forget_trust(self, user_id: str) -> None:
        self.devices.forget_all(user_id)
        self.challenges.close_all(user_id)

    def _get_active(self, identity: Identity) -> User:
        """The user, held. Asked again here: the session may have ended since the guard looked."""
        user = self.users.find_active(identity.user_id)
        if user is None or not self.sessions.is_live(identity.session_id, user.id):
            raise InvalidToken
        return user
