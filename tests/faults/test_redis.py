"""The store of the limits fails, in every way: each process counts for itself, nothing is open, and it comes back."""

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.factories import PASSWORD
from tests.faults import (
    FALLS_BACK,
    contained,
    ensure_discreet,
    ensure_recovered,
    figure,
    of_replica,
    sign_in,
    warnings_in,
    workers_of,
)
from tests.faults.servers import Redis
from tests.stack import CREDENTIALS, MANY, Reply, Stack, Start, log_in, profile, register, verify, within

pytestmark = pytest.mark.services
Act = Callable[[Redis], object]

#: What may happen to it, how it ends, and what the log says of it.
HARMS: dict[str, tuple[Act, Act, str]] = {
    "down": (Redis.kill, Redis.start, "Connection refused"),
    "hangs": (Redis.stop, Redis.go_on, "Timeout"),
    "full": (lambda own: own.set("maxmemory", "1"), lambda own: own.set("maxmemory", "0"), "used memory > 'maxmemory'"),
    "read-only": (
        lambda own: own.run("REPLICAOF", "127.0.0.1", "1"),
        lambda own: own.run("REPLICAOF", "NO", "ONE"),
        "read only replica",
    ),
}


@pytest.mark.faults("Q8", "Q22")
@pytest.mark.parametrize("harm", HARMS)
def test_whatever_happens_to_it_the_limit_holds_and_comes_back(start: Start, own_redis: Redis, harm: str) -> None:
    strike, mend, reason = HARMS[harm]
    stack = start()
    ada, workers = sign_in(stack), workers_of(stack)
    with contained(stack, 429, "too_many_attempts", FALLS_BACK, secrets=ada.secrets, each=False) as answers:
        strike(own_redis)
        began = time.monotonic()
        tried = [guess(stack) for _ in range(16)]
        assert time.monotonic() - began < 8, "a store that hangs costs a quarter of a second, now and then"
        answers += [answer for answer in tried if answer.status == 429]
    assert statuses(tried).keys() == {401, 429}
    assert 5 <= statuses(tried)[401] <= 10, "five for each of the two processes"
    assert [guess(stack).status for _ in range(2)] == [429, 429]
    assert profile(stack, ada.access).status == 200
    for replica in stack.replicas:
        assert of_replica(replica, "/healthz").status == 200
        assert of_replica(replica, "/readyz").json["fields"] == {"limiter": "is down"}
    assert figure(stack, "mfa_limiter_fallback") >= 1
    assert [said for said in warnings_in(stack, FALLS_BACK) if reason not in said] == []

    mend(own_redis)
    ensure_recovered(stack, workers)
    own_redis.run("FLUSHALL")
    assert within(20, lambda: guess(stack).status == 401), "counted by it again"
    assert within(20, lambda: guess(stack) and figure(stack, "mfa_limiter_fallback") == 0)
    assert 429 in statuses([guess(stack) for _ in range(6)])


@pytest.mark.faults("Q8")
def test_a_sign_in_takes_hardly_longer_while_it_hangs(start: Start, own_redis: Redis) -> None:
    stack = start(**MANY)
    ada = sign_in(stack)
    own_redis.stop()
    for _ in range(2):
        began = time.monotonic()
        assert verify(stack, log_in(stack).json["tempToken"], ada.phone.code()).status == 200
        assert time.monotonic() - began < 3
    ensure_discreet(stack, ada.secrets)


@pytest.mark.faults("Q9")
def test_what_it_forgets_the_database_still_counts(start: Start, own_redis: Redis) -> None:
    stack = start()
    register(stack)
    wrong = {"username": "ada", "password": f"{PASSWORD}-not"}
    assert [stack.call("POST", "/auth/login", wrong).status for _ in range(6)] == [401] * 5 + [429]
    own_redis.run("FLUSHALL")
    refused = stack.call("POST", "/auth/login", CREDENTIALS)
    assert (refused.status, refused.json["code"]) == (401, "invalid_credentials"), (
        "the right password, but one has to wait"
    )


@pytest.mark.faults("Q9")
def test_a_row_of_wrong_codes_outlives_it(start: Start, own_redis: Redis) -> None:
    stack = start(**MANY)
    ada = sign_in(stack)
    for _ in range(5):
        own_redis.run("FLUSHALL")
        assert verify(stack, log_in(stack).json["tempToken"], "000000").status == 401
    pending = log_in(stack).json["tempToken"]
    own_redis.run("FLUSHALL")
    assert verify(stack, pending, ada.phone.code()).status == 401, "although it is the right one"


def guess(stack: Stack) -> Reply:
    return stack.call("POST", "/auth/login", {"username": "nobody", "password": f"{PASSWORD}-not"})


def statuses(answers: list[Reply]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
