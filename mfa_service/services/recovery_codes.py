"""Recovery codes of users: ten at a time, shown once, each redeemed by one conditional UPDATE."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto import recovery
from mfa_service.models import RecoveryCode
from mfa_service.services.database import changes_one, execute

#: Fewer than this, and the user is told at every sign-in.
FEW = 4


_UNUSED = select(func.count()).where(RecoveryCode.user_id == bindparam("user"), RecoveryCode.used_at.is_(None))


class RecoveryCodes:
    """Issues and redeems recovery codes."""

    def __init__(self, session: scoped_session[Session], now: Callable[[], datetime]) -> None:
        self._session = session
        self._now = now

    def issue(self, user_id: str) -> tuple[str, ...]:
        """Ten new codes; all older ones are dead from the same moment on."""
        self.forget_all(user_id)
        codes, now = recovery.new_codes(), self._now()
        digests = map(recovery.digest, codes)
        self._session.add_all(RecoveryCode(user_id=user_id, digest=digest, created_at=now) for digest in digests)
        return codes

    def redeem(self, user_id: str, code: str) -> bool:
        """Use a code up; False if it is wrong or was used before."""
        mine = (RecoveryCode.user_id == user_id, RecoveryCode.digest == recovery.digest(code))
        using = update(RecoveryCode).where(*mine, RecoveryCode.used_at.is_(None)).values(used_at=self._now())
        return changes_one(self._session, using)

    def remaining(self, user_id: str) -> int:
        """How many codes are left."""
        return execute(self._session, _UNUSED, user=user_id).scalar() or 0

    def forget_all(self, user_id: str) -> None:
        """Make every code of a user worthless."""
        self._session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
