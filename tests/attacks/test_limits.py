"""Guessing: what is counted, by whom, how long, and that nothing gets round it."""

import time
from dataclasses import replace

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, CouldNotTry, Line, Person, Target
from tests.attacks.test_enumeration import seen

ADDRESSES = ("addresses",)
TRIES = ("tries",)
#: Of what is about the numbers of the limits.
LIMITED = ("addresses", "limits")
#: Of what only wants a limit that is used up: from one address it is the last to run.
USED_UP = ("limits",)
#: Per client and route, by default.
LIMIT = 5
#: Of administration in a minute, for each client.
ADMINISTRATION = 300
#: Of registrations in an hour, for all of them together, on the suite's own stack (stacks.py) at most.
REGISTRATIONS = 1500


@case(
    "T4",
    holds="five wrong codes kill a pending token, whatever is done right elsewhere meanwhile",
    stems_from="150 wrong codes on one pending token, then success",
    broken_by="endless_codes tries_uncounted",
)
def test_five_wrong_codes_kill_a_pending_token(target: Target) -> None:
    person = target.person()
    pending = person.pending()
    for _ in range(5):
        assert person.verify(pending, person.wrong()).status == 401
    time.sleep(1.1)
    answer = person.verify(pending, person.code())
    assert (answer.status, answer.code) == (401, "invalid_pending_token")
    other = target.person()
    pending = other.pending()
    for number in range(5):  # four, and one more after a step-up has put the account's counter back
        assert number < 4 or other.step_up(other.code()).status == 200
        assert other.verify(pending, other.wrong()).code == "invalid_code"
    assert other.verify(pending, other.code()).code == "invalid_pending_token", "tries of a token are not counted"


@case(
    "T5",
    holds="a new login does not reset the count of wrong codes",
    stems_from="RFC 4226 section 7.3",
    broken_by="login_resets",
)
def test_a_new_login_resets_nothing(target: Target) -> None:
    person = target.person()
    opens = 0.0
    for number in range(6):
        time.sleep(1.1 if number == 5 else 0)
        person.verify(person.pending(), person.wrong())
        opens = time.monotonic() + 2
    pending, code = person.pending(), person.code()
    refused_while(opens, person.verify(pending, code))


def refused_while(opens: float, answer: Answer) -> None:
    """That a right code was refused because of the lock, and not too late to tell."""
    if time.monotonic() >= opens:
        raise CouldNotTry("it took too long to tell: the lock was over by itself")
    assert answer.status == 401, "a right code was looked at while the factor was locked"


@case(
    "T11",
    holds="every route that takes a code counts on the same counter",
    stems_from="CVE-2024-32868, CVE-2025-64102",
    broken_by="counters_apart",
)
def test_all_routes_share_one_counter(target: Target) -> None:
    person = target.person()
    target.post("/api/mfa/totp", {}, person.access)
    pending = person.pending()
    for _ in range(2):
        person.step_up(person.wrong())
        person.verify(pending, person.wrong())
    target.post("/api/mfa/totp/confirm", {"totpCode": "x"}, person.access)
    time.sleep(1.1)
    target.post("/api/mfa/totp/confirm", {"totpCode": "x"}, person.access)
    refused_while(time.monotonic() + 2, person.step_up(person.code()))


@case(
    "T12",
    holds="of fifty wrong codes at once no more than five are looked at",
    stems_from="CVE-2023-47111, CVE-2024-4629",
    broken_by="check_then_count",
    needs=TRIES,
)
def test_parallel_guesses_beat_no_limit(target: Target) -> None:
    person = target.person()
    tokens = [person.pending() for _ in range(5)]
    calls = [Call("POST", "/auth/verify-mfa", {"tempToken": t, "totpCode": person.wrong()}) for t in tokens * 10]
    answers = target.together(calls)
    looked_at = [answer for answer in answers if answer.code == "invalid_code"]
    assert {answer.status for answer in answers} == {401}
    assert 1 <= len(looked_at) <= LIMIT, f"{len(looked_at)} of {len(calls)} guesses were looked at"


