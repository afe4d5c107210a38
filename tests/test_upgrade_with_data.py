"""A database of the first release, filled, goes to the newest schema and back: nobody loses an account or a factor.

What the first release wrote stands here as SQL, as it was: models and services know the newest schema alone.
"""

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, create_engine, delete, text

from mfa_service.config import Settings
from mfa_service.crypto import opaque, recovery
from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.opaque import RefreshTokens, new_id
from mfa_service.crypto.passwords import hash_password
from mfa_service.crypto.totp import as_base32, new_secret
from mfa_service.crypto.vault import Vault
from mfa_service.errors import InvalidCode
from mfa_service.models import AuditEvent, User, UTCDateTime
from mfa_service.services import Services, schema
from mfa_service.services.database import engine_for
from mfa_service.services.directory import UserFilter
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import CLIENT, is_live
from tests.services import recovery as by_recovery_code
from tests.services import totp as by_code

FIRST = "0001"
TABLES = ("users", "secrets", "recovery_codes", "sessions", "devices", "challenges", "locks", "events", "canaries")

# ── up ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_is_still_there(engine: Engine, old: "Old") -> None:
    before = {table: old.rows(table) for table in TABLES}
    assert all(before.values())
    schema.upgrade(engine)
    for table, rows in before.items():
        assert old.rows(table, columns=tuple(rows[0])) == rows, table


