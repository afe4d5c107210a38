"""Clocks that jump, and clocks that differ: nothing is accepted twice, nothing is open, and it passes."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.bursts import Answer, Call, together
from tests.factories import PASSWORD, totp
from tests.faults import ensure_discreet, sign_in
from tests.faults.servers import Redis
from tests.stack import CREDENTIALS, MANY, Replica, Stack, Start, log_in, profile, refresh, register, verify, within

pytestmark = pytest.mark.services
HOUR = 3600
WRONG = {"username": "nobody", "password": f"{PASSWORD}-not"}


# ── one jumps ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q10")
def test_forward_and_back_no_step_is_taken_twice_and_no_token_outlives_its_hour(start: Start, clock: "Off") -> None:
    stack = start(**MANY, TEST_CLOCK=str(clock.file))
    secret = register(stack).json["manualEntryKey"]
    clock.set(HOUR)
    pending = log_in(stack).json["tempToken"]
    tokens = verify(stack, pending, totp(secret, clock.step())).json
    assert profile(stack, tokens["accessToken"]).status == 200

    clock.set(0)
    assert profile(stack, tokens["accessToken"]).status == 401, "it is from the future"
    for steps in (-1, 0, 1):
        refused = verify(stack, log_in(stack).json["tempToken"], totp(secret, clock.step() + steps))
        assert (refused.status, refused.json["code"]) == (401, "invalid_code"), "until time catches up"
    clock.set(HOUR + 60)
    assert verify(stack, log_in(stack).json["tempToken"], totp(secret, clock.step())).status == 200
    clock.set(3 * HOUR)
    assert profile(stack, tokens["accessToken"]).status == 401
    ensure_discreet(stack, [PASSWORD, secret, pending])


@pytest.mark.faults("Q10")
@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_lock_is_neither_open_nor_for_ever(start: Start, clock: "Off", jump: int) -> None:
    stack = start(**MANY, TEST_CLOCK=str(clock.file))
    ada = sign_in(stack)
    for _ in range(5):
        assert verify(stack, log_in(stack).json["tempToken"], "000000").status == 401
    pending = log_in(stack).json["tempToken"]
    assert verify(stack, pending, totp(ada.phone.secret, clock.step() + 1)).status == 401, "it is locked"
    clock.set(jump)
    answer = verify(stack, log_in(stack).json["tempToken"], totp(ada.phone.secret, clock.step()))
    assert answer.status == (200 if jump > 0 else 401), "what is over, is over; and back, it is not over"
    clock.set(2 * HOUR)
    assert verify(stack, log_in(stack).json["tempToken"], totp(ada.phone.secret, clock.step())).status == 200


@pytest.mark.faults("Q10")
@pytest.mark.parametrize(("store", "jump"), [("redis", HOUR), ("memory", HOUR), ("memory", -HOUR)])
def test_the_limit_is_neither_open_nor_for_ever(
    start: Start, clock: "Off", own_redis: Redis, store: str, jump: int
) -> None:
    stack = start(TEST_CLOCK=str(clock.file), MFA_AUTH_RATE_LIMIT="5 per 8 seconds")
    if store == "memory":
        own_redis.kill()  # each process counts for itself
    began = time.monotonic()
    assert [guess(stack) for _ in range(11)][-1] == 429
    clock.set(jump)
    passed = [guess(stack) for _ in range(20)].count(401)
    assert time.monotonic() - began < 7, "this machine is too slow for this test"
    assert passed <= (10 if store == "memory" and jump > 0 else 0), "at most one more window for each process"
    clock.set(max(jump, 0))  # what was put back is right again
    assert within(20, lambda: guess(stack) == 401)


@pytest.mark.faults("Q10")
def test_while_it_stands_still_people_sign_in_and_out(start: Start, clock: "Off") -> None:
    clock.freeze()
    stack = start(**MANY, TEST_CLOCK=str(clock.file))
    ada = sign_in(stack)
    renewed = refresh(stack, ada.refresh)
    assert renewed.status == 200
    assert profile(stack, renewed.json["accessToken"]).status == 200
    assert stack.call("POST", "/auth/logout", {}, renewed.json["accessToken"]).status == 204
    assert profile(stack, renewed.json["accessToken"]).status == 401


# ── two differ ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q11", "Q22")
@pytest.mark.parametrize("ahead", [0, 1])
def test_with_twenty_seconds_between_two_replicas_what_one_gives_the_other_takes(
    start: Start, tmp_path: Path, ahead: int
) -> None:
    early, late = Off(tmp_path / "early", 20), Off(tmp_path / "late", 0)
    stack = start({"TEST_CLOCK": str(early.file)}, {"TEST_CLOCK": str(late.file)}, **MANY)
    first, second = stack.replicas[::-1] if ahead else stack.replicas
    secret = register(stack).json["manualEntryKey"]

    pending = [ask(replica, "/auth/login", CREDENTIALS).json["tempToken"] for replica in (first, first, second)]
    step = late.step()
    body = [{"tempToken": token, "totpCode": totp(secret, step)} for token in pending]
    tokens = ask(second, "/auth/verify-mfa", body[0])
    assert tokens.status == 200, "begun on one, completed on the other"
    for replica, replayed in ((first, body[1]), (second, body[2])):
        assert ask(replica, "/auth/verify-mfa", replayed).status == 401, "and the step is spent on both"

    for replica in (first, second, first):
        assert ask(replica, "/api/profile", token=tokens.json["accessToken"], method="GET").status == 200
        tokens = ask(replica, "/auth/refresh", {"refreshToken": tokens.json["refreshToken"]})
        assert tokens.status == 200
    assert ask(second, "/auth/logout", {}, tokens.json["accessToken"]).status == 204
    for replica in stack.replicas:
        assert ask(replica, "/api/profile", token=tokens.json["accessToken"], method="GET").status == 401
    ensure_discreet(stack, [PASSWORD, secret, *pending])


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Off:
    """How far a clock is off; the processes that look at the file believe it."""

    def __init__(self, file: Path, seconds: float = 0) -> None:
        self.file = file
        self.set(seconds)

    def set(self, seconds: float) -> None:
        self._seconds = seconds
        written = self.file.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self.file)  # nobody reads half of it

    def freeze(self) -> None:
        """It is this moment, and stays it."""
        self.file.write_text(f"={time.time()}")

    def step(self) -> int:
        """The step of a code by this clock."""
        return int(time.time() + self._seconds) // 30


@pytest.fixture
def clock(tmp_path: Path) -> Off:
    return Off(tmp_path / "off")


def ask(
    replica: Replica, path: str, body: dict[str, Any] | None = None, token: str = "", method: str = "POST"
) -> Answer:
    """One request to this replica, past nginx."""
    return together(f"http://{replica.address}", [Call(path, body or {}, token, method)])[0]


def guess(stack: Stack) -> int:
    return stack.call("POST", "/auth/login", WRONG).status