@case(
    "T13",
    holds="after a refusal its failure is on disk: of a step-up, of the second step, and of a password",
    stems_from="CVE-2026-35597",
    broken_by="counter_lost verify_counter_lost password_counter_lost",
    needs=("database",),
)
def test_a_failure_is_on_disk(target: Target) -> None:
    assert target.inside
    person = target.person()
    for number in (1, 2, 3):
        assert person.step_up(person.wrong()).status == 401
        assert target.inside.failures(person.name) == number
    assert person.verify(person.pending(), person.wrong()).status == 401
    assert target.inside.failures(person.name) == 4, "a sign-in that failed took its failure with it"
    for number in (1, 2, 3):
        assert person.login(password="wrong-password-1").status == 401
        assert target.inside.failures(person.name, "password") == number


@case(
    "T14",
    holds="all addresses of one IPv6 /64, however spelled, are one client",
    stems_from="CVE-2026-45364",
    broken_by="ipv6_apart",
    needs=("direct",),
)
def test_a_network_of_ipv6_is_one_client(target: Target) -> None:
    assert target.direct
    spelled = (
        "2001:db8:7:7::1",
        "2001:DB8:7:7::2",
        "2001:0db8:0007:0007:0:0:0:3",
        "2001:db8:7:7:8000::",
        "[2001:db8:7:7::5]:443",
    )
    statuses = [wrong_login(target.direct, {"X-Forwarded-For": each}).status for each in (*spelled, "2001:db8:7:7::6")]
    assert statuses == [401] * LIMIT + [429]
    assert wrong_login(target.direct, {"X-Forwarded-For": "2001:db8:7:8::1"}).status == 401


def wrong_login(target: Target, headers: dict[str, str], source: str = "") -> Answer:
    body = {"username": "attack-nobody", "password": "wrong-password-1"}
    return target.once(Call("POST", "/auth/login", body, headers=headers, source=source))


def use_up(target: Target, source: str) -> None:
    """Spend what a client has of logins; who has one address alone may have spent some before."""
    statuses = [wrong_login(target, {}, source).status for _ in range(LIMIT + 1)]
    assert set(statuses) <= {401, 429}, statuses
    assert statuses[-1] == 429, statuses


SPOOFED = (
    *(
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Real-IP",
        "Forwarded",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
    ),
    *("X-Cluster-Client-IP", "X-Originating-IP", "X-Remote-Addr", "Client-IP"),
)


@case(
    "T15",
    holds="no header moves a client out of its limit",
    stems_from="X-Forwarded-For believed from anybody",
    broken_by="believes_forwarded",
    needs=USED_UP,
)
def test_no_header_makes_another_client(target: Target) -> None:
    source = target.client()
    use_up(target, source)
    for name in SPOOFED:
        value = "for=203.0.113.9" if name == "Forwarded" else "203.0.113.9"
        for header in ({name: value}, {name: f"{value}, 198.51.100.7"}, {name: "127.0.0.1"}):
            assert wrong_login(target, header, source).status == 429, f"{header} makes another client"


@case(
    "T16",
    holds="an attacker's own success gives no new tries",
    stems_from="PortSwigger: broken brute-force protection, IP block",
    broken_by="success_clears_limit",
    needs=LIMITED,
)
def test_own_success_clears_nothing(target: Target) -> None:
    attacker, victim, source = target.person(), target.person(), target.client()
    statuses = []
    for person, password in [(victim, "wrong-password-1"), (attacker, attacker.password)] * 3:
        body = {"username": person.name, "password": password}
        statuses.append(target.once(Call("POST", "/auth/login", body, source=source)).status)
    assert statuses == [401, 200, 401, 200, 401, 429]


@case(
    "T17",
    holds="failures are counted by user, however the name is written",
    stems_from="CVE-2025-24806, CVE-2025-6004",
    broken_by="count_by_name",
)
def test_no_spelling_of_a_name_is_counted_apart(target: Target) -> None:
    person = target.person()
    spelled = [person.name.upper(), person.name.title(), person.name.swapcase(), full_width(person.name), person.name]
    for number in range(6):
        time.sleep(1.1 if number == 5 else 0)
        answer = person.login(username=spelled[number % 5])
        assert answer.status == 200, f"{spelled[number % 5]} is another account"
        person.verify(answer.json["tempToken"], person.wrong())
    opens = time.monotonic() + 2
    refused_while(opens, person.verify(person.pending(), person.code()))


