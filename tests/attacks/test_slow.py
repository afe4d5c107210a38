"""Clients that begin and do not go on: others are answered all the same."""

import time

from tests.attacks.case import case
from tests.attacks.target import Call, Target


@case(
    "R8",
    holds="forty half-sent headers and bodies keep nobody else waiting",
    stems_from="Slowloris, RUDY",
    broken_by="one_thread",
    needs=("tries",),
)
def test_slow_clients_keep_nobody_waiting(target: Target) -> None:
    head = f"POST /auth/login HTTP/1.1\r\nHost: {target.host}\r\n".encode()
    slow = [target.connection("") for _ in range(40 if "proxy" in target.offers else 15)]
    try:
        for number, connection in enumerate(slow):
            body = b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            connection.sendall(head + (body if number % 2 else b"X-Slow: "))
        time.sleep(0.3)
        for _ in range(3):
            answer = target.get("/healthz")
            assert answer.status == 200, "slow clients block the service"
            assert answer.seconds < 3
    finally:
        for connection in slow:
            connection.close()


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
    assert {answer.status for answer in answers} <= {401, 503}
    assert all(int(answer.get("retry-after")) >= 1 for answer in answers if answer.status == 503)
    assert target.get("/healthz").seconds < 3
