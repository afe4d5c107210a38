"""Whether a stranger learns which names exist: by what is answered, and by when."""

import statistics
import time
from collections import defaultdict

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, Target

#: Headers that differ from answer to answer whatever was asked.
OWN = ("date", "x-request-id")


def seen(answer: Answer) -> tuple[object, ...]:
    return answer.status, answer.content, tuple(pair for pair in answer.headers if pair[0] not in OWN)


@case(
    "T46",
    holds="unknown, unconfirmed and enrolled users with a wrong password get the same bytes",
    stems_from="CVE-2024-41952",
    broken_by="tells_unknown",
)
def test_a_refusal_does_not_tell_who_exists(target: Target) -> None:
    enrolled, unconfirmed = target.person(), target.newcomer()
    names = (enrolled.name, unconfirmed.name, "attack-nobody", enrolled.name.upper(), "a:b")
    assert len({seen(enrolled.login(username=name, password="wrong-password-1")) for name in names}) == 1
    for more in ({"password": "x" * 80}, {"password": "wrong-password-1", "deviceToken": "x"}):
        assert len({seen(enrolled.login(**{"username": name} | more)) for name in names[1:3]}) == 1


@case(
    "C1",
    holds="a disabled user with the right password gets the bytes of a wrong one",
    stems_from="ASVS 6.3.8",
    broken_by="tells_disabled",
    needs=("admin",),
)
def test_a_refusal_does_not_tell_who_is_disabled(target: Target) -> None:
    person = target.person()
    path = f"/api/admin/users/{target.id_of(person)}"
    assert target.send(Call("PATCH", path, {"disabled": True}, target.admin())).status == 200
    nobody = seen(person.login(username="attack-nobody"))
    assert seen(person.login()) == seen(person.login(password="wrong-password-1")) == nobody


@case(
    "C3",
    holds="a limit that is used up looks the same for known and unknown names",
    stems_from="PortSwigger: username enumeration via account lock",
    broken_by="lock_tells",
    needs=("tries",),
)
def test_a_limit_does_not_tell_who_exists(target: Target) -> None:
    person = target.person()
    found = []
    for name in (person.name, "attack-nobody"):
        source = target.client()
        call = Call("POST", "/auth/login", {"username": name, "password": "wrong-password-1"}, source=source)
        answers = [target.once(call) for _ in range(6)]
        found.append([(answer.status, answer.json.get("error")) for answer in answers])
    assert found[0] == found[1]


@case(
    "C2",
    holds="a wrong password takes as long for an unknown name as for one that exists",
    stems_from="CVE-2025-6011, GO-2025-3854",
    broken_by="fast_unknown",
)
def test_time_does_not_tell_who_exists(target: Target) -> None:
    for _ in range(3):
        times: dict[str, list[float]] = {"known": [], "unknown": []}
        for _ in range(2):  # an account answers otherwise from its fifth failure on
            person = target.newcomer()
            for number in range(4):
                for kind, name in (("known", person.name), ("unknown", f"attack-nobody-{number}")):
                    times[kind].append(person.login(username=name, password="wrong-password-1").seconds)
        known, unknown = (min(statistics.median(each), min(each) * 1.5) for each in times.values())
        if abs(known - unknown) < 0.3 * max(known, unknown):
            return
    raise AssertionError(f"a name that exists takes {known * 1000:.0f} ms, an unknown one {unknown * 1000:.0f} ms")


@case(
    "C2c",
    holds="nor does time tell who exists by a password that is long, longer than bcrypt reads, or blank",
    stems_from="CVE-2025-6011, ASVS 6.3.8",
    broken_by="fast_long_unknown fast_blank_unknown",
)
def test_no_length_of_a_password_tells_who_exists(target: Target) -> None:
    lengths: list[int] = []
    for _ in range(3):
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        passwords = ("wrong-password-1", "x" * 60, "x" * 73, "")
        for _ in range(2):  # an account answers otherwise from its fifth failure on
            person = target.newcomer()
            for password in passwords:
                for kind, name in (("known", person.name), ("unknown", "attack-nobody")):
                    times[kind, password].append(person.login(username=name, password=password).seconds)
        fast = {key: min(each) for key, each in times.items()}
        both = {each: sorted((fast["known", each], fast["unknown", each])) for each in passwords}
        lengths = [len(each) for each, (less, more) in both.items() if less < more / 2]
        if not lengths:
            return
    raise AssertionError(f"a password of {lengths} bytes takes another time for a name that exists")


@case(
    "C2b",
    holds="on a machine of its own, an unknown name costs the whole hash that one that exists does: half would show",
    stems_from="CVE-2025-6011, GO-2025-3854",
    broken_by="cheap_unknown",
    needs=("addresses", "database"),
)
def test_time_is_that_of_the_whole_hash(target: Target) -> None:
    person, began = target.person(), time.monotonic()
    names = [person.name, f"attack-nobody-{target.run}"]
    times: dict[str, list[float]] = {name: [] for name in names}
    while not is_clear(times, time.monotonic() - began):
        names.reverse()
        for name in names:
            times[name].append(person.login(username=name, password="wrong-password-1").seconds)
    assert apart(times) < 0.1, f"after {len(times[person.name])} rounds they are {apart(times):.0%} apart"


def is_clear(times: dict[str, list[float]], seconds: float) -> bool:
    """Whether no more rounds are wanted: soon where the two are close, and only then later."""
    rounds = min(map(len, times.values()))
    close = 0.03 if seconds < 6 else 0.1
    return rounds >= 9 and (apart(times) < close or seconds > 20 or rounds >= 90)


def apart(times: dict[str, list[float]]) -> float:
    """How far two kinds are apart, by the fastest thirds: whatever else a machine does makes things slower only."""
    fast = [statistics.mean(sorted(each)[: len(each) // 3]) for each in times.values()]
    return 1 - min(fast) / max(fast)


@case(
    "M20",
    holds="no token and a token that is none are told apart, a forged and an ended one are not",
    stems_from="ASVS 16.5.1",
    broken_by="tells_expired",
)
def test_bad_tokens_are_told_apart_by_nothing(target: Target) -> None:
    person = target.person()
    head, body, signature = person.access.split(".")
    assert target.post("/auth/logout", {}, person.access).status == 204
    forged = (person.access, f"{head}.{body}.{signature[::-1]}", "garbage", f"{head}.{head}.{signature}", "a.b.c")
    assert len({(a.status, a.content, a.get("www-authenticate")) for a in map(person.profile, forged)}) == 1
