"""Codes of the phone: once, in order, in their window, and in one spelling."""

import time
from urllib.parse import parse_qs, unquote, urlsplit

from tests.attacks import qr
from tests.attacks.case import case
from tests.attacks.jws import claims_of
from tests.attacks.target import Answer, Call, Person, Target
from tests.attacks.totp import decoded


@case(
    "T23",
    holds="a code is accepted once, in another login or worker either",
    stems_from="CVE-2025-6014, CVE-2025-6015, CVE-2026-33473",
    broken_by="codes_again",
)
def test_a_code_is_accepted_once(target: Target) -> None:
    person = target.person()
    code = person.code()
    assert person.verify(person.pending(), code).status == 200
    for _ in range(3):
        answer = person.verify(person.pending(), code)
        assert (answer.status, answer.code) == (401, "invalid_code"), "a code was accepted twice"


@case(
    "T24",
    holds="only six ASCII digits are a code, and no spelling makes a spent one new",
    stems_from="CVE-2025-55003",
    broken_by="normalises_codes",
)
def test_no_spelling_makes_another_code(target: Target) -> None:
    for spelled in (full_width, superscript, spaced, with_newline, arabic, signed):
        person = target.person()
        fresh, pending = spelled(person.code()), person.pending()
        answer = person.verify(pending, fresh)
        assert answer.code in ("invalid_code", "invalid_request"), f"{fresh!r} answered {answer.status}"
        if spelled is signed:
            code = person.code()
            assert person.verify(pending, code).status == 200
            assert person.verify(person.pending(), full_width(code)).status == 401
            assert person.verify(person.pending(), int(code)).status in (400, 401)


def full_width(code: str) -> str:
    return "".join(chr(0xFF10 + int(digit)) for digit in code)


def superscript(code: str) -> str:
    return code.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def arabic(code: str) -> str:
    return "".join(chr(0x660 + int(digit)) for digit in code)


def spaced(code: str) -> str:
    return f" {code[:3]} {code[3:]} "


def with_newline(code: str) -> str:
    return f"{code}\n"


def signed(code: str) -> str:
    return f"+{code}"


@case(
    "T25",
    holds="after a code of one step no code of that or an older step is accepted",
    stems_from="CVE-2021-43177",
    broken_by="older_steps",
)
def test_no_older_step_after_a_newer_one(target: Target) -> None:
    person = target.newcomer()
    step = person.step()
    assert person.verify(person.pending(), person.code_at(step)).status == 200
    answer = person.verify(person.pending(), person.code_at(step - 1))
    assert answer.status == 401, "the code of an older step was accepted"
    assert person.verify(person.pending(), person.code_at(step)).status == 401


@case(
    "T25b",
    holds="a code that was used stays spent in the next interval, and in the one after it",
    stems_from="CVE-2021-43177",
    broken_by="forgets_codes",
    needs=("clock",),
)
def test_a_code_is_not_new_in_the_next_interval(target: Target) -> None:
    person = target.newcomer()
    code = person.code_at(person.step())
    assert person.verify(person.pending(), code).status == 200
    for seconds in (31, 61):
        target.move(seconds)
        assert person.verify(person.pending(), code).status == 401, f"accepted again {seconds} s later"
    assert person.verify(person.pending(), person.code()).status == 200


@case(
    "F5",
    holds="a spent code stays spent after another one was accepted",
    stems_from="Warehouse's last_totp_value",
    broken_by="only_last_code",
)
def test_a_spent_code_stays_spent(target: Target) -> None:
    person = target.newcomer()
    first, second = person.code(), person.code()
    for code, status in ((first, 200), (second, 200), (first, 401)):
        assert person.verify(person.pending(), code).status == status


@case(
    "T26",
    holds="a code that confirmed an authenticator is spent",
    stems_from="enrolment codes that worked again at login",
    broken_by="confirm_does_not_consume",
)
def test_confirming_spends_the_code(target: Target) -> None:
    person = target.person()
    person.secret = target.post("/api/mfa/totp", {}, person.access).json["manualEntryKey"]
    person._last = 0
    code = person.code()
    assert target.post("/api/mfa/totp/confirm", {"totpCode": code}, person.access).status == 204
    assert person.verify(person.pending(), code).status == 401, "the code that confirmed signs in again"


@case(
    "T28",
    holds="a code is good for the documented window, and no longer",
    stems_from="CVE-2024-7318",
    broken_by="wide_window",
)
def test_the_window_is_the_documented_one(target: Target) -> None:
    for _ in range(3):
        person, wanted = target.newcomer(), set(range(-target.window, target.window + 1))
        step = person.step()
        accepted = {away for away in (-4, -3, -2, -1, 1, 2, 3, 4) if is_accepted(person, step + away)}
        if person.step() == step:
            assert accepted == wanted - {0}
            return
    raise AssertionError("no 30 seconds were enough for nine codes")