def full_width(name: str) -> str:
    return "".join(chr(ord(each) + 0xFEE0) if each.isalnum() else each for each in name)


@case(
    "T18",
    holds="after a delay there is one more try, not another batch",
    stems_from='"clear after N minutes"',
    broken_by="lock_resets",
)
def test_a_delay_gives_one_try(target: Target) -> None:
    person = target.person()
    for _ in range(5):
        person.step_up(person.wrong())
    time.sleep(1.1)
    opens = time.monotonic() + 2
    person.step_up(person.wrong())
    refused_while(opens, person.step_up(person.code()))


@case(
    "G1",
    holds="a hundred wrong codes in a row disable the authenticator, whatever time passes",
    stems_from="NIST SP 800-63B section 3.2.2",
    broken_by="no_last_straw",
    needs=("clock", "database"),
)
def test_a_hundred_failures_are_the_end(target: Target) -> None:
    assert target.inside
    person = target.person()
    person.step_up(person.wrong())
    target.inside.set_failures(person.name, 99)
    pending = person.pending()
    person.verify(pending, person.wrong())
    target.move(3000)
    answer = target.shows(person.verify(person.pending(), person.code()))
    assert answer.status == 401, "time opened a disabled authenticator"
    assert target.post("/auth/enrol", {"tempToken": person.pending()}).code == "factor_exists"
    assert person.recover(person.pending(), person.tokens["recoveryCodes"][0]).status == 200


@case(
    "T19",
    holds="blank and unknown names change nobody's counter",
    stems_from="a blank username that locked everybody",
    broken_by="blank_locks_all",
)
def test_a_blank_name_locks_nobody(target: Target) -> None:
    person = target.person()
    before = target.inside.locks() if target.inside else ""
    for name in *("", "\u3000") * 6, " ", "attack-nobody", "%", "*":
        answer = target.post("/auth/login", {"username": name, "password": "wrong-password-1"})
        assert answer.status in (400, 401)
    assert person.login().status == 200, "names that nobody has lock somebody out"
    assert not target.inside or target.inside.locks() == before
    assert target.get("/api/profile", person.access).status == 200


def guess(target: Target, person: Person, password: str, source: str) -> Answer:
    """A try at a password, from one address."""
    return target.once(Call("POST", "/auth/login", {"username": person.name, "password": password}, source=source))


def change(target: Target, person: Person, current: str, source: str = "") -> Answer:
    """A try to change a password, with a session of its owner's. The new one is the old one."""
    body = {"currentPassword": current, "newPassword": person.password}
    return target.once(Call("POST", "/auth/password", body, person.access, source=source))


@case(
    "C9",
    holds="five wrong passwords of one client make it wait, whatever spelling or route; no other's success ends that",
    stems_from="CVE-2025-6004, PortSwigger: broken brute-force protection, IP block",
    broken_by="endless_passwords lock_lets_right_in success_clears_passwords passwords_by_name change_uncounted "
    "change_ignores_lock",
    needs=ADDRESSES,
)
def test_wrong_passwords_make_a_client_wait(target: Target) -> None:
    victim, attacker, source = target.person(), target.newcomer(), target.client()
    for name in (victim.name, victim.name.upper(), victim.name.title(), full_width(victim.name)):
        body = {"username": name, "password": "wrong-password-1"}
        assert target.once(Call("POST", "/auth/login", body, source=source)).status == 401
    assert guess(target, attacker, attacker.password, source).status == 200
    assert change(target, victim, "wrong-password-1", source).status == 401
    time.sleep(1.1)
    assert change(target, victim, "wrong-password-1", source).status == 401
    opens = time.monotonic() + 2
    refused_while(opens, change(target, victim, victim.password, source))
    time.sleep(2.2)
    assert change(target, victim, victim.password, source).status == 204, "a delay does not end"


