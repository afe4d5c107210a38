"""Whether the service can do its work: is the database there, and is the keyring the one it was sealed with?"""

from sqlalchemy import false, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.vault import Vault
from mfa_service.errors import ConfigurationError, SealBroken, Unavailable
from mfa_service.models import Canary
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work

_VALUE = b"tweet"


class Health:
    """Checks that are made at start, before the first request that needs keys, and by `/readyz`."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork, vault: Vault) -> None:
        self._session = session
        self.unit = unit
        self._vault = vault
        self._has_fitted = False

    def is_database_up(self) -> bool:
        """Whether the database answers and has our tables, and was sealed with this keyring."""
        try:
            self.ensure_keyring()
            return self._answers()
        except (Unavailable, ConfigurationError):
            return False

    @reading
    def _answers(self) -> bool:
        self._session.execute(select(Canary.id))
        return True

    def ensure_keyring(self, *, leaves_canary: bool = True) -> None:
        """Open the canary, or leave one where there is none; once it has opened, nothing is done any more.

        Raises ConfigurationError for the wrong keyring, and Unavailable where that can't be told yet.
        """
        if self._has_fitted:
            return
        try:
            if not self._opens_canary() and leaves_canary:
                self._ensure_left()
        except SealBroken:
            raise ConfigurationError(["the keyring is not the one this database was sealed with"]) from None
        self._has_fitted = True

    def _ensure_left(self) -> None:
        try:
            self._leave_canary()
        except IntegrityError:  # another worker was faster and left its own
            if not self._opens_canary():
                raise SealBroken from None

    @reading
    def is_sealed(self) -> bool:
        """Whether a keyring has left its mark in the database."""
        return self._session.get(Canary, 1) is not None

    @reading
    def _opens_canary(self) -> bool:
        canary = self._session.get(Canary, 1)
        return canary is not None and self._vault.open(canary.sealed_value, context_of(1)) == _VALUE

    @unit_of_work
    def _leave_canary(self) -> None:
        self._session.add(Canary(id=1, sealed_value=self._vault.seal(_VALUE, context_of(1))))

    @unit_of_work
    def ensure_writable(self) -> None:
        """Raise Unavailable where the database takes no changes."""
        self._session.execute(update(Canary).where(false()).values(id=1))


def context_of(canary_id: int) -> str:
    """What the canary is sealed for."""
    return f"mfa_canaries.sealed_value:{canary_id}"
