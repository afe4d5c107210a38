"""What must happen once happens once, over four worker processes: on SQLite, and on PostgreSQL at two levels."""

import base64
import json
import math
import os
import shutil
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from mfa_service.config import Settings
from mfa_service.crypto.recovery import digest
from mfa_service.models import User
from mfa_service.services import Services, schema
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo
from mfa_service.services.factors import Proof
from mfa_service.services.lockout import FIRST_DELAY
from mfa_service.services.login import SignedIn
from tests.bursts import Answer, Call, burst, insistent, post, together
from tests.conftest import ROOT, empty, free_port, new_database, running
from tests.factories import PASSWORD, totp

Rows = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.services
CLIENT = ClientInfo("192.0.2.1", "192.0.2.1", "tests", "request-1")
OF = "user_id = :id"


def test_fifty_pending_tokens_and_one_code_give_one_success(server: str, rows: Rows, rounds: int) -> None:
    for number in range(rounds):
        secret = _register(server, f"one{number}")
        code = _code(secret)
        answers = burst(
            server, "/auth/verify-mfa", [_proof(token, code) for token in _log_in(server, f"one{number}", 50)]
        )
        assert _statuses(answers) == {200: 1, 401: 49}
    assert len(rows("SELECT id FROM mfa_sessions")) == rounds
    # Five are looked at; then the factor is locked, and the other pending tokens are dead.
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.code_replayed'")) == 5 * rounds
    assert {row["failures"] for row in rows("SELECT failures FROM mfa_locks WHERE subject = 'totp'")} == {5}


def test_one_pending_token_and_one_code_sent_fifty_times_give_one_success(server: str, rounds: int) -> None:
    for number in range(rounds):
        secret = _register(server, f"same{number}")
        (token,) = _log_in(server, f"same{number}", 1)
        answers = burst(server, "/auth/verify-mfa", [_proof(token, _code(secret))] * 50)
        assert _statuses(answers) == {200: 1, 401: 49}


def test_of_fifty_wrong_codes_at_once_five_are_looked_at(server: str, rows: Rows, rounds: int) -> None:
    for number in range(rounds):
        secret = _register(server, f"wrong{number}")
        (token,) = _log_in(server, f"wrong{number}", 1)
        burst(server, "/auth/verify-mfa", [_proof(token, _wrong(secret))] * 50)
        assert post(server, "/auth/verify-mfa", _proof(token, _code(secret))).json["code"] == "invalid_pending_token"
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.code_refused'")) == 5 * rounds
    assert {row["attempts"] for row in rows("SELECT attempts FROM mfa_challenges")} == {5}


