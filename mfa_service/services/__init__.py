"""The rules of the service, and on this page who knows whom. Nothing here knows Flask."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Engine, Pool, QueuePool

from mfa_service.config import Settings
from mfa_service.crypto.chain import SealKeys
from mfa_service.crypto.keyring import Keys
from mfa_service.crypto.opaque import RefreshTokens
from mfa_service.crypto.signing import TokenKeys
from mfa_service.crypto.tokens import Minter, Verifier
from mfa_service.crypto.vault import Vault
from mfa_service.errors import ConfigurationError
from mfa_service.services.accounts import Accounts
from mfa_service.services.administration import Administration
from mfa_service.services.audit import Audit
from mfa_service.services.audit_log import AuditLog
from mfa_service.services.chain import Chain
from mfa_service.services.challenges import Challenges
from mfa_service.services.database import engine_for, look_after, sessions_on, single_on
from mfa_service.services.devices import Devices
from mfa_service.services.directory import Directory
from mfa_service.services.emergency import Emergency
from mfa_service.services.factors import Factors
from mfa_service.services.hashing import Hashing
from mfa_service.services.health import Health
from mfa_service.services.housekeeping import Housekeeping
from mfa_service.services.keyfiles import watch_keyring, watch_signing_keys
from mfa_service.services.links import Links
from mfa_service.services.lockout import Lockout
from mfa_service.services.login import Login
from mfa_service.services.notices import Notices
from mfa_service.services.people import People
from mfa_service.services.policy import Policy
from mfa_service.services.recovery_codes import RecoveryCodes
from mfa_service.services.roles import Roles
from mfa_service.services.rotation import Rotation
from mfa_service.services.seals import Seals
from mfa_service.services.sessions import Sessions
from mfa_service.services.tickets import Tickets
from mfa_service.services.timer import Timer
from mfa_service.services.totp import TOTP
from mfa_service.services.trust import Trust
from mfa_service.services.unit_of_work import UnitOfWork
from mfa_service.services.users import Users


class Services:
    """One service's object graph: what everything stands on, then the leaves, then the conductors."""

    def __init__(
        self, settings: Settings, engine: Engine, clock: Callable[[], float], *, borrows: bool = False
    ) -> None:
        """`clock` gives Unix seconds; `borrows`: the engine is a host's, and stays open when this is closed.

        Raises ConfigurationError for keys or an engine that don't do.
        """
        keyring, self.keys, seal_keys = load_keys(settings, clock)
        self.settings = settings
        self.clock = clock
        self.now = lambda: datetime.fromtimestamp(clock(), UTC)
        self.vault = Vault(keyring)
        self.refresh_tokens = RefreshTokens(keyring)
        self.minter = Minter(self.keys, issuer=settings.public_url, audiences=settings.audiences)
        self.verifier = Verifier(self.keys, issuer=settings.public_url, audience=settings.public_url)
        self.engine = engine_for(engine)
        self.single = single_on(self.engine)
        self.owns_engine = not borrows or self.engine is not engine
        if self.owns_engine:
            for each in self.engines:
                look_after(each)
        self.session = sessions_on(self.engine)
        self.audit = Audit(self.session, self.now)
        level = "READ COMMITTED" if borrows and engine.dialect.name == "postgresql" else None
        self.unit = UnitOfWork(self.session, self.single, self.audit.publish, isolation_level=level)
        self.hashing = Hashing(settings.hashing_threads, settings.hashing_queue)
        self._add_leaves(settings)
        self._add_conductors(settings)
        self._add_login()
        self._add_operations(settings, seal_keys)

    def _add_leaves(self, settings: Settings) -> None:
        session, unit, audit, now = self.session, self.unit, self.audit, self.now
        idle = settings.session_idle_seconds
        self.users = Users(session)
        self.links = Links(session, audit, self.users, now)
        self.roles = Roles(session)
        self.policy = Policy(session, unit, now)
        self.tickets = Tickets(session, now)
        self.locks = Lockout(session, audit, now)
        self.challenges = Challenges(session, audit, now)
        self.recovery_codes = RecoveryCodes(session, now)
        self.devices = Devices(session, unit, audit, now, seconds=settings.device_seconds)
        self.totp = TOTP(session, audit, self.vault, now, issuer=settings.totp_issuer, window=settings.totp_window)
        self.sessions = Sessions(
            session, unit, audit, self.refresh_tokens, now, seconds=settings.session_seconds, idle_seconds=idle
        )
        self.trust = Trust(self.sessions, self.devices, self.challenges)
        self.notices = Notices(session, unit, audit)
        self.health = Health(session, unit, self.vault)
        self.housekeeping = Housekeeping(session, unit, now, idle_seconds=idle)

    def _add_conductors(self, settings: Settings) -> None:
        self.factors = Factors(
            unit=self.unit,
            audit=self.audit,
            users=self.users,
            roles=self.roles,
            locks=self.locks,
            totp=self.totp,
            recovery_codes=self.recovery_codes,
            challenges=self.challenges,
            sessions=self.sessions,
            devices=self.devices,
            policy=self.policy,
            now=self.now,
        )
        self.accounts = Accounts(
            session=self.session,
            unit=self.unit,
            audit=self.audit,
            users=self.users,
            links=self.links,
            roles=self.roles,
            locks=self.locks,
            vault=self.vault,
            hashing=self.hashing,
            totp=self.totp,
            sessions=self.sessions,
            trust=self.trust,
            settings=settings,
            now=self.now,
        )

    def _add_login(self) -> None:
        self.login = Login(
            unit=self.unit,
            audit=self.audit,
            users=self.users,
            accounts=self.accounts,
            factors=self.factors,
            challenges=self.challenges,
            totp=self.totp,
            recovery_codes=self.recovery_codes,
            tickets=self.tickets,
            policy=self.policy,
            devices=self.devices,
            sessions=self.sessions,
            trust=self.trust,
            minter=self.minter,
            verifier=self.verifier,
            now=self.now,
        )

    def _add_operations(self, settings: Settings, seal_keys: SealKeys) -> None:
        session, unit, audit, now = self.session, self.unit, self.audit, self.now
        self.directory = Directory(session, unit, self.roles, self.policy, self.recovery_codes, self.sessions, now)
        self.administration = Administration(
            session=session,
            unit=unit,
            audit=audit,
            users=self.users,
            roles=self.roles,
            policy=self.policy,
            locks=self.locks,
            totp=self.totp,
            recovery_codes=self.recovery_codes,
            tickets=self.tickets,
            sessions=self.sessions,
            trust=self.trust,
            directory=self.directory,
            now=now,
        )
        self.audit_log = AuditLog(session, unit)
        output, seconds = settings.seals_output, settings.seal_seconds
        chain = Chain(session, unit, seal_keys)
        self.seals = Seals(session, unit, audit, chain, now, output=output, seconds=seconds)
        self.sealer = Timer("sealer", self._seal, seconds if seal_keys.can_sign else 0)
        #: Since when, in Unix seconds, nothing old enough can have waited for a seal, as far as this process knows;
        #: 0 where it does not seal.
        self.sealed_at = self.clock() if seconds and seal_keys.can_sign else 0.0
        self.rotation = Rotation(session, unit, audit, self.vault, self.sessions)
        self.people = People(session, unit, audit, self.roles, self.vault, now)
        self.emergency = Emergency(session, unit, audit, now, window=settings.totp_window)

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines that have connections of their own."""
        return (self.engine,) if self.single.pool is self.engine.pool else (self.engine, self.single)

    @property
    def connections_in_use(self) -> int:
        """Database connections that are out of their pool now; 0 where a pool keeps no count."""
        return sum(int(getattr(engine.pool, "checkedout", int)()) for engine in self.engines)

    @property
    def connections(self) -> int:
        """How many of them there may be at once; 0 where a pool knows no bound."""
        bounds = [_bound_of(engine.pool) for engine in self.engines]
        return sum(bounds) if all(bounds) else 0

    def _seal(self) -> None:
        self.seals.seal()
        self.sealed_at = self.clock()

    def close(self) -> None:
        """Let go of connections and threads, for commands and tests that outlive a service."""
        self.sealer.close()
        self.notices.close()
        self.session.remove()
        if self.owns_engine:
            for engine in self.engines:
                engine.dispose()
        self.hashing.close()


def _bound_of(pool: Pool) -> int:
    if not isinstance(pool, QueuePool):
        return 0
    overflow = pool._max_overflow  # noqa: SLF001 - there is no public word for it
    return pool.size() + overflow if overflow >= 0 else 0


def load_keys(settings: Settings, clock: Callable[[], float]) -> tuple[Keys, TokenKeys, SealKeys]:
    """Read the keyring, the signing keys and the seal keys. Raises ConfigurationError with what is wrong with each."""
    problems: list[str] = []
    try:
        keyring = watch_keyring(settings, clock)
    except ConfigurationError as error:
        problems += error.problems
    try:
        keys = watch_signing_keys(settings, clock)
    except ConfigurationError as error:
        problems += error.problems
    try:
        seal_keys = SealKeys.load(settings.seal_folder)
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return keyring, keys, seal_keys
