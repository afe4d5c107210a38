"""Clients that begin and do not go on: others are answered all the same."""

import contextlib
import time

from tests.attacks.case import case
from tests.attacks.target import Call, Person, Target

#: So many clients ask so often for the longest document there is: more than the buffers on the way take.
READERS, DOCUMENTS = 6, 50


@case(
    "R8",
    holds="through the proxy forty half-sent headers and bodies keep nobody else waiting",
    stems_from="Slowloris, RUDY",
    broken_by="one_thread",
    needs=("proxy", "tries"),
)
def test_slow_clients_keep_nobody_waiting(target: Target) -> None:
    others_are_answered_beside(target, target.newcomer(), 40)


@case(
    "R8c",
    holds="with or without a proxy fifteen half-sent headers and bodies keep nobody else waiting",
    stems_from="Slowloris, RUDY",
    broken_by="one_thread",
    needs=("tries",),
)
def test_some_slow_clients_need_no_proxy(target: Target) -> None:
    person = target.newcomer()
    for where in filter(None, (target, target.direct)):
        others_are_answered_beside(where, person, 15)


def others_are_answered_beside(target: Target, person: Person, number: int) -> None:
    """Send so many halves of requests, every other one a body, and log in meanwhile, as somebody does any day."""
    head = f"POST /auth/login HTTP/1.1\r\nHost: {target.host}\r\n".encode()
    halves = (b"X-Slow: ", b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    target.pace(number)
    with contextlib.ExitStack() as ending:
        for place in range(number):
            ending.enter_context(connection := target.connection(""))
            connection.sendall(head + halves[place % 2])
        somebody_is_let_in(target, person, f"{number} slow clients")


@case(
    "R8d",
    holds="who asks for much and reads nothing of it keeps nobody else waiting",
    stems_from="slow reading (slowhttptest -X)",
    broken_by="one_thread writes_under_lock",
    needs=("tries",),
)
def test_slow_readers_keep_nobody_waiting(target: Target) -> None:
    person = target.newcomer()
    for where in filter(None, (target, target.direct)):
        asked = Call("GET", "/openapi.json", headers={"Connection": "keep-alive"}).head(where.host) * DOCUMENTS
        where.pace(READERS * DOCUMENTS)
        with contextlib.ExitStack() as ending:
            for _ in range(READERS):
                ending.enter_context(connection := where.connection(""))
                connection.sendall(asked)
            somebody_is_let_in(where, person, f"{READERS} slow readers")


def somebody_is_let_in(target: Target, person: Person, beside: str) -> None:
    """A right password is answered within a second; of three, for a machine may have something else to do."""
    time.sleep(0.3)
    login = Call("POST", "/auth/login", {"username": person.name, "password": person.password})
    seconds = []
    for _ in range(3):
        try:
            answer = target.shows(target.send(login))
        except TimeoutError:
            raise AssertionError(f"{beside} block the service") from None
        assert answer.status == 200, f"{beside} block the service: {answer.status}"
        seconds.append(answer.seconds)
    assert min(seconds) < 1, f"others wait for {min(seconds):.1f} s beside {beside}"


@case(
    "C12",
    holds="of forty logins at once no more are hashed than there is room for, who has to come back is told when, and "
    "the service is well meanwhile",
    stems_from="ASVS 15.2.2",
    broken_by="busy_500 unbounded_hashing health_waits",
    needs=("tries",),
)
def test_many_logins_at_once_are_bounded(target: Target) -> None:
    body = {"username": "attack-nobody", "password": "wrong-password-1"}
    # What is sent last finds all the others waiting.
    answers = target.together([Call("POST", "/auth/login", body)] * 40 + [Call("GET", "/healthz")] * 3)
    logins, healths = answers[:40], answers[40:]
    busy = [answer for answer in logins if answer.status == 503]
    target.shows((busy or logins)[-1], f"{len(busy)} of {len(logins)} were refused")
    assert {answer.status for answer in logins} <= {401, 503}
    assert all(int(answer.get("retry-after")) >= 1 for answer in busy)
    assert {answer.status for answer in healths} == {200}
    assert min(answer.seconds for answer in healths) < 1, "health waits for those who log in"
    # Elsewhere there may be room for forty.
    assert busy or target.inside is None, "forty passwords were hashed at once"
