"""Bad days: a key was stolen, a backup was restored. What was let in is out again, and nothing used works twice."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from mfa_service.errors import FactorExists, InvalidCode, InvalidPendingToken, InvalidRecoveryCode, InvalidRefreshToken
from mfa_service.services import Services, emergency
from mfa_service.services.administration import By
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    Rows,
    another,
    at_once,
    ensure_refused,
    is_live,
    log_in,
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
    verify,
)

OPERATOR = replace(CLIENT, actor="cli:root")
WINDOW = 2
#: A backup is a copy of the file.
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

# ── revoke all ───────────────────────────────────────────────────────────────────────────────────


def test_nobody_is_signed_in_any_more_and_everybody_can_sign_in_again(
    services: Services, people: list["Trusted"], clock: Clock
) -> None:
    services.emergency.revoke_all(OPERATOR, reason="stolen key")
    for each in people:
        assert not is_live(services, each.signed_in)
        ensure_refused(InvalidRefreshToken, lambda each=each: refresh(services, each.signed_in))
        ensure_refused(InvalidPendingToken, lambda each=each: verify(services, each.pending, each.person, 2))
        assert isinstance(services.login.begin(each.person.username, PASSWORD, CLIENT, each.device), MFAPending)
    clock.advance(90)
    assert all(is_live(services, sign_in(services, each.person)) for each in people)


def test_a_ticket_for_enrolling_is_void(services: Services, people: list["Trusted"], rows: Rows) -> None:
    ticket = services.administration.reset_factors(By(OPERATOR), user_id_of(rows, people[0].person.username))
    services.emergency.revoke_all(OPERATOR, reason="stolen key")
    pending = log_in(services, people[0].person)
    ensure_refused(FactorExists, lambda: services.login.enrol(pending, CLIENT, ticket))


def test_another_replica_turns_them_away_too(services: Services, people: list["Trusted"]) -> None:
    with another(services) as other:
        services.emergency.revoke_all(OPERATOR, reason="stolen key")
        assert not any(is_live(other, each.signed_in) for each in people)


def test_factors_recovery_codes_and_passwords_stay(services: Services, people: list["Trusted"], clock: Clock) -> None:
    services.emergency.revoke_all(OPERATOR, reason="stolen key")
    for each in people:
        code = recovery(each.codes[0])
        assert is_live(services, services.login.complete(log_in(services, each.person), code, CLIENT))


def test_it_is_recorded_with_the_reason_the_counts_and_who_did_it(
    services: Services, people: list["Trusted"], rows: Rows
) -> None:
    ended = services.emergency.revoke_all(OPERATOR, reason="stolen key")
    assert ended == {"sessions": 6, "devices": 3, "challenges": 3, "tickets": 0}
    newest = rows("SELECT event, actor, user_id, detail FROM mfa_events ORDER BY id DESC LIMIT 1")[0]
    assert (newest["event"], newest["actor"], newest["user_id"]) == ("trust.revoked", "cli:root", None)
    assert detail_of(newest) == {"reason": "stolen key"} | ended


def test_a_second_time_there_is_nothing_left_to_end(services: Services, people: list["Trusted"]) -> None:
    services.emergency.revoke_all(OPERATOR, reason="stolen key")
    assert set(services.emergency.revoke_all(OPERATOR, reason="to be sure").values()) == {0}


def test_when_a_session_ended_is_not_written_over(
    services: Services, people: list["Trusted"], clock: Clock, rows: Rows
) -> None:
    ended = "SELECT id, revoked_at FROM mfa_sessions ORDER BY id"
    services.emergency.revoke_all(OPERATOR, reason="stolen key")
    before = rows(ended)
    clock.advance(100)
    services.emergency.revoke_all(OPERATOR, reason="to be sure")
    assert rows(ended) == before


def test_in_small_batches_it_is_as_thorough(
    services: Services, people: list["Trusted"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emergency, "BATCH", 2)
    ended = services.emergency.revoke_all(OPERATOR, reason="stolen key")
    assert ended == {"sessions": 6, "devices": 3, "challenges": 3, "tickets": 0}
    assert not any(is_live(services, each.signed_in) for each in people)


def test_beside_sign_ins_it_ends_all_that_was_there(
    services: Services, people: list["Trusted"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emergency, "BATCH", 1)
    with another(services, hashing_queue=50) as other:

        def act(number: int) -> object:
            if number == len(people):
                return services.emergency.revoke_all(OPERATOR, reason="stolen key")
            return log_in(other, people[number].person)

        outcomes = at_once(len(people) + 1, act)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert not any(is_live(services, each.signed_in) for each in people)


# ── after a restore ──────────────────────────────────────────────────────────────────────────────


@ON_SQLITE
def test_what_was_used_since_the_backup_does_not_work_again(
    services: Services, ada: Person, clock: Clock, backup: "Backup"
) -> None:
    before = sign_in(services, ada, steps=-2)
    device = backup.made_after(lambda: trust_device(services, ada, steps=-1))
    used = totp(ada.code(clock()))
    services.login.complete(log_in(services, ada), used, CLIENT)
    refresh(services, before)
    pending = log_in(services, ada)
    services.devices.forget_own(user_of(services, before), CLIENT)
    with backup.restored() as restored:
        restored.emergency.after_restore(OPERATOR)
        ensure_refused(InvalidCode, lambda: restored.login.complete(log_in(restored, ada), used, CLIENT))
        ensure_refused(InvalidRefreshToken, lambda: refresh(restored, before))
        ensure_refused(InvalidPendingToken, lambda: verify(restored, pending, ada, 1))
        assert isinstance(restored.login.begin("ada", PASSWORD, CLIENT, device), MFAPending)
        assert not is_live(restored, before)


@ON_SQLITE
def test_without_it_they_would(services: Services, ada: Person, clock: Clock, backup: "Backup") -> None:
    """What these tests prevent is real: a database does not know what it has forgotten."""
    before = backup.made_after(lambda: sign_in(services, ada, steps=-2))
    used = totp(ada.code(clock()))
    services.login.complete(log_in(services, ada), used, CLIENT)
    refresh(services, before)
    with backup.restored() as restored:
        assert restored.login.complete(log_in(restored, ada), used, CLIENT)
        assert refresh(restored, before)


@pytest.mark.parametrize("steps", range(-WINDOW, WINDOW + 1))
@ON_SQLITE
def test_no_code_that_could_have_been_used_before_works_afterwards(
    services: Services, ada: Person, backup: "Backup", steps: int
) -> None:
    backup.made_after(lambda: None)
    with backup.restored() as restored:
        restored.emergency.after_restore(OPERATOR)
        ensure_refused(InvalidCode, lambda: sign_in(restored, ada, steps))


@ON_SQLITE
def test_the_first_code_beyond_the_window_lets_in(
    services: Services, ada: Person, backup: "Backup", clock: Clock
) -> None:
    backup.made_after(lambda: None)
    with backup.restored() as restored:
        restored.emergency.after_restore(OPERATOR)
        clock.advance(30)
        assert is_live(restored, sign_in(restored, ada, WINDOW))
        clock.advance(30 * WINDOW)
        assert is_live(restored, sign_in(restored, ada, 1))


def test_a_step_that_is_newer_than_the_window_is_not_given_back(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    far = int(clock()) // 30 + 1000
    rows("UPDATE mfa_secrets SET last_step = :far", far=far)
    assert services.emergency.after_restore(OPERATOR)["authenticators"] == 0
    assert rows("SELECT last_step FROM mfa_secrets") == [{"last_step": far}]


@pytest.mark.parametrize("burns", [False, True])
@ON_SQLITE
def test_recovery_codes_work_again_unless_all_are_burnt(
    services: Services, ada: Person, backup: "Backup", burns: bool
) -> None:
    codes = backup.made_after(lambda: sign_in(services, ada)).recovery_codes
    assert codes
    services.login.complete(log_in(services, ada), recovery(codes[0]), CLIENT)
    with backup.restored() as restored:
        ended = restored.emergency.after_restore(OPERATOR, burns_recovery_codes=burns)
        assert ended.get("recovery_codes") == (10 if burns else None)
        for code in codes[:3]:
            use = lambda code=code: restored.login.complete(log_in(restored, ada), recovery(code), CLIENT)  # noqa: E731
            ensure_refused(InvalidRecoveryCode, use) if burns else use()


def test_it_is_recorded_with_what_it_did_and_who_did_it(
    services: Services, people: list["Trusted"], rows: Rows
) -> None:
    ended = services.emergency.after_restore(OPERATOR, burns_recovery_codes=True)
    assert ended == {
        "sessions": 6,
        "devices": 3,
        "challenges": 3,
        "tickets": 0,
        "authenticators": 3,
        "recovery_codes": 30,
    }
    newest = rows("SELECT event, actor, detail FROM mfa_events ORDER BY id DESC LIMIT 1")[0]
    assert (newest["event"], newest["actor"], detail_of(newest)) == ("backup.restored", "cli:root", ended)


def test_a_second_time_it_finds_nothing(services: Services, people: list["Trusted"]) -> None:
    services.emergency.after_restore(OPERATOR, burns_recovery_codes=True)
    again = services.emergency.after_restore(OPERATOR, burns_recovery_codes=True)
    assert set(again.values()) == {0}


def test_in_small_batches_nothing_is_left_out(
    services: Services, people: list["Trusted"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emergency, "BATCH", 2)
    ended = services.emergency.after_restore(OPERATOR, burns_recovery_codes=True)
    assert (ended["authenticators"], ended["recovery_codes"], ended["sessions"]) == (3, 30, 6)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Trusted:
    """Somebody with one of everything that lets in without a second factor."""

    person: Person
    signed_in: SignedIn
    codes: tuple[str, ...]
    device: str
    pending: str


class Backup:
    """A copy of the SQLite file, and the service on it."""

    def __init__(self, services: Services, folder: Path) -> None:
        self._services = services
        self._copy = folder / "backup.db"

    def made_after(self, act: Callable[[], Any]) -> Any:
        """Do something, then make the copy; gives what the act gave."""
        outcome = act()
        # The last connection to go writes the log of SQLite into the file.
        self._services.engine.dispose()
        self._services.single.dispose()
        shutil.copy(str(self._services.engine.url.database), self._copy)
        return outcome

    @contextmanager
    def restored(self) -> Iterator[Services]:
        made = Services(
            replace(self._services.settings, database_url=f"sqlite:///{self._copy}"),
            create_engine(f"sqlite:///{self._copy}"),
            self._services.clock,
        )
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def backup(services: Services, tmp_path: Path) -> Backup:
    return Backup(services, tmp_path)


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services)


@pytest.fixture
def people(services: Services) -> list[Trusted]:
    return [trusted(services, register(services, f"user{number}")) for number in range(3)]


def trusted(services: Services, person: Person) -> Trusted:
    signed_in = sign_in(services, person, steps=-1)
    device = trust_device(services, person)
    assert signed_in.recovery_codes
    return Trusted(person, signed_in, signed_in.recovery_codes, device, log_in(services, person))


def refresh(services: Services, signed_in: SignedIn) -> SignedIn:
    return services.login.refresh(signed_in.refresh_token, CLIENT)


def user_of(services: Services, signed_in: SignedIn) -> str:
    return services.verifier.access(signed_in.access_token, now=services.clock()).user_id


def detail_of(row: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["detail"]) if isinstance(row["detail"], str) else row["detail"])