def is_accepted(person: Person, step: int) -> bool:
    return person.verify(person.pending(), person.code_at(step)).status == 200


@case(
    "T29",
    holds="half codes, numbers, lists and booleans are refused and crash nothing",
    stems_from="GHSA-rmmc-8cqj-hfp3",
    broken_by="crash_on_types",
)
def test_what_is_no_code_is_refused(target: Target) -> None:
    person = target.person()
    digit = person.code()[0]
    pending = person.pending()
    for value in (None, True, 0, 123456, 1.5, [], ["000000"], {}, {"$ne": ""}, [[[]]]):
        answer = person.verify(pending, value)
        assert answer.status in (400, 401), f"{value!r} answered {answer.status}"
    for text in ("", digit, "12345", "1234567"):
        answer = person.verify(pending, text)
        assert answer.status == 401, f"{text!r} answered {answer.status}"


@case(
    "F15",
    holds="no value stands for a right code",
    stems_from="default and bypass codes of other products",
    broken_by="bypass_000000",
)
def test_there_is_no_bypass_code(target: Target) -> None:
    for person in (target.newcomer(), target.person()):
        pending = person.pending()
        for value in ("000000", "123456", "null", "undefined", "' OR 1=1 --"):
            answer = person.verify(pending, value)
            assert answer.status == 401, f"{value!r} answered {answer.status}"


@case(
    "D11",
    holds="a wrong, a spent and a malformed code get one answer",
    stems_from="Keycloak PR 13867",
    broken_by="tells_replay",
)
def test_one_answer_for_every_wrong_code(target: Target) -> None:
    person = target.person()
    spent = person.code()
    assert person.step_up(spent).status == 200
    pending = person.pending()
    answers = {person.verify(pending, code).content for code in (spent, person.wrong(), "12345", "abcdef")}
    assert len(answers) == 1, answers


