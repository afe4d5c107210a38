"""Sealing anew under a new key: every value moves, no secret changes, and nobody who signs in meanwhile notices."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from mfa_service.crypto.keyring import with_new_key
from mfa_service.errors import InvalidRefreshToken, SealBroken
from mfa_service.services import Services, rotation
from mfa_service.services.login import SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    another,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    log_in,
    register,
    sign_in,
    totp,
    user_id_of,
    verify,
)

NEW_PASSWORD = "difference-engine-1822"
ON_POSTGRESQL = pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True
)

# ── the whole of it ──────────────────────────────────────────────────────────────────────────────


def test_secrets_passwords_and_the_canary_move_under_the_new_key(
    services: Services, ring: "Ring", people: list[Person]
) -> None:
    old, new = ring.add_key()
    assert services.rotation.count_under(old) == {"secrets": 5, "passwords": 5, "canary": 1}
    assert reseal(services, new) == 11
    assert services.rotation.count_under(old) == {}
    assert services.rotation.count_under(new) == {"secrets": 5, "passwords": 5, "canary": 1}


def test_no_secret_is_another_one_afterwards(
    services: Services, ring: "Ring", people: list[Person], opened: "Opened", rows: Rows
) -> None:
    before, sealed = opened(), rows("SELECT sealed_secret FROM mfa_secrets")
    reseal(services, ring.add_key()[1])
    assert opened() == before
    assert not {bytes(row["sealed_secret"]) for row in sealed} & {
        bytes(row["sealed_secret"]) for row in rows("SELECT sealed_secret FROM mfa_secrets")
    }


def test_everybody_signs_in_afterwards_with_the_password_and_the_phone_they_had(
    services: Services, ring: "Ring", people: list[Person]
) -> None:
    old, new = ring.add_key()
    reseal(services, new)
    with ring.without(old) as alone:
        assert all(is_live(alone, sign_in(alone, person)) for person in people)


def test_what_was_used_up_stays_used_up(services: Services, ring: "Ring", people: list[Person], rows: Rows) -> None:
    sign_in(services, people[0])
    before = rows("SELECT id, last_step, confirmed_at, expires_at FROM mfa_secrets ORDER BY id")
    reseal(services, ring.add_key()[1])
    assert rows("SELECT id, last_step, confirmed_at, expires_at FROM mfa_secrets ORDER BY id") == before


def test_it_is_recorded_with_the_key_and_how_many_values_moved(
    services: Services, ring: "Ring", people: list[Person], rows: Rows
) -> None:
    _, new = ring.add_key()
    reseal(services, new)
    assert events(rows)[-1] == "keys.rotated"
    assert detail_of_the_newest(rows) == {"key": new, "rows": 11}


def test_a_second_run_touches_nothing(services: Services, ring: "Ring", people: list[Person], rows: Rows) -> None:
    _, new = ring.add_key()
    reseal(services, new)
    before = sealed_values(rows)
    assert list(services.rotation.reseal(new, CLIENT)) == []
    assert sealed_values(rows) == before


# ── in pieces ────────────────────────────────────────────────────────────────────────────────────


def test_stopped_after_any_batch_it_goes_on_where_it_was(
    services: Services, ring: "Ring", people: list[Person], opened: "Opened", small_batches: None
) -> None:
    before = opened()
    old, new = ring.add_key()
    left = []
    while services.rotation.count_stale(new):
        run = services.rotation.reseal(new, CLIENT)
        next(run)
        run.close()  # and the end of it never came
        left.append(services.rotation.count_stale(new))
        assert opened() == before
    assert left == [9, 7, 6, 4, 2, 1, 0]
    assert services.rotation.count_under(old) == {}


def test_a_batch_that_is_read_is_a_batch_that_is_committed(
    services: Services, ring: "Ring", people: list[Person], small_batches: None
) -> None:
    _, new = ring.add_key()
    run = services.rotation.reseal(new, CLIENT)
    with another(services) as observer:
        for count in run:
            assert observer.rotation.count_under(new)
            assert count in (1, 2)
        assert observer.rotation.count_stale(new) == 0


def test_between_batches_people_may_do_what_they_like(
    services: Services, ring: "Ring", people: list[Person], rows: Rows, small_batches: None, clock: Clock
) -> None:
    """Everybody's password, phone, or both change between some two batches; nothing of it is undone."""
    old, new = ring.add_key()
    acts: list[Callable[[Person], Person]] = [
        lambda person: with_new_password(services, rows, person),
        lambda person: with_new_phone(services, rows, person),
        lambda person: with_first_login(services, person),
    ]
    afterwards = []
    for number, _ in enumerate(services.rotation.reseal(new, CLIENT)):
        if number < len(people):
            afterwards.append(acts[number % len(acts)](people[number]))
    assert len(afterwards) >= len(acts)  # who signs in moves values, too: how many batches are left is chance
    afterwards += people[len(afterwards) :]
    assert services.rotation.count_under(old) == {}
    clock.advance(30)
    assert all(is_live(services, sign_in(services, person)) for person in afterwards)