def test_password_and_code_let_in(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    services = open_services()
    assert is_live(services, old.log_in(services))


def test_a_used_step_stays_used(engine: Engine, old: "Old", open_services: "Open", clock: Clock) -> None:
    old.use_up(int(clock()) // 30)
    schema.upgrade(engine)
    services = open_services()
    with pytest.raises(InvalidCode):
        old.log_in(services)
    clock.advance(30)
    assert old.log_in(services)


def test_a_session_goes_on(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    services = open_services()
    second = services.login.refresh(old.refresh_token, CLIENT)
    assert is_live(services, second)
    assert services.login.refresh(second.refresh_token, CLIENT).username == "ada"


def test_a_recovery_code_lets_in_and_the_used_one_does_not(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    services = open_services()
    assert services.login.complete(old.pending(services), by_recovery_code(old.codes[1]), CLIENT).username == "ada"
    assert [row["used_at"] is None for row in old.rows("recovery_codes")].count(True) == 8


def test_a_remembered_device_is_still_known(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    signed_in = open_services().login.begin("ada", PASSWORD, CLIENT, old.device_token)
    assert isinstance(signed_in, SignedIn)


def test_whoever_registered_and_never_came_back_still_confirms_with_the_first_code(
    engine: Engine, old: "Old", open_services: "Open"
) -> None:
    schema.upgrade(engine)
    services = open_services()
    assert old.log_in(services, old.newcomer).recovery_codes


def test_the_keyring_still_opens_the_canary(engine: Engine, old: "Old", open_services: "Open") -> None:
    assert old.rows("canaries")
    schema.upgrade(engine)
    open_services().health.ensure_keyring(leaves_canary=False)


@pytest.mark.parametrize("beginning", ["someone@", "SOMEONE@", "özil@", "Özil@"])
def test_addresses_of_before_are_found_whatever_their_case(
    engine: Engine, old: "Old", open_services: "Open", beginning: str
) -> None:
    old.set_email("ada", "Someone@example.com")
    old.set_email("grace", "Özil@example.com")
    schema.upgrade(engine)
    found, _ = open_services().directory.search(UserFilter(text=beginning), None)
    assert len(found) == 1


def test_who_is_deleted_afterwards_takes_all_along_but_the_log(engine: Engine, old: "Old") -> None:
    schema.upgrade(engine)
    events = old.rows("events", columns=("id",))
    with engine.begin() as connection:
        connection.execute(delete(User))
    left = {table: len(old.rows(table)) for table in TABLES}
    assert {table for table, count in left.items() if count} == {"events", "canaries"}
    assert old.rows("events", columns=("id",)) == events


# ── down and up again ────────────────────────────────────────────────────────────────────────────


def test_down_and_up_again_keeps_every_row(engine: Engine, old: "Old") -> None:
    before = {table: old.rows(table) for table in TABLES}
    schema.upgrade(engine)
    schema.downgrade(engine, FIRST)
    assert {table: old.rows(table) for table in TABLES} == before
    schema.upgrade(engine)
    for table, rows in before.items():
        assert old.rows(table, columns=tuple(rows[0])) == rows, table


def test_down_and_up_again_everybody_signs_in_and_goes_on(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    schema.downgrade(engine, FIRST)
    schema.upgrade(engine)
    services = open_services()
    assert is_live(services, old.log_in(services))
    assert is_live(services, services.login.refresh(old.refresh_token, CLIENT))
    assert services.login.complete(old.pending(services), by_recovery_code(old.codes[1]), CLIENT).username == "ada"


def test_a_session_that_a_password_alone_opened_does_not_become_a_whole_one_by_going_down(
    engine: Engine, old: "Old"
) -> None:
    schema.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE mfa_sessions SET step = 'password'"))
    schema.downgrade(engine, FIRST)
    assert old.rows("sessions") == []


# ── the log's numbers ────────────────────────────────────────────────────────────────────────────


def test_the_number_of_an_event_that_was_cut_off_is_never_given_again(
    engine: Engine, old: "Old", open_services: "Open"
) -> None:
    schema.upgrade(engine)
    _ensure_numbers_go_on(engine, old, open_services)


def test_nor_after_down_and_up_again(engine: Engine, old: "Old", open_services: "Open") -> None:
    schema.upgrade(engine)
    schema.downgrade(engine, FIRST)
    schema.upgrade(engine)
    _ensure_numbers_go_on(engine, old, open_services)


def _ensure_numbers_go_on(engine: Engine, old: "Old", open_services: "Open") -> None:
    newest = old.rows("events")[-1]["id"]
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL mfa.pruning = 'on'"))
        connection.execute(delete(AuditEvent).where(AuditEvent.id == newest))
    old.log_in(open_services())
    ids = [row["id"] for row in old.rows("events")]
    assert newest not in ids
    assert ids == sorted(ids)
    assert ids[-1] > newest


# ── means ────────────────────────────────────────────────────────────────────────────────────────

Open = Callable[[], Services]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database at the first revision, through the engine that the commands use: foreign keys are looked at."""
    address = f"sqlite:///{tmp_path / 'old.db'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE IF EXISTS upgrades WITH (FORCE)")
            connection.exec_driver_sql("CREATE DATABASE upgrades")
        admin.dispose()
        address = server.replace("/postgres?", "/upgrades?")
    made = engine_for(create_engine(address))
    schema.upgrade(made, FIRST)
    yield made
    made.dispose()


@pytest.fixture
def settings(engine: Engine, instance: Path) -> Settings:
    url = engine.url.render_as_string(hide_password=False)
    return Settings.load(
        {"TESTING": True, "MFA_INSTANCE": str(instance), "MFA_DATABASE_URL": url, "MFA_BCRYPT_COST": 4}
    )


@pytest.fixture
def old(engine: Engine, settings: Settings, clock: Clock) -> "Old":
    """The database as the first release left it."""
    return Old(engine, settings, clock)


@pytest.fixture
def open_services(settings: Settings, clock: Clock) -> Iterator[Open]:
    """Start the new release on it."""
    made: list[Services] = []

    def start() -> Services:
        made.append(Services(settings, create_engine(settings.database), clock))
        return made[-1]

    yield start
    for services in made:
        services.close()


class Old:
    """What the first release wrote for `ada`, who has everything, and for `grace`, who has registered only."""

    def __init__(self, engine: Engine, settings: Settings, clock: Clock) -> None:
        keyring = Keyring.load(settings.keyring_file)
        self._engine = engine
        self._vault = Vault(keyring)
        self._clock = clock
        self.ada, self.newcomer = self._person("ada"), self._person("grace")
        self.codes = recovery.new_codes()
        self.device_token = opaque.new_token()
        user_id, newcomer_id, session_id = new_id(), new_id(), new_id()
        self.refresh_token = RefreshTokens(keyring).derive(session_id, 3, keyring.active_id)
        self._add_user(user_id, self.ada, confirmed_at=self._at(-86400))
        self._add_user(newcomer_id, self.newcomer, confirmed_at=None)
        for code in self.codes:
            used_at = self._at(-500) if code == self.codes[0] else None
            self._add(
                "recovery_codes", user_id=user_id, digest=recovery.digest(code), created_at=self._at(), used_at=used_at
            )
        self._add_session(user_id, session_id, keyring.active_id)
        self._add_device(user_id)
        self._add(
            "challenges",
            id=new_id(), user_id=user_id, attempts=1, created_at=self._at(), expires_at=self._at(300), closed_at=None,
        )  # fmt: skip
        self._add(
            "locks",
            user_id=user_id, subject="totp", failures=2, failed_at=self._at(), open_at=None, disabled_at=None,
        )  # fmt: skip
        for number in range(5):
            self._add_event(user_id, number)
        self._add("canaries", id=1, sealed_value=self._vault.seal(b"tweet", "mfa_canaries.sealed_value:1"))

    def rows(self, table: str, columns: tuple[str, ...] = ("*",)) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            found = connection.execute(text(f"SELECT {', '.join(columns)} FROM mfa_{table}")).mappings()
            return sorted(map(dict, found), key=lambda row: str(list(row.values())[:2]))

    def set_email(self, username: str, email: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                text("UPDATE mfa_users SET email = :email WHERE username = :name"), {"email": email, "name": username}
            )

    def use_up(self, step: int) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("UPDATE mfa_secrets SET last_step = :step"), {"step": step})

    def pending(self, services: Services, person: Person | None = None) -> str:
        pending = services.login.begin((person or self.ada).username, PASSWORD, CLIENT)
        assert isinstance(pending, MFAPending)
        return pending.token

    def log_in(self, services: Services, person: Person | None = None) -> SignedIn:
        code = (person or self.ada).code(self._clock())
        return services.login.complete(self.pending(services, person), by_code(code), CLIENT)

    def _person(self, name: str) -> Person:
        return Person(name, PASSWORD, "someone@example.com", as_base32(new_secret()))

    def _at(self, seconds: float = 0) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC) + timedelta(seconds=seconds)

    def _add_user(self, user_id: str, person: Person, *, confirmed_at: datetime | None) -> None:
        hashed = hash_password(person.password, 4).encode()
        self._add(
            "users",
            id=user_id, username=person.username, username_key=person.username, email=person.email,
            sealed_password=self._vault.seal(hashed, f"mfa_users.sealed_password:{user_id}"),
            password_set_at=self._at(-90000), created_at=self._at(-90000),
            disabled_at=None, had_factor_at=confirmed_at,
        )  # fmt: skip

        secret = base64.b32decode(person.secret + "=" * (-len(person.secret) % 8))
        self._add(
            "secrets",
            id=new_id(), user_id=user_id,
            sealed_secret=self._vault.seal(secret, f"mfa_secrets.sealed_secret:{user_id}"),
            last_step=int(self._clock()) // 30 - 10 if confirmed_at else -1,
            created_at=self._at(-90000), expires_at=None, confirmed_at=confirmed_at,
        )  # fmt: skip

    def _add_session(self, user_id: str, session_id: str, key_id: str) -> None:
        self._add(
            "sessions",
            id=session_id, user_id=user_id, address="192.0.2.1", network="192.0.2.1", user_agent="tests",
            amr="pwd otp mfa", key_id=key_id, generation=3, created_at=self._at(-900), authenticated_at=self._at(-900),
            refreshed_at=self._at(-300), rotated_at=self._at(-300), seen_at=self._at(-300),
            expires_at=self._at(86400), revoked_at=None,
        )  # fmt: skip

    def _add_device(self, user_id: str) -> None:
        self._add(
            "devices",
            id=new_id(), user_id=user_id, digest=opaque.digest(self.device_token), name="laptop", address="192.0.2.1",
            user_agent="tests", created_at=self._at(-900), used_at=self._at(-900), expires_at=self._at(86400),
        )  # fmt: skip

    def _add_event(self, user_id: str, number: int) -> None:
        self._add(
            "events",
            at=self._at(number), event="login.completed", user_id=user_id, address="192.0.2.1", user_agent="tests",
            request_id=f"request-{number}", detail='{"amr": ["pwd", "otp", "mfa"]}',
        )  # fmt: skip

    def _add(self, table: str, **values: Any) -> None:
        statement = text(
            f"INSERT INTO mfa_{table} ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
        )
        times = [bindparam(name, type_=UTCDateTime()) for name in values if name == "at" or name.endswith("_at")]
        with self._engine.begin() as connection:
            connection.execute(statement.bindparams(*times), values)
