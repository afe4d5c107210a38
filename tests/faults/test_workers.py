"""Processes are killed, hang, or are replaced while people use them."""

import itertools
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.browsers import Phone
from tests.faults import (
    ensure_discreet,
    ensure_recovered,
    ensure_refused,
    figure,
    register_as,
    sign_in,
    under_load,
    warnings_in,
    workers_of,
)
from tests.services import Rows
from tests.stack import (
    CREDENTIALS,
    MANY,
    Reply,
    Stack,
    Start,
    log_in,
    profile,
    refresh,
    register,
    verify,
    within,
)

pytestmark = pytest.mark.services
OPEN = MANY | {"MFA_REGISTRATION_RATE_LIMIT": "100000 per minute"}
COMPLETE = "SELECT username FROM mfa_users JOIN mfa_secrets ON user_id = mfa_users.id WHERE username = :name"
#: One bcrypt of this cost takes about a second.
SLOW_HASH = {"MFA_BCRYPT_COST": "14"}


@pytest.mark.faults("Q1", "Q22")
def test_killed_at_any_step_of_a_registration_there_is_a_whole_account_or_none(
    start: Start, rows: Rows, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    stack = start(**OPEN, TEST_KILL_IN=["/auth/register", str(number)])
    found = []
    for step in itertools.count(1):
        number.write_text(str(step))
        answer = register_as(stack, name := f"user{step:02}")
        if answer.status == 200:
            break  # a registration has fewer steps than that
        ensure_refused(answer, 502, "no_answer")
        users = rows("SELECT id FROM mfa_users WHERE username = :name", name=name)
        assert len(users) == len(rows(COMPLETE, name=name)), "a user without a secret"
        found += [len(users)]
        ensure_usable(stack, name, is_there=bool(users))
    assert found == sorted(found), "from the commit on it is there"
    assert set(found) == {0, 1}
    assert found.count(0) >= 4
    assert len(warnings_in(stack, "was sent SIGKILL")) == len(found)
    ensure_discreet(stack, [CREDENTIALS["password"]])


def ensure_usable(stack: Stack, name: str, *, is_there: bool) -> None:
    """Trying again works: what is there refuses the name, and its owner can begin with the password."""
    assert within(15, lambda: stack.call("GET", "/readyz").status == 200), "nginx rests after three failures"
    again = register_as(stack, name)
    if not is_there:
        assert again.status == 200, again
        return
    ensure_refused(again, 400, "user_exists")
    pending = stack.call("POST", "/auth/login", {"username": name, "password": CREDENTIALS["password"]})
    key = stack.call("POST", "/auth/enrol", {"tempToken": pending.json["tempToken"]}).json["manualEntryKey"]
    assert verify(stack, pending.json["tempToken"], Phone(key).code()).status == 200


@pytest.mark.faults("Q12")
def test_workers_that_are_killed_under_load_cost_their_own_requests_alone(start: Start) -> None:
    stack = start(**MANY)
    ada = sign_in(stack)
    answers: list[Reply] = []
    with under_load(lambda: answers.append(profile(stack, ada.access))):
        for _ in range(3):
            for pid in workers_of(stack)[:1]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(1)
            assert refresh(stack, ada.refresh).status in (200, 502)
    assert len(answers) > 10
    assert {answer.status for answer in answers} == {200}, "reading is asked of the other one"
    assert len(warnings_in(stack, "was sent SIGKILL")) == 3
    ensure_recovered(stack, workers_of(stack))
    ensure_discreet(stack, ada.secrets)


@pytest.mark.faults("Q12")
def test_what_is_being_answered_when_a_replica_is_told_to_stop_is_answered(start: Start) -> None:
    stack = start(**MANY, **SLOW_HASH)
    register(stack)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(stack.call, "POST", "/auth/login", CREDENTIALS) for _ in range(4)]
        time.sleep(0.5)
        assert not any(each.done() for each in waiting)
        for stopping in [pool.submit(replica.stop) for replica in stack.replicas]:
            stopping.result()
        assert [each.result().status for each in waiting] == [200] * 4


@pytest.mark.faults("Q12")
def test_sighup_replaces_the_workers_and_fails_nobody(start: Start) -> None:
    stack = start(**MANY)
    ada, before = sign_in(stack), workers_of(stack)
    answers: list[Reply] = []
    with under_load(lambda: answers.extend((profile(stack, ada.access), log_in(stack)))):
        for replica in stack.replicas:
            assert replica.process
            replica.process.send_signal(signal.SIGHUP)
        assert within(20, lambda: len(workers_of(stack)) == 2 and not set(workers_of(stack)) & set(before))
        time.sleep(1)
    assert len(answers) > 10
    assert [answer for answer in answers if answer.status != 200] == []


@pytest.mark.faults("Q12")
def test_workers_that_are_replaced_after_some_requests_fail_nobody_and_lose_no_count(start: Start) -> None:
    stack = start(**MANY, GUNICORN_MAX_REQUESTS="30")
    ada, before = sign_in(stack), workers_of(stack)
    answers: list[Reply] = []
    with under_load(lambda: answers.extend((profile(stack, ada.access), log_in(stack)))):
        assert within(120, lambda: len(answers) > 150 and not set(workers_of(stack)) & set(before))
    assert [answer for answer in answers if answer.status != 200] == []
    assert within(20, lambda: len(workers_of(stack)) == 2)
    counted = 'mfa_request_seconds_count{method="GET",route="/api/profile",status="200"}'
    assert figure(stack, counted) == len(answers) / 2
    for pid in workers_of(stack):
        (folder,) = set(re.findall(r"\S+/mfa-metrics-\w+", Path(f"/proc/{pid}/maps").read_text()))
        assert {path.name.partition(".")[0][-2:] for path in Path(folder).iterdir()} == {"_1"}, "no file for each"


@pytest.mark.faults("Q13", "Q22")
def test_a_worker_that_hangs_in_the_middle_of_a_hash_is_replaced_and_leaves_no_lock(start: Start, rows: Rows) -> None:
    stack = start(**MANY, **SLOW_HASH, GUNICORN_CMD_ARGS="--timeout 3")
    register(stack)
    hung = workers_of(stack)
    with ThreadPoolExecutor() as pool:
        lost = [pool.submit(stack.call, "POST", "/auth/login", CREDENTIALS) for _ in range(2)]
        time.sleep(0.5)
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        for each in lost:
            ensure_refused(each.result(), 502, "no_answer")
    assert len(warnings_in(stack, "WORKER TIMEOUT")) >= 2
    assert within(15, lambda: len(workers_of(stack)) == 2 and not set(workers_of(stack)) & set(hung))
    assert rows("SELECT * FROM mfa_locks") == rows("SELECT * FROM mfa_challenges") == []
    assert within(15, lambda: stack.call("POST", "/auth/login", CREDENTIALS).status == 200)
    ensure_discreet(stack, [CREDENTIALS["password"]])