# ── at the same time ─────────────────────────────────────────────────────────────────────────────


def test_beside_first_logins_password_changes_and_new_phones_nothing_is_undone(
    services: Services, ring: "Ring", rows: Rows, small_batches: None, clock: Clock
) -> None:
    people = [register(services, f"user{number}") for number in range(12)]
    old, new = ring.add_key()

    def act(number: int) -> object:
        if number == len(people):
            return reseal(services, new)
        acts = (
            with_first_login,
            lambda it, who: with_new_password(it, rows, who),
            lambda it, who: with_new_phone(it, rows, who),
        )
        return acts[number % 3](services, people[number])

    outcomes = at_once(len(people) + 1, act)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert services.rotation.count_under(old) == {}
    clock.advance(30)
    for person in outcomes[:-1]:
        assert isinstance(person, Person)
        assert is_live(services, sign_in(services, person))


@ON_POSTGRESQL
def test_a_value_that_changes_while_its_batch_is_being_sealed_stays_as_it_was_changed(
    services: Services, ring: "Ring", people: list[Person], rows: Rows
) -> None:
    ada, (_, new) = people[0], ring.add_key()
    user_id, fresh = user_id_of(rows, ada.username), b"of a newer secret"
    context = f"mfa_secrets.sealed_secret:{user_id}"
    changing = {"value": services.vault.seal(fresh, context), "id": user_id}
    resealing = threading.Thread(target=lambda: reseal(services, new))
    with services.engine.begin() as connection:
        connection.execute(text("UPDATE mfa_secrets SET sealed_secret = :value WHERE user_id = :id"), changing)
        resealing.start()  # it has read the former value, and waits
        resealing.join(0.5)
        assert resealing.is_alive()
    resealing.join()
    (kept,) = rows("SELECT sealed_secret FROM mfa_secrets WHERE user_id = :id", id=user_id)
    assert services.vault.open(bytes(kept["sealed_secret"]), context) == fresh
    assert services.rotation.count_stale(new) == 0


def test_two_that_run_at_once_are_as_good_as_one(
    services: Services, ring: "Ring", people: list[Person], opened: "Opened", small_batches: None
) -> None:
    before, (_, new) = opened(), ring.add_key()
    outcomes = at_once(2, lambda _: reseal(services, new))
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert services.rotation.count_stale(new) == 0
    assert opened() == before


def test_it_seals_under_the_key_that_it_was_given_whichever_is_active(
    services: Services, ring: "Ring", people: list[Person], opened: "Opened"
) -> None:
    """Where one thread reads the keyring, the others go on with what was active before."""
    before, (_, new) = opened(), ring.add_key(active_in=3600)
    assert reseal(services, new) == 11
    assert services.rotation.count_stale(new) == 0
    assert opened() == before


def test_a_replica_that_still_seals_with_the_old_key_takes_nothing_back(
    services: Services, ring: "Ring", people: list[Person], clock: Clock
) -> None:
    """It looked a moment before the key became active, so it seals with the old one for almost an interval yet."""
    old, new = ring.add_key(active_in=60, read=False)
    clock.advance(59)
    with another(services) as late:
        clock.advance(1)
        with another(services) as early:
            reseal(early, new)
            assert early.rotation.count_under(old) == {}
        clock.advance(1)
        for person in people:
            sign_in(late, person)
        assert set(late.rotation.count_under(old)) <= {"sessions"}


# ── on use ───────────────────────────────────────────────────────────────────────────────────────


def test_a_right_password_moves_the_password(services: Services, ring: "Ring", people: list[Person]) -> None:
    old, _ = ring.add_key()
    log_in(services, people[0])
    assert services.rotation.count_under(old) == {"secrets": 5, "passwords": 4, "canary": 1}