def test_of_fifty_wrong_codes_at_once_on_as_many_tokens_five_are_looked_at(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person = _person(inside, f"spread{number}")
        tokens = _pending(inside, person, 51)
        answers = burst(server, "/auth/verify-mfa", [_proof(token, _wrong(person.secret)) for token in tokens[:50]])
        assert _statuses(answers) == {401: 50}
        assert Counter(answer.json["code"] for answer in answers) == {"invalid_code": 5, "invalid_pending_token": 45}
        right = post(server, "/auth/verify-mfa", _proof(tokens[50], _code(person.secret)))
        assert right.json["code"] == "invalid_pending_token"
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.code_refused'")) == 5 * rounds
    assert {row["failures"] for row in rows("SELECT failures FROM mfa_locks WHERE subject = 'totp'")} == {5}


def test_of_thirty_wrong_codes_at_once_on_every_route_that_takes_one_no_more_are_looked_at_than_in_a_row(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person, signed_in = _signed_in(inside, f"routes{number}")
        identity = inside.verifier.access(signed_in.access_token, now=time.time())
        inside.factors.replace(identity, CLIENT)
        tokens, wrong, access = _pending(inside, person, 10), {"totpCode": "x"}, signed_in.access_token
        calls = [Call("/auth/step-up", wrong, access), Call("/api/mfa/totp/confirm", wrong, access)] * 10
        started = time.monotonic()
        answers = together(server, [*calls, *(Call("/auth/verify-mfa", _proof(token, "x")) for token in tokens)])
        most = _tries_in(time.monotonic() - started)
        assert _statuses(answers) == {401: 30}
        [lock] = rows("SELECT failures FROM mfa_locks WHERE user_id = :id AND subject = 'totp'", id=person.user_id)
        assert 5 <= lock["failures"] <= most


def test_of_two_different_steps_at_once_the_older_is_never_accepted_after_the_newer(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person = _person(inside, f"steps{number}")
        # Four, so that the refusals lock nothing: what refuses the last one is the step.
        tokens, step = _pending(inside, person, 5), _step()
        older, newer = totp(person.secret, step - 1), totp(person.secret, step)
        proofs = [_proof(token, code) for token, code in zip(tokens, [older, newer] * 2, strict=False)]
        assert 1 <= _statuses(burst(server, "/auth/verify-mfa", proofs))[200] <= 2
        assert post(server, "/auth/verify-mfa", _proof(tokens[-1], older)).json["code"] == "invalid_code"
        last = rows("SELECT last_step FROM mfa_secrets WHERE user_id = :id", id=person.user_id)
        assert last == [{"last_step": step}]


def test_of_twenty_registrations_of_one_name_one_succeeds(server: str, rows: Rows, rounds: int) -> None:
    for number in range(rounds):
        spellings = [f"name{number}", f"NAME{number}", f"Name{number}", f"ｎａｍｅ{number}"] * 5
        answers = burst(server, "/auth/register", [_account(name) for name in spellings])
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 19
        assert {answer.json["code"] for answer in refused} <= {"user_exists", "busy"}
    assert len(rows("SELECT id FROM mfa_users")) == len(rows("SELECT id FROM mfa_secrets")) == rounds


def test_of_ten_enrolments_at_once_one_key_is_alive(server: str, inside: Services, rows: Rows, rounds: int) -> None:
    for number in range(rounds):
        person = _person(inside, f"enrol{number}")
        tokens = _pending(inside, person, 15)
        answers = burst(server, "/auth/enrol", [{"tempToken": token} for token in tokens[:10]])
        assert _statuses(answers) == {200: 10}
        shown = [answer.json["manualEntryKey"] for answer in answers]
        alive = _stored_key(inside, person)
        assert alive in shown
        # Four dead ones beside it, so that nothing is locked.
        keys = [*[key for key in shown if key != alive][:4], alive]
        proofs = [_proof(token, _code(key)) for token, key in zip(tokens[10:], keys, strict=True)]
        assert [answer.status for answer in burst(server, "/auth/verify-mfa", proofs)] == [401] * 4 + [200]
    assert len(rows("SELECT id FROM mfa_secrets")) == rounds


def test_enrolling_while_verifying_never_confirms_a_key_that_was_not_shown_last(server: str, rounds: int) -> None:
    for number in range(rounds):
        shown = _register(server, f"both{number}")
        first, second, third = _log_in(server, f"both{number}", 3)
        enrolled = burst(server, "/auth/enrol", [{"tempToken": first}])[0]
        verified = post(server, "/auth/verify-mfa", _proof(second, _code(shown)))
        assert (enrolled.status, verified.status) == (200, 401)
        assert post(server, "/auth/verify-mfa", _proof(third, _code(enrolled.json["manualEntryKey"]))).status == 200


# ── recovery codes ───────────────────────────────────────────────────────────────────────────────


def test_one_recovery_code_twenty_times_at_once_gives_one_success(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person, signed_in = _signed_in(inside, f"recovery{number}")
        code = signed_in.recovery_codes[0]
        bodies = [{"tempToken": token, "recoveryCode": code} for token in _pending(inside, person, 20)]
        answers = burst(server, "/auth/verify-mfa", bodies)
        assert _statuses(answers) == {200: 1, 401: 19}
        assert next(answer for answer in answers if answer.status == 200).json["recoveryCodesLeft"] == 9
    assert len(rows("SELECT digest FROM mfa_recovery_codes WHERE used_at IS NOT NULL")) == rounds
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'recovery_code.used'")) == rounds


def test_a_recovery_code_and_a_code_with_one_pending_token_give_one_success_and_spend_one_of_them(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person, signed_in = _signed_in(inside, f"either{number}")
        (token,), step = _pending(inside, person, 1), _step()
        by_code = _proof(token, totp(person.secret, step + 1))
        by_recovery = {"tempToken": token, "recoveryCode": signed_in.recovery_codes[0]}
        assert _statuses(burst(server, "/auth/verify-mfa", [by_code, by_recovery] * 10)) == {200: 1, 401: 19}
        used = rows(f"SELECT digest FROM mfa_recovery_codes WHERE used_at IS NOT NULL AND {OF}", id=person.user_id)
        claimed = rows(f"SELECT id FROM mfa_secrets WHERE last_step = :step AND {OF}", step=step + 1, id=person.user_id)
        assert len(used) + len(claimed) == 1


def test_renewing_beside_using_leaves_one_set_of_recovery_codes(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person, signed_in = _signed_in(inside, f"renew{number}")
        old, tokens = signed_in.recovery_codes, _pending(inside, person, 4)
        using = [Call("/auth/verify-mfa", {"tempToken": token, "recoveryCode": old[0]}) for token in tokens[:3]]
        renewing = [Call("/api/mfa/recovery-codes", {}, signed_in.access_token)] * 2
        answers = together(server, [using[0], renewing[0], using[1], renewing[1], using[2]])
        assert [answers[1].status, answers[3].status] == [200, 200]
        assert sum(answers[place].status == 200 for place in (0, 2, 4)) <= 1
        sets = [answers[place].json["recoveryCodes"] for place in (1, 3)]
        stored = rows(f"SELECT digest, used_at FROM mfa_recovery_codes WHERE {OF}", id=person.user_id)
        digests = {row["digest"] for row in stored}
        [alive] = [codes for codes in sets if {digest(code) for code in codes} == digests]
        assert all(row["used_at"] is None for row in stored)
        for code, status in ((old[1], 401), (alive[0], 200)):
            assert post(server, "/auth/verify-mfa", {"tempToken": tokens[3], "recoveryCode": code}).status == status


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_fifty_refreshes_at_once_with_one_token_give_one_successor(
    server: str, inside: Services, rows: Rows, rounds: int, database: str
) -> None:
    _, signed_in = _signed_in(inside, "ada")
    token = signed_in.refresh_token
    for _ in range(rounds):
        answers = burst(server, "/auth/refresh", [{"refreshToken": token}] * 50)
        # On a busy machine some wait too long for SQLite's one writer, or begin again too often at SERIALIZABLE.
        assert _statuses(answers).keys() <= {200, 503}
        given = [answer.json for answer in answers if answer.status == 200]
        is_plain = database.startswith("postgresql") and "serializable" not in database
        assert len(given) == 50 if is_plain else given
        [token] = {each["refreshToken"] for each in given}
        assert _get(server, given[-1]["accessToken"]).status == 200
    assert rows("SELECT generation, revoked_at FROM mfa_sessions") == [{"generation": rounds, "revoked_at": None}]
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'session.refreshed'")) == rounds


def test_a_token_that_comes_back_after_the_grace_ends_the_session_whatever_comes_beside_it(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    sessions = []
    for number in range(rounds):
        _, signed_in = _signed_in(inside, f"reuse{number}")
        sessions.append(
            (signed_in.refresh_token, post(server, "/auth/refresh", _refresh(signed_in.refresh_token)).json)
        )
    rows("UPDATE mfa_sessions SET rotated_at = '2020-01-01 00:00:00.000000'")
    for old, newest in sessions:
        bodies = [_refresh(token) for token in (newest["refreshToken"], old) * 10]
        answers = burst(server, "/auth/refresh", bodies)
        assert answers[0].status in (200, 401)
        assert {answer.status for answer in answers[1::2]} == {401}
        _assert_dead(server, [newest, *(answer.json for answer in answers if answer.status == 200)])
    assert rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL") == []
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'session.reused'")) == rounds


@pytest.mark.parametrize("ending", ["logout everywhere", "password change", "disabling"])
def test_a_refresh_beside_what_ends_all_sessions_leaves_none_alive_but_the_changers(
    server: str, inside: Services, rows: Rows, ending: str, rounds: int
) -> None:
    for number in range(rounds):
        person, changer = _signed_in(inside, f"end{number}")
        tokens = [_session(inside, person) for _ in range(3)]
        refreshes = [Call("/auth/refresh", _refresh(token)) for token in tokens] * 4
        calls = refreshes[:6] + _ending(ending, changer) + refreshes[6:]
        with _disabling(inside, person) if ending == "disabling" else nullcontext():
            answers = together(server, calls)
        ended = [answer for answer in answers if answer.status == 204]
        assert len(ended) == (0 if ending == "disabling" else 1)
        assert {answer.status for answer in answers} <= {200, 204, 401}
        _assert_dead(server, [answer.json for answer in answers if answer.status == 200])
        assert {answer.status for answer in burst(server, "/auth/refresh", list(map(_refresh, tokens)))} == {401}
        alive = _get(server, changer.access_token).status
        assert alive == (200 if ending == "password change" else 401)
    live = rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL")
    assert len(live) == (rounds if ending == "password change" else 0)


def test_a_refresh_beside_the_logout_of_its_own_session_leaves_it_ended(
    server: str, inside: Services, rounds: int
) -> None:
    for number in range(rounds):
        _, signed_in = _signed_in(inside, f"logout{number}")
        refreshes = [Call("/auth/refresh", _refresh(signed_in.refresh_token))] * 6
        logouts = [Call("/auth/logout", {}, signed_in.access_token)] * 2
        answers = together(server, refreshes[:3] + logouts + refreshes[3:])
        assert {answer.status for answer in answers[:3] + answers[5:]} <= {200, 401}
        assert 204 in {answer.status for answer in answers[3:5]}
        _assert_dead(server, [answer.json for answer in answers if answer.status == 200])


def test_a_reset_of_the_factors_beside_a_sign_in_leaves_no_token_alive(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person, signed_in = _signed_in(inside, f"reset{number}")
        tokens, code = _pending(inside, person, 6), totp(person.secret, _step() + 1)
        by = By(CLIENT, reason="the phone is gone")
        reset = threading.Thread(target=inside.administration.reset_factors, args=(by, person.user_id))
        calls = [Call("/auth/verify-mfa", _proof(token, code)) for token in tokens]
        reset.start()
        answers = together(server, [*calls, Call("/auth/refresh", _refresh(signed_in.refresh_token))])
        reset.join()
        assert {answer.status for answer in answers} <= {200, 401}
        _assert_dead(server, [answer.json for answer in answers if answer.status == 200])
        again = post(server, "/auth/verify-mfa", _proof(tokens[-1], totp(person.secret, _step() + 2)))
        assert again.json["code"] == "invalid_pending_token"
    assert rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL") == []
    assert rows("SELECT id FROM mfa_secrets") == rows("SELECT digest FROM mfa_recovery_codes") == []


# ── passwords ────────────────────────────────────────────────────────────────────────────────────


def test_ten_logins_at_once_with_the_right_password_succeed_even_right_after_some_failures(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    person = _person(inside, "ada")
    for _ in range(rounds):
        wrong, right = ({"username": "ada", "password": password} for password in ("wrong", PASSWORD))
        assert _statuses(burst(server, "/auth/login", [wrong] * 4)) == {401: 4}
        assert {row["failures"] for row in rows(f"SELECT failures FROM mfa_locks WHERE {OF}", id=person.user_id)} == {4}
        assert _statuses(burst(server, "/auth/login", [right] * 10)) == {200: 10}
        assert rows("SELECT failures FROM mfa_locks") == []


def test_of_thirty_wrong_passwords_at_once_no_more_are_looked_at_than_in_a_row(
    server: str, inside: Services, rows: Rows, rounds: int
) -> None:
    for number in range(rounds):
        person = _person(inside, f"guess{number}")
        started = time.monotonic()
        bodies = [{"username": person.username, "password": f"guess number {guess}"} for guess in range(30)]
        assert _statuses(burst(server, "/auth/login", bodies)) == {401: 30}
        most = _tries_in(time.monotonic() - started)
        failures = {row["failures"] for row in rows(f"SELECT failures FROM mfa_locks WHERE {OF}", id=person.user_id)}
        [counted] = failures
        assert 5 <= counted <= most
        told = rows(f"SELECT detail FROM mfa_events WHERE event = 'login.password_refused' AND {OF}", id=person.user_id)
        assert sum("true" not in str(row["detail"]).lower() for row in told) == counted


def test_all_of_this_ran_at_the_level_that_the_database_was_given(inside: Services, database: str) -> None:
    is_plain = database.startswith("postgresql") and "serializable" not in database
    level = inside.unit.run(lambda: inside.session.connection().get_isolation_level(), writes=True)
    assert level == ("READ COMMITTED" if is_plain else "SERIALIZABLE")


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Account:
    """Somebody with an account, made without a server in between."""

    user_id: str
    username: str
    secret: str


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "serializable"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database of each kind for all of these tests, since four processes take their time to start."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("_migrated_postgresql"))
    if request.param == "serializable":
        return _serializable(request.getfixturevalue("postgresql"))
    copy = tmp_path_factory.mktemp("races") / "mfa.db"
    shutil.copy(request.getfixturevalue("_migrated_sqlite"), copy)
    return f"sqlite:///{copy}"


def _serializable(postgresql: str) -> str:
    """A PostgreSQL as CockroachDB and YugabyteDB are: who collides with others is told to begin again."""
    url = new_database(postgresql, "mfa_serializable", default_transaction_isolation="serializable")
    engine = create_engine(url)
    schema.upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture(scope="module")
def rounds(database: str) -> int:
    """How often each race is run; where collisions cost time, fewer times."""
    return 5 if "serializable" in database else 20


@pytest.fixture(scope="module")
def server_config(database: str, instance: Path) -> dict[str, Any]:
    empty(database)  # other tests had other keys
    limits = ("MFA_AUTH_RATE_LIMIT", "MFA_SESSION_RATE_LIMIT", "MFA_REGISTRATION_RATE_LIMIT")
    settings = {"TESTING": True, "MFA_INSTANCE": str(instance), "MFA_DATABASE_URL": database, "MFA_BCRYPT_COST": 4}
    return settings | dict.fromkeys(limits, "100000 per minute") | {"MFA_HASHING_QUEUE": 50}


@pytest.fixture(scope="module")
def running_server(server_config: dict[str, Any], redis: str) -> Iterator[str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = server_config | {"MFA_PUBLIC_URL": address, "MFA_REDIS_URL": redis}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
    environment |= {"PORT": str(port), "WEB_CONCURRENCY": "4", "MFA_REDIS_URL": redis}
    environment |= {"TEST_CONFIG": json.dumps(settings)}
    command = [sys.executable, "-m", "gunicorn", "tests.served:app", "--log-level", "warning"]
    ready = lambda: urllib.request.urlopen(f"{address}/healthz", timeout=2).close()  # noqa: E731
    with running(command, ready=ready, env=environment, cwd=ROOT):
        yield address


@pytest.fixture
def server(running_server: str, database: str) -> str:
    """Four worker processes, on a database in which nobody has an account."""
    empty(database, keep="mfa_canaries")
    return running_server


@pytest.fixture
def inside(server: str, server_config: dict[str, Any]) -> Iterator[Services]:
    """The services in this process, on the server's database, with its keys and its clock."""
    settings = Settings.load(server_config | {"MFA_PUBLIC_URL": server})
    made = Services(settings, create_engine(settings.database), time.time)
    yield made
    made.close()


def _person(inside: Services, username: str) -> Account:
    secret = inside.accounts.register(username, PASSWORD, "someone@example.com", CLIENT).secret
    user_id = inside.unit.run(
        lambda: inside.session.scalar(select(User.id).where(User.username == username)), writes=False
    )
    return Account(str(user_id), username, secret)


def _signed_in(inside: Services, username: str) -> tuple[Account, SignedIn]:
    """Somebody who has just signed in for the first time."""
    person = _person(inside, username)
    (token,) = _pending(inside, person, 1)
    return person, inside.login.complete(token, Proof("totp", _code(person.secret)), CLIENT)


def _pending(inside: Services, person: Account, times: int) -> list[str]:
    """So many pending tokens, as right passwords give them."""
    ids = inside.unit.run(lambda: [inside.challenges.open(person.user_id) for _ in range(times)], writes=True)
    who = {"user_id": person.user_id, "username": person.username, "now": time.time()}
    return [inside.minter.pending(challenge_id=challenge_id, **who) for challenge_id in ids]


def _session(inside: Services, person: Account) -> str:
    """One more session; returns its refresh token."""
    opened = inside.unit.run(lambda: inside.sessions.open(person.user_id, ("pwd", "otp", "mfa"), CLIENT), writes=True)
    return opened.refresh_token


def _stored_key(inside: Services, person: Account) -> str:
    held = inside.unit.run(lambda: inside.totp.find_open(person.user_id, CLIENT), writes=True)
    assert held
    return base64.b32encode(held.secret).decode()


def _ending(ending: str, changer: SignedIn) -> list[Call]:
    bodies = {
        "logout everywhere": ("/auth/logout", {"everywhere": True}),
        "password change": ("/auth/password", {"currentPassword": PASSWORD, "newPassword": PASSWORD + "-changed"}),
    }
    return [Call(*bodies[ending], changer.access_token)] if ending in bodies else []


@contextmanager
def _disabling(inside: Services, person: Account) -> Iterator[None]:
    """An administrator disables the account meanwhile."""
    by = By(CLIENT, reason="left the company")
    thread = threading.Thread(target=inside.administration.disable, args=(by, person.user_id))
    thread.start()
    yield
    thread.join()


def _assert_dead(server: str, tokens: list[dict[str, Any]]) -> None:
    """Neither the access token nor the refresh token of any of these answers is good for anything."""
    calls = [Call("/api/profile", token=found["accessToken"], method="GET") for found in tokens]
    calls += [Call("/auth/refresh", _refresh(token)) for token in {found["refreshToken"] for found in tokens}]
    assert {answer.status for answer in together(server, calls)} <= {401}


def _refresh(token: str) -> dict[str, str]:
    return {"refreshToken": token}


def _get(server: str, token: str) -> Answer:
    return together(server, [Call("/api/profile", token=token, method="GET")])[0]


def _tries_in(seconds: float) -> int:
    """How many tries are looked at if they come one after another, as soon as each is let through."""
    return FIRST_DELAY + int(math.log2(seconds + 1))


def _register(server: str, username: str) -> str:
    answer = post(server, "/auth/register", _account(username))
    assert answer.status == 200, answer
    return str(answer.json["manualEntryKey"])


def _account(username: str) -> dict[str, str]:
    return {"username": username, "password": PASSWORD, "email": "someone@example.com"}


def _log_in(server: str, username: str, times: int) -> list[str]:
    answers = insistent(server, "/auth/login", [{"username": username, "password": PASSWORD}] * times)
    return [answer.json["tempToken"] for answer in answers]


def _proof(token: str, code: str) -> dict[str, str]:
    return {"tempToken": token, "totpCode": code}


def _step() -> int:
    return int(time.time()) // 30


def _code(secret: str, steps: int = 0) -> str:
    return totp(secret, _step() + steps)


def _wrong(secret: str) -> str:
    near = {_code(secret, steps) for steps in range(-4, 5)}
    return next(code for code in ("000000", "000001", "111111") if code not in near)


def _statuses(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