@case(
    "C9b",
    holds="after a hundred wrong passwords in a row, from wherever, a login waits, and the answers tell nobody so",
    stems_from="PortSwigger: username enumeration via account lock",
    broken_by="endless_passwords lock_lets_right_in password_lock_says_so",
    needs=("addresses", "clock", "database"),
)
def test_a_hundred_wrong_passwords_make_everybody_wait(target: Target) -> None:
    assert target.inside
    person = target.person(device=True)
    person.login(password="wrong-password-1")
    target.inside.set_failures(person.name, 104, "password")
    wrong = seen(person.login(password="wrong-password-1"))
    assert seen(person.login()) == wrong, "a right password was looked at during a delay"
    assert seen(person.login(username="attack-nobody")) == wrong
    assert person.login(deviceToken=person.tokens["deviceToken"]).status == 200, "strangers keep out whoever is known"
    target.move(20)
    assert person.login().status == 200
    source = target.client()
    statuses = [guess(target, person, "wrong-password-1", source).status for _ in range(LIMIT)]
    assert statuses == [401] * LIMIT
    assert person.login().status == 200, "another client has to wait, too"


@case(
    "B13b",
    holds="who has a stolen session guesses its password no more often than a stranger, wherever from",
    stems_from="ASVS 6.2.3, 6.3.1",
    broken_by="trusted_endless change_uncounted",
    needs=("addresses", "clock", "database"),
)
def test_a_session_is_no_oracle_for_its_password(target: Target) -> None:
    assert target.inside
    person = target.person(device=True)
    assert change(target, person, "wrong-password-1").status == 401
    target.inside.set_failures(person.name, 104, "trusted_password")
    assert change(target, person, "wrong-password-1").status == 401
    assert change(target, person, person.password).status == 401, "a hundred guesses, and no end"
    assert person.login(deviceToken=person.tokens["deviceToken"]).status == 401
    assert person.login().status == 200, "a thief keeps the owner out"
    target.move(20)
    assert change(target, person, person.password).status == 204


@case(
    "G22",
    holds="one password tried on many names is limited like many passwords on one",
    stems_from="password spraying",
    broken_by="limit_by_name",
    needs=LIMITED,
)
def test_spraying_has_a_limit(target: Target) -> None:
    people, source = [target.newcomer() for _ in range(2)], target.client()
    names = [person.name for person in people] + [f"attack-nobody-{number}" for number in range(LIMIT - 1)]
    bodies = [{"username": name, "password": "wrong-password-1"} for name in names]
    statuses = [target.once(Call("POST", "/auth/login", body, source=source)).status for body in bodies]
    assert statuses == [401] * LIMIT + [429]


@case(
    "G15",
    holds="whoever is over the limit costs no hash",
    stems_from="ASVS 15.2.2",
    broken_by="hash_before_limit",
    needs=LIMITED,
)
def test_the_limit_comes_before_the_hash(target: Target) -> None:
    source = target.client()
    answers = [wrong_login(target, {}, source) for _ in range(LIMIT + 8)]
    assert [answer.status for answer in answers] == [401] * LIMIT + [429] * 8
    # The fastest of each: nothing makes a hash faster than it is, and much makes an answer slower.
    looked_at, refused = (min(each.seconds for each in part) for part in (answers[:LIMIT], answers[LIMIT:]))
    assert refused < looked_at / 4, f"looked at in {looked_at * 1000:.0f} ms, refused in {refused * 1000:.0f} ms"


@case(
    "T20",
    holds="a lock ends open pending tokens",
    stems_from="a pending session that survived the lock",
    broken_by="pending_survives_lock",
)
def test_a_lock_ends_pending_tokens(target: Target) -> None:
    person = target.person()
    kept = person.pending()
    for _ in range(5):
        person.step_up(person.wrong())
    time.sleep(1.2)
    answer = target.shows(person.verify(kept, person.code()))
    assert (answer.status, answer.code) == (401, "invalid_pending_token")
    assert person.verify(person.pending(), person.code()).status == 200


