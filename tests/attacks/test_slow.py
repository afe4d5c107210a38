"""Clients that begin and do not go on: others are answered all the same."""

import contextlib
import time

from tests.attacks.case import case
from tests.attacks.target import Call, Target


@case(
    "R8",
    holds="through the proxy forty half-sent headers and bodies keep nobody else waiting",
    stems_from="Slowloris, RUDY",
    broken_by="one_thread",
    needs=("proxy", "tries"),
)
def test_slow_clients_keep_nobody_waiting(target: Target) -> None:
    others_are_answered_beside(target, 40)


@case(
    "R8c",
    holds="with or without a proxy fifteen half-sent headers and bodies keep nobody else waiting",
    stems_from="Slowloris, RUDY",
    broken_by="one_thread",
    needs=("tries",),
)
def test_some_slow_clients_need_no_proxy(target: Target) -> None:
    others_are_answered_beside(target, 15)


def others_are_answered_beside(target: Target, number: int) -> None:
    """Send so many halves of requests, every other one a body, and ask for something meanwhile."""
    head = f"POST /auth/login HTTP/1.1\r\nHost: {target.host}\r\n".encode()
    halves = (b"X-Slow: ", b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    target.pace(number)
    with contextlib.ExitStack() as ending:
        for place in range(number):
            ending.enter_context(connection := target.connection(""))
            connection.sendall(head + halves[place % 2])
        time.sleep(0.3)
        for _ in range(3):
            try:
                answer = target.shows(target.get("/healthz"))
            except TimeoutError:
                raise AssertionError(f"{number} slow clients block the service") from None
            assert answer.status == 200, "slow clients block the service"
            assert answer.seconds < 3, f"others wait for {answer.seconds:.1f} s"


@case(
    "C12",
    holds="twenty logins at once leave the service alive, and who has to come back is told when",
    stems_from="ASVS 15.2.2",
    broken_by="busy_500",
    needs=("tries",),
)
def test_many_logins_at_once_are_bounded(target: Target) -> None:
    body = {"username": "attack-nobody", "password": "wrong-password-1"}
    answers = target.together([Call("POST", "/auth/login", body)] * 20)
    target.shows(answers[-1])
    assert {answer.status for answer in answers} <= {401, 503}
    assert all(int(answer.get("retry-after")) >= 1 for answer in answers if answer.status == 503)
    assert target.get("/healthz").seconds < 3
