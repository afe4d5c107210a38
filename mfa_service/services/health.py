"""Whether the service can do its work: is the database there, and is the keyring the one it was sealed with?"""

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.vault import Vault
from mfa_service.errors import ConfigurationError, SealBroken, Unavailable
from mfa_service.models import Canary
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work

_CONTEXT = "mfa_canaries.sealed_value:1"
_VALUE = b"tweet"


class Health:
    """Checks that are made at start and by `/readyz`."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork, vault: Vault) -> None:
        self._session = session
        self.unit = unit
        self._vault = vault

    def is_database_up(self) -> bool:
        """Whether the database answers and has our tables."""
        try:
            return self._answers()
        except Unavailable:
            return False

    @reading
    def _answers(self) -> bool:
        self._session.execute(select(Canary.id))
        return True

    def ensure_keyring(self) -> None:
        """Open the canary, or leave one where there is none. Raises ConfigurationError for the wrong keyring.

        A database that is down or not migrated yet is not judged: `/readyz` says so, and requests get 503.
        """
        try:
            self._open_canary()
        except SealBroken:
            raise ConfigurationError(["the keyring is not the one this database was sealed with"]) from None
        except IntegrityError:
            self.ensure_keyring()  # another worker was faster and left its own
        except Unavailable:
            return

    @unit_of_work
    def _open_canary(self) -> None:
        canary = self._session.get(Canary, 1)
        if canary:
            self._vault.open(canary.sealed_value, _CONTEXT)
        else:
            self._session.add(Canary(id=1, sealed_value=self._vault.seal(_VALUE, _CONTEXT)))
