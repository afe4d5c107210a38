"""The rules of the service, and on this page who knows whom. Nothing here knows Flask."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Engine

from mfa_service.config import Settings
from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.signing import SharedSecret, SigningKeys
from mfa_service.crypto.tokens import Minter, Verifier
from mfa_service.crypto.vault import Vault
from mfa_service.errors import ConfigurationError
from mfa_service.services.accounts import Accounts
from mfa_service.services.audit import Audit
from mfa_service.services.challenges import Challenges
from mfa_service.services.database import engine_for, sessions_on
from mfa_service.services.hashing import Hashing
from mfa_service.services.health import Health
from mfa_service.services.login import Login
from mfa_service.services.sessions import Sessions
from mfa_service.services.totp import TOTP
from mfa_service.services.unit_of_work import UnitOfWork


class Services:
    """One service's object graph."""

    def __init__(self, settings: Settings, engine: Engine, clock: Callable[[], float]) -> None:
        """`engine` is the host's; `clock` gives Unix seconds. Raises ConfigurationError for keys that don't do."""

        def now() -> datetime:
            return datetime.fromtimestamp(clock(), UTC)

        keyring, self.keys = load_keys(settings)
        vault = Vault(keyring)
        self.settings = settings
        self.clock = clock
        self.engine = engine_for(engine)
        self.session = sessions_on(self.engine)
        self.audit = Audit(self.session, now)
        self.unit = UnitOfWork(self.session, self.audit.publish)
        self.verifier = Verifier(self.keys, issuer=settings.public_url, audience=settings.public_url)
        self.minter = Minter(self.keys, issuer=settings.public_url, audiences=settings.audiences)
        self.hashing = Hashing(settings.hashing_threads, settings.hashing_queue)
        self.health = Health(self.session, self.unit, vault)
        self.challenges = Challenges(self.session, self.audit, now)
        self.sessions = Sessions(self.session, self.unit, now)
        self.totp = TOTP(self.session, self.audit, vault, now, issuer=settings.totp_issuer, window=settings.totp_window)
        self.accounts = Accounts(self.session, self.unit, self.audit, vault, self.hashing, self.totp, settings, now)
        self.login = Login(
            self.unit,
            self.audit,
            self.accounts,
            self.challenges,
            self.totp,
            self.sessions,
            self.minter,
            self.verifier,
            now,
        )

    def close(self) -> None:
        """Let go of connections and threads, for commands and tests that outlive a service."""
        self.session.remove()
        self.engine.dispose()
        self.hashing.close()


def load_keys(settings: Settings) -> tuple[Keyring, SigningKeys | SharedSecret]:
    """Read the keyring and the signing keys. Raises ConfigurationError with what is wrong with either."""
    problems: list[str] = []
    try:
        keyring = Keyring.parse(settings.keys) if settings.keys else Keyring.load(settings.keyring_file)
    except ConfigurationError as error:
        problems += error.problems
    try:
        secret = settings.jwt_secret
        keys = SharedSecret(secret) if secret else SigningKeys.load(settings.signing_folder)
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return keyring, keys