@case(
    "T21",
    holds="every route that takes a proof asks the lock of that proof",
    stems_from="CVE-2026-9798, CVE-2026-16103",
    broken_by="step_up_ignores_lock",
)
def test_every_route_asks_the_lock(target: Target) -> None:
    person = target.person()
    waiting = Person(target, person.name, person.password, "")
    waiting.secret = target.post("/api/mfa/totp", {}, person.access).json["manualEntryKey"]
    opens, pending = person.lock(), person.pending()
    refused_while(opens, person.step_up(person.code()))
    refused_while(opens, person.verify(pending, person.code()))
    refused_while(opens, target.post("/api/mfa/totp/confirm", {"totpCode": waiting.code()}, person.access))


@case(
    "G2",
    holds="every credential route refuses the sixth try of a client, even a right one",
    stems_from="ASVS 6.3.1",
    broken_by="no_limit",
    needs=LIMITED,
)
def test_every_credential_route_has_a_limit(target: Target) -> None:
    person = target.person()
    for path, token in {
        "/auth/login": "",
        "/auth/verify-mfa": "",
        "/auth/enrol": "",
        "/auth/step-up": person.access,
        "/auth/password": person.access,
        "/api/mfa/totp/confirm": person.access,
    }.items():
        source = target.client()
        answers = [target.once(Call("POST", path, {}, token, source=source)) for _ in range(LIMIT + 1)]
        assert [answer.status for answer in answers] == [400] * LIMIT + [429], path


@case(
    "G3",
    holds="of twenty logins of one client at once five are looked at",
    stems_from="limits that count after the view",
    broken_by="limit_after",
    needs=LIMITED,
)
def test_requests_are_counted_before_they_are_looked_at(target: Target) -> None:
    source = target.client()
    call = Call("POST", "/auth/enrol", {"tempToken": "x"}, source=source)
    statuses = [answer.status for answer in target.together([call] * 20)]
    assert statuses.count(401) == LIMIT, statuses
    assert statuses.count(429) == 15, statuses


@case(
    "G9",
    holds="a missing or blank name, a broken body or another type is counted, too",
    stems_from="Flask-Limiter: Skipping limit, empty value",
    broken_by="blank_unlimited",
    needs=LIMITED,
)
def test_what_names_nobody_is_counted(target: Target) -> None:
    source = target.client()
    bodies = ({}, {"username": ""}, {"username": None, "password": 1}, b"{", b"[]", {"username": "x", "password": ""})
    calls = [Call("POST", "/auth/login", body, source=source) for body in bodies]
    statuses = [target.once(call).status for call in calls]
    assert statuses[-1] == 429, statuses


@case(
    "G13",
    holds="a 429 says how long, in JSON that no cache keeps, and Retry-After is true",
    stems_from="RFC 6585 section 4",
    broken_by="bare_429",
    needs=LIMITED,
)
def test_a_429_says_how_long(target: Target) -> None:
    source = target.client()
    answers = [target.once(Call("POST", "/auth/enrol", {}, source=source)) for _ in range(LIMIT + 2)]
    first, second = answers[-2:]
    assert (first.status, first.json["error"]) == (429, "Too many authentication attempts")
    assert first.get("cache-control") == "no-store"
    assert first.get("retry-after").isdigit(), "nobody says how long"
    assert 1 <= int(second.get("retry-after")) <= int(first.get("retry-after")) <= 900


@case(
    "G23",
    holds="pipelined requests are counted one by one",
    stems_from="budgets counted by connection",
    broken_by="no_limit",
    needs=LIMITED,
)
def test_pipelining_gives_no_more_tries(target: Target) -> None:
    body = b'{"tempToken":"x"}'
    head = f"POST /auth/enrol HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: application/json\r\n".encode()
    one = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answered = target.raw(one * 19 + last, 5)
    assert answered.count(b"HTTP/1.1 401") <= LIMIT
    assert answered.count(b"HTTP/1.1 401") + answered.count(b"HTTP/1.1 429") >= 1


