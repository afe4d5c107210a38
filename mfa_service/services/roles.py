"""Roles: names on users. `admin` opens the admin routes; what others mean is the operator's affair."""

import re
from collections.abc import Collection, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.errors import InvalidRequest, LastAdministrator
from mfa_service.models import User, UserRole
from mfa_service.services.users import has_factor

ADMIN = "admin"
#: Roles that one user may have.
MAX_ROLES = 32
_NAME = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)


class Roles:
    """Reads and writes the roles of users."""

    def __init__(self, session: scoped_session[Session]) -> None:
        self._session = session

    def of(self, user_id: str) -> tuple[str, ...]:
        """The roles of a user, by name."""
        theirs = select(UserRole.role).where(UserRole.user_id == user_id).order_by(UserRole.role)
        return tuple(self._session.scalars(theirs))

    def of_all(self, user_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The roles of each of these users that has any."""
        theirs = select(UserRole.user_id, UserRole.role).where(UserRole.user_id.in_(user_ids)).order_by(UserRole.role)
        found: dict[str, tuple[str, ...]] = {}
        for user_id, role in self._session.execute(theirs):
            found[user_id] = (*found.get(user_id, ()), role)
        return found

    def has(self, user_id: str, role: str) -> bool:
        """Whether a user has a role now."""
        return self._session.get(UserRole, (user_id, role)) is not None

    def replace(self, user_id: str, roles: Collection[str]) -> None:
        """Give a user, whose row is held, exactly these roles."""
        self._session.execute(delete(UserRole).where(UserRole.user_id == user_id, UserRole.role.not_in(roles)))
        missing = sorted(set(roles) - set(self.of(user_id)))
        self._session.add_all(UserRole(user_id=user_id, role=role) for role in missing)

    def hold_administrators(self) -> tuple[str, ...]:
        """The ids of all who can administrate, held against other units: of two that would go last, one waits.

        Who has not enrolled a second factor can't yet, and counts only where nobody has.
        """
        held = (
            select(UserRole.user_id, has_factor())
            .join(User, User.id == UserRole.user_id)
            .where(UserRole.role == ADMIN, User.disabled_at.is_(None))
            .order_by(UserRole.user_id)
            .with_for_update()
        )
        found = self._session.execute(held).all()
        enrolled = tuple(user_id for user_id, is_able in found if is_able)
        return enrolled or tuple(user_id for user_id, _ in found)

    def ensure_another_administrator(self, user_id: str) -> None:
        """Raise LastAdministrator if this user is the only one who can administrate."""
        if self.hold_administrators() == (user_id,):
            raise LastAdministrator


def ensure_names(roles: Collection[str]) -> None:
    """Raise InvalidRequest unless these can be names of roles."""
    if len(roles) > MAX_ROLES or not all(_NAME.fullmatch(role) for role in roles):
        raise InvalidRequest(fields={"roles": f"must be at most {MAX_ROLES} names of a-z, 0-9, _ and -"})