def test_a_code_moves_the_secret(services: Services, ring: "Ring", people: list[Person]) -> None:
    old, new = ring.add_key()
    sign_in(services, people[0])
    assert services.rotation.count_under(old) == {"secrets": 4, "passwords": 4, "canary": 1}
    assert services.rotation.count_under(new) == {"secrets": 1, "passwords": 1, "sessions": 1}
    clock_on(services, 30)
    assert is_live(services, sign_in(services, people[0]))


def test_a_session_moves_when_it_is_refreshed(services: Services, ring: "Ring", people: list[Person]) -> None:
    first = sign_in(services, people[0])
    old, new = ring.add_key()
    reseal(services, new)
    assert services.rotation.count_under(old) == {"sessions": 1}
    second = services.login.refresh(first.refresh_token, CLIENT)
    assert services.rotation.count_under(old) == {}
    with ring.without(old) as alone:
        assert is_live(alone, alone.login.refresh(second.refresh_token, CLIENT))


def test_whose_answer_was_lost_gets_the_same_successor_although_the_session_moved(
    services: Services, ring: "Ring", people: list[Person], clock: Clock
) -> None:
    first = sign_in(services, people[0])
    ring.add_key()
    second = services.login.refresh(first.refresh_token, CLIENT)
    clock.advance(9)
    again = services.login.refresh(first.refresh_token, CLIENT)
    assert again.refresh_token == second.refresh_token
    assert is_live(services, services.login.refresh(again.refresh_token, CLIENT))


def test_a_session_that_has_ended_needs_no_key(services: Services, ring: "Ring", people: list[Person]) -> None:
    signed_in = sign_in(services, people[0])
    old, new = ring.add_key()
    reseal(services, new)
    services.login.sign_out(identity_of(services, signed_in), CLIENT, everywhere=False)
    assert services.rotation.count_under(old) == {}


@pytest.mark.parametrize("end", ["idle", "absolute"])
def test_a_session_that_is_over_by_itself_needs_no_key_whatever_was_pruned_yet(
    services: Services, ring: "Ring", people: list[Person], rows: Rows, end: str
) -> None:
    signed_in, old = sign_in(services, people[0]), ring.ids[0]
    reseal(services, ring.add_key()[1])
    assert services.rotation.count_under(old) == {"sessions": 1}
    if end == "idle":
        clock_on(services, services.settings.session_idle_seconds)
    else:
        clock_on(services, services.settings.session_seconds)
        rows("UPDATE mfa_sessions SET refreshed_at = expires_at")
    assert services.rotation.count_under(old) == {}
    with ring.without(old) as alone:
        ensure_refused(InvalidRefreshToken, lambda: alone.login.refresh(signed_in.refresh_token, CLIENT))


# ── counting ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_stale_is_what_another_key_than_this_one_seals(
    services: Services, ring: "Ring", people: list[Person]
) -> None:
    old, new = ring.add_key()
    assert (services.rotation.count_stale(old), services.rotation.count_stale(new)) == (0, 11)
    log_in(services, people[0])
    assert (services.rotation.count_stale(old), services.rotation.count_stale(new)) == (1, 10)


def test_a_key_whose_name_another_one_begins_with_is_another_key(
    services: Services, ring: "Ring", people: list[Person]
) -> None:
    (key_id,) = ring.ids
    assert services.rotation.count_under(key_id[:-1]) == {}
    assert services.rotation.count_under(key_id + "0") == {}
    assert services.rotation.count_stale(key_id[:-1]) == 11


# ── what is broken ───────────────────────────────────────────────────────────────────────────────


def test_a_value_that_was_put_into_another_row_stops_it_and_is_not_made_good(
    services: Services, ring: "Ring", people: list[Person], rows: Rows
) -> None:
    ids = [user_id_of(rows, person.username) for person in people[:2]]
    taken = "SELECT sealed_secret AS sealed FROM mfa_secrets WHERE user_id = :id"
    sealed = [bytes(rows(taken, id=user_id)[0]["sealed"]) for user_id in ids]
    put = "UPDATE mfa_secrets SET sealed_secret = :sealed WHERE user_id = :id"
    for user_id, value in zip(ids, reversed(sealed), strict=True):
        rows(put, id=user_id, sealed=value)
    _, new = ring.add_key()
    with pytest.raises(SealBroken) as stopped:
        reseal(services, new)
    shown = f"{stopped.value!r} {stopped.value} {stopped.value.message} {stopped.value.fields}"
    assert not [secret for secret in (*ids, *(person.secret for person in people)) if secret in shown]
    assert "keys.rotated" not in events(rows)
    left = [bytes(rows(taken, id=user_id)[0]["sealed"]) for user_id in ids]
    assert set(left) == set(sealed)