@case(
    "T47",
    holds="a forwarded header that can't be read, or is not there, leads to the limit, not past it",
    stems_from="CVE-2024-47070",
    broken_by="garbage_skips_limit missing_skips_limit",
    needs=("direct",),
)
def test_an_unreadable_header_fails_closed(target: Target) -> None:
    assert target.direct
    values = ("notanip", "", "999.1.1.1", "unknown", "' OR 1=1", "::ffff:zz", "_hidden", "1.2.3", "0x7f.1", "%00")
    statuses = [wrong_login(target.direct, {"X-Forwarded-For": value}).status for value in values]
    assert set(statuses) == {401, 429}, statuses
    assert statuses[-3:] == [429] * 3, "an unreadable address has no limit"
    source = target.direct.client()
    statuses = [wrong_login(target.direct, {}, source).status for _ in range(LIMIT + 1)]
    assert statuses == [401] * LIMIT + [429], "without a header there is no limit"


@case(
    "G7",
    holds="who lacks the password spends nobody's tries for codes",
    stems_from="Keycloak 46164",
    broken_by="count_before_token",
)
def test_a_stranger_spends_nobodys_tries(target: Target) -> None:
    victim, attacker = target.person(), target.person()
    for token in ("x", attacker.access, attacker.tokens["refreshToken"]) * 3:
        assert victim.verify(token, victim.wrong(), username=victim.name).status == 401
    assert victim.verify(victim.pending(), victim.code()).status == 200


@case(
    "G18",
    holds="tries during a lock make it no longer",
    stems_from="locks that anybody can keep shut",
    broken_by="lock_prolonged",
)
def test_a_lock_is_not_prolonged(target: Target) -> None:
    person = target.person()
    for _ in range(12):
        assert person.step_up(person.wrong()).status == 401
    time.sleep(2.2)
    assert person.step_up(person.code()).status == 200, "tries during a lock were counted"


@case(
    "T14b",
    holds="an address is one client with a port, with a zone, and as IPv4 mapped into IPv6",
    stems_from="CVE-2026-45364",
    broken_by="mapped_apart",
    needs=("direct",),
)
def test_no_spelling_of_an_address_is_another_client(target: Target) -> None:
    assert target.direct
    mapped = (
        "198.51.100.9",
        "198.51.100.9:4711",
        "::ffff:198.51.100.9",
        "::FFFF:C633:6409",
        "[::ffff:198.51.100.9]:443",
    )
    zones = ("fe80::7%eth0", "fe80::8%eth1", "fe80::9%1", "FE80:0:0:0::a%lo", "fe80::b")
    for spelled in (mapped, zones):
        statuses = [wrong_login(target.direct, {"X-Forwarded-For": each}).status for each in (*spelled, spelled[0])]
        assert statuses == [401] * LIMIT + [429], f"{spelled[0]} is more than one client"


@case(
    "T14c",
    holds="who comes to the proxy over IPv6 is one client, whatever they say of themselves",
    stems_from="CVE-2026-45364",
    broken_by="ipv6_unlimited",
    needs=("ipv6",),
)
def test_over_ipv6_the_proxy_is_believed_alone(target: Target) -> None:
    assert target.over_ipv6
    said = [f"2001:db8:{number}::1" for number in range(LIMIT + 1)]
    statuses = [wrong_login(target.over_ipv6, {"X-Forwarded-For": each}).status for each in said]
    assert statuses == [401] * LIMIT + [429]


@case(
    "T15b",
    holds="no IPv6 address in a header moves a client out of its limit, however it is spelled",
    stems_from="X-Forwarded-For believed from anybody",
    broken_by="believes_ipv6",
    needs=USED_UP,
)
def test_no_ipv6_in_a_header_makes_another_client(target: Target) -> None:
    source = target.client()
    use_up(target, source)
    spelled = ("2001:db8::7", "[2001:db8::7]:443", "2001:db8::7%eth0", "::ffff:203.0.113.9", "::1", "::", "[::1]")
    for value in (*spelled, *(f"{each}, 2001:db8:1::1" for each in spelled)):
        for headers in ({"X-Forwarded-For": value}, {"X-Real-IP": value}, {"Forwarded": f'for="{value}"'}):
            assert wrong_login(target, headers, source).status == 429, f"{headers} makes another client"