@case(
    "D13",
    holds="a client can't say the time, the window or the algorithm",
    stems_from="ASVS 6.5.8",
    broken_by="client_time",
)
def test_the_client_says_no_time(target: Target) -> None:
    person = target.person()
    far = person.step() - 40
    said = {"time": far * 30, "timestamp": far * 30, "window": 100, "digits": 1, "algorithm": "none"}
    answer = person.verify(person.pending(), person.code_at(far), **said)
    assert answer.status == 401, "the client's own time was believed"
    headers = {"Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(far * 30))}
    body = {"tempToken": person.pending(), "totpCode": person.code_at(far)}
    assert target.send(Call("POST", "/auth/verify-mfa", body, headers=headers)).status == 401


@case(
    "T49",
    holds="a code spent in one place is spent in every other",
    stems_from="CVE-2023-20123",
    broken_by="places_apart",
)
def test_one_place_decides_about_codes(target: Target) -> None:
    person = target.person()
    first, second = person.code(), person.code()
    assert person.step_up(first).status == 200
    assert person.verify(person.pending(), first).status == 401, "spent by a step-up, and accepted at login"
    assert person.verify(person.pending(), second).status == 200
    assert person.step_up(second).status == 401, "spent at login, and accepted by a step-up"


@case(
    "F9",
    holds="a clock that jumps back accepts no code again, and one that jumps ahead none of the past",
    stems_from="RFC 6238 section 5.2",
    broken_by="codes_again",
    needs=("clock",),
)
def test_a_jumping_clock_makes_no_code_new(target: Target) -> None:
    person = target.person()
    old = person.code()
    target.move(3600)
    assert person.verify(person.pending(), old).status == 401
    ahead = person.code()
    assert person.verify(person.pending(), ahead).status == 200
    target.move(3540)
    assert person.verify(person.pending(), ahead).status == 401


@case(
    "K7",
    holds="auth_time is when the factor was shown, and a step-up renews it",
    stems_from="ASVS 10.3.4",
    broken_by="auth_time_by_refresh",
    needs=("clock",),
)
def test_auth_time_is_of_the_factor(target: Target) -> None:
    person = target.person()
    shown = claims_of(person.access)["auth_time"]
    target.move(120)
    assert claims_of(person.refresh().json["accessToken"])["auth_time"] == shown
    assert claims_of(person.step_up(person.code()).json["accessToken"])["auth_time"] >= shown + 100


@case(
    "E1",
    holds="an authenticator's key is 160 random bits, and another one each time",
    stems_from="RFC 4226 R6",
    broken_by="short_key",
)
def test_keys_are_long_and_never_the_same(target: Target) -> None:
    person = target.newcomer()
    found = [person.secret]
    found += [target.post("/auth/enrol", {"tempToken": person.pending()}).json["manualEntryKey"] for _ in range(2)]
    assert [len(decoded(secret)) for secret in found] == [20] * 3
    assert len(set(found)) == 3
    assert all(len(set(decoded(secret))) > 10 for secret in found)


@case(
    "E9",
    holds="a new key that nobody confirms is over after ten minutes",
    stems_from="NIST SP 800-63B section 4.1",
    broken_by="waiting_for_ever",
    needs=("clock",),
)
def test_a_key_does_not_wait_for_ever(target: Target) -> None:
    person = target.person()
    waiting = Person(target, person.name, person.password)
    waiting.secret = target.post("/api/mfa/totp", {}, person.access).json["manualEntryKey"]
    target.move(602)
    fresh = person.step_up(person.code()).json["accessToken"]
    answer = target.post("/api/mfa/totp/confirm", {"totpCode": waiting.code()}, fresh)
    assert (answer.status, answer.code) == (409, "nothing_to_confirm")


# ── the picture ──────────────────────────────────────────────────────────────────────────────────


def in_picture(answer: Answer) -> tuple[str, dict[str, list[str]]]:
    """Label and parameters of the otpauth address, as a phone reads them."""
    address = urlsplit(qr.read(answer.json["qrCode"]))
    assert (address.scheme, address.netloc, address.fragment) == ("otpauth", "totp", "")
    return unquote(address.path[1:]), parse_qs(address.query, keep_blank_values=True)


@case(
    "E3",
    holds="the picture holds the key that is typed, once, for six digits of SHA-1 in 30 seconds",
    stems_from="Key URI format, authenticators that ignore what is not usual",
    broken_by="qr_other_key",
)
def test_the_picture_says_what_is_typed(target: Target) -> None:
    person = target.newcomer()
    shown = [target.post("/auth/enrol", {"tempToken": person.pending()})]
    person.secret = shown[0].json["manualEntryKey"]
    person.sign_in()
    shown.append(target.post("/api/mfa/totp", {}, person.access))
    for answer in shown:
        label, said = in_picture(answer)
        for name, usual in {"algorithm": "SHA1", "digits": "6", "period": "30"}.items():
            assert said.get(name, [usual]) == [usual], f"{name} is not what every phone does"
        assert (said["secret"], len(said["issuer"])) == ([answer.json["manualEntryKey"]], 1)
        assert label == f"{said['issuer'][0]}:{person.name}"


@case(
    "E4",
    holds="no user name reaches into the address of a key: not its label, issuer, secret or parameters",
    stems_from="Key URI format, CWE-74",
    broken_by="label_injection",
)
def test_no_name_injects_into_the_picture(target: Target) -> None:
    hostile = (
        "?x&secret=aaaa",
        "&issuer=evil",
        "%41",
        "%3aevil",
        "#evil",
        "/../evil",
        "+x",
        "=a",
        "%26secret=aaaa",
        ":evil",
    )
    for number, text in enumerate(hostile):
        name = f"attack-{target.run}-e4-{number}{text}"
        body = {"username": name, "password": "analytical-engine-1843", "email": "attack@example.com"}
        answer = target.post("/auth/register", body)
        if answer.status == 200:
            target.people.append(Person(target, name, body["password"]))
            label, said = in_picture(answer)
            assert said["secret"] == [answer.json["manualEntryKey"]], f"{name} says the secret"
            assert len(said["issuer"]) == 1, f"{name} says an issuer"
            assert label == f"{said['issuer'][0]}:{name}", f"{name} became {label}"
            assert set(said) <= {"secret", "issuer", "algorithm", "digits", "period"}
        assert answer.status in (200, 400), f"{name} answered {answer.status}"


@case(
    "E6",
    holds="a key and its picture are shown by POST alone, are kept by no cache, and not shown again",
    stems_from="GHSA-7mgc-c7pq-3rr3, ASVS 14.3.2",
    broken_by="qr_cached",
)
def test_a_picture_is_kept_by_nobody(target: Target) -> None:
    person = target.newcomer()
    enrolled = target.post("/auth/enrol", {"tempToken": person.pending()})
    person.secret = enrolled.json["manualEntryKey"]
    person.sign_in()
    for answer in (enrolled, target.post("/api/mfa/totp", {}, person.access)):
        assert answer.json["qrCode"]
        assert answer.get("cache-control") == "no-store"
    for path in ("/auth/register", "/auth/enrol", "/api/mfa/totp", "/api/mfa", "/api/profile"):
        answer = target.get(path, person.access)
        assert "image" not in answer.text
        assert answer.status in (200, 405)
    assert "qrCode" not in person.verify(person.pending(), person.code()).json


@case(
    "F18",
    holds="codes that are counted instead of timed (HOTP) are no codes",
    stems_from="RFC 4226 section 7.4",
    broken_by="counts_events",
)
def test_no_counted_code_is_taken(target: Target) -> None:
    person = target.newcomer()
    pending = person.pending()
    for counter in range(4):
        answer = person.verify(pending, person.code_at(counter))
        assert answer.status == 401, f"the code of counter {counter} was accepted"