def test_a_value_under_a_key_that_is_gone_stops_it(services: Services, ring: "Ring", people: list[Person]) -> None:
    old, new = ring.add_key()
    with ring.without(old) as alone, pytest.raises(SealBroken):
        reseal(alone, new)


# ── means ────────────────────────────────────────────────────────────────────────────────────────

Opened = Callable[[], dict[str, bytes]]


class Ring:
    """The keyring's file, and what an operator does to it."""

    def __init__(self, path: Path, services: Services) -> None:
        self._path = path
        self._services = services

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(key["id"] for key in json.loads(self._path.read_text())["keys"])

    def add_key(self, *, active_in: float = 0, read: bool = True) -> tuple[str, str]:
        """Add a key, and let the service look at the file; the ids of the old one and of the new one."""
        active_from = self._services.clock() + active_in
        self._path.write_text(with_new_key(self._path.read_text(), active_from=active_from))
        if read:
            clock_on(self._services, self._services.settings.key_reread_seconds)
        new, old = self.ids
        return old, new

    @contextmanager
    def without(self, key_id: str) -> Iterator[Services]:
        """A service that has all keys but this one."""
        keys = [key for key in json.loads(self._path.read_text())["keys"] if key["id"] != key_id]
        with another(self._services, keys=json.dumps({"keys": keys})) as made:
            yield made


@pytest.fixture
def config(config: dict[str, Any], instance: Path, tmp_path: Path) -> dict[str, Any]:
    """With an instance folder of our own, for the keyring changes; everybody may wait for a hash."""
    return config | {"MFA_HASHING_QUEUE": 50, "MFA_INSTANCE": str(shutil.copytree(instance, tmp_path / "own-instance"))}


@pytest.fixture
def ring(services: Services) -> Ring:
    return Ring(services.settings.keyring_file, services)


@pytest.fixture
def people(services: Services) -> list[Person]:
    """Five accounts under the only key there is, and the canary."""
    services.health.ensure_keyring()
    return [register(services, f"user{number}") for number in range(5)]


@pytest.fixture
def opened(services: Services, rows: Rows) -> Opened:
    """What all sealed values hold, by what they are sealed for."""

    def look() -> dict[str, bytes]:
        return {context: services.vault.open(sealed, context) for context, sealed in sealed_values(rows).items()}

    return look


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)


def reseal(services: Services, key_id: str) -> int:
    return sum(services.rotation.reseal(key_id, CLIENT))


def sealed_values(rows: Rows) -> dict[str, bytes]:
    secrets = rows("SELECT user_id, sealed_secret FROM mfa_secrets")
    passwords = rows("SELECT id, sealed_password FROM mfa_users")
    canaries = rows("SELECT id, sealed_value FROM mfa_canaries")
    return (
        {f"mfa_secrets.sealed_secret:{row['user_id']}": bytes(row["sealed_secret"]) for row in secrets}
        | {f"mfa_users.sealed_password:{row['id']}": bytes(row["sealed_password"]) for row in passwords}
        | {f"mfa_canaries.sealed_value:{row['id']}": bytes(row["sealed_value"]) for row in canaries}
    )


def detail_of_the_newest(rows: Rows) -> dict[str, Any]:
    detail = rows("SELECT detail FROM mfa_events ORDER BY id DESC LIMIT 1")[0]["detail"]
    return dict(json.loads(detail) if isinstance(detail, str) else detail)


def clock_on(services: Services, seconds: float) -> None:
    assert isinstance(services.clock, Clock)
    services.clock.advance(seconds)


def with_new_password(services: Services, rows: Rows, person: Person) -> Person:
    identity = acting(services, user_id_of(rows, person.username))
    services.accounts.change_password(identity.user_id, identity.session_id, PASSWORD, NEW_PASSWORD, CLIENT)
    return Person(person.username, NEW_PASSWORD, person.email, person.secret)


def with_first_login(services: Services, person: Person) -> Person:
    assert sign_in(services, person, steps=-1).recovery_codes
    return person


def with_new_phone(services: Services, rows: Rows, person: Person) -> Person:
    """Sign in with the phone there is, and put another one in its place."""
    signed_in: SignedIn = verify(services, log_in(services, person), person, -1)
    identity = identity_of(services, signed_in)
    changed = Person(person.username, person.password, person.email, services.factors.replace(identity, CLIENT).secret)
    services.factors.confirm_replacement(identity, totp(changed.code(services.clock())).value, CLIENT)
    return changed