@case(
    "R6",
    holds="the address on record is where a request came from, not what it says",
    stems_from="X-Forwarded-For believed from anybody",
    broken_by="records_spoofed",
)
def test_no_header_goes_on_record(target: Target) -> None:
    person = target.newcomer()
    forged = ("203.0.113.66", "2001:db8:bad::66")
    for address in forged:
        headers = dict.fromkeys(SPOOFED, address) | {"Forwarded": f'for="{address}"'}
        body = {"tempToken": person.pending(), "totpCode": person.code()}
        person.tokens |= target.post("/auth/verify-mfa", body, headers=headers).json
    for path in ("/api/sessions", "/api/activity"):
        shown = target.get(path, person.access)
        assert shown.json["items"], path
        assert not any(address in shown.text for address in forged), f"{path} shows an address that was made up"


@case(
    "G17",
    holds="during a lock a right and a wrong code get the same bytes",
    stems_from="Keycloak: temporarily disabled, and said so",
    broken_by="lock_says_so",
)
def test_a_lock_tells_no_code(target: Target) -> None:
    person = target.person()
    before = seen(person.step_up(person.wrong()))
    opens = person.lock()
    answers = {seen(target.shows(person.step_up(code))) for code in (person.code(), person.wrong(), "12345")}
    refused_while(opens, person.step_up(person.code()))
    assert answers == {before}


@case(
    "A10",
    holds="registering is limited for each client, too",
    stems_from="ASVS 2.4.1",
    broken_by="register_unlimited",
    needs=LIMITED,
)
def test_registering_has_a_limit(target: Target) -> None:
    source = target.client()
    answers = [target.once(Call("POST", "/auth/register", {}, source=source)) for _ in range(LIMIT + 1)]
    assert [answer.status for answer in answers] == [400] * LIMIT + [429]


@case(
    "A10b",
    holds="registering is limited for all clients together, and whoever has an account signs in meanwhile",
    stems_from="ASVS 2.4.1",
    broken_by="registrations_unlimited",
    needs=("addresses", "registrations"),
)
def test_registering_has_a_limit_for_all_together(target: Target) -> None:
    person = target.newcomer()
    calls = (Call("POST", "/auth/register", {}, source=target.client()) for _ in range(2 * REGISTRATIONS + 1))
    refused = next((answer for answer in map(target.once, calls) if answer.status != 400), None)
    assert refused, f"{2 * REGISTRATIONS} clients register, and nobody counts"
    assert target.shows(refused).status == 429
    assert refused.get("retry-after").isdigit(), "nobody says how long"
    assert person.login().status == 200, "who is over the limit of registrations can't sign in"


@case(
    "G2c",
    holds="administration is limited for each client: a route for administrators, all of it for whoever is none",
    stems_from="ASVS 6.3.1, HashiCorp Vault PR 14864",
    broken_by="administration_unlimited refusals_unlimited refusals_apart",
    needs=("admin", *LIMITED),
)
def test_administration_has_a_limit(target: Target) -> None:
    token, user = target.admin(), target.person()
    paths = ("/api/admin/users", "/api/admin/audit", "/api/admin/policy")
    for usual, calls in {
        404: [Call("DELETE", "/api/admin/users/x", None, token)],
        403: [Call("GET", path, None, user.access) for path in paths],
    }.items():
        line, source, number = Line(target, 1000), target.client(), 0
        answer = line.send(replace(calls[0], source=source))
        while answer.status == usual and number < 2 * ADMINISTRATION:  # there may be a minute's end between them
            number += 1
            answer = line.send(replace(calls[number % len(calls)], source=source))
        assert answer.status == 429, f"the {number}th try answered {answer.status}"
        assert number >= ADMINISTRATION, f"the {number}th try is refused"
        assert target.send(calls[0]).status == usual, "another client has to wait, too"


@case(
    "G21",
    holds="refreshing has a limit of its own, wide enough for whoever is signed in",
    stems_from="ASVS 2.4.1",
    broken_by="sessions_unlimited",
    needs=LIMITED,
)
def test_refreshing_has_a_wide_limit(target: Target) -> None:
    call = Call("POST", "/auth/refresh", {"refreshToken": "x"}, source=target.client())
    statuses = [target.once(call).status for _ in range(30)]
    assert set(statuses) == {401}
    statuses += [target.once(call).status for _ in range(95)]  # two windows of 60 can't take all of these
    assert set(statuses) == {401, 429}
