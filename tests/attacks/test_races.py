"""What must happen once, asked for many times at the very same moment, and that again and again."""

import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, Person, Target

TRIES = ("tries",)


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


@case(
    "T27",
    holds="of twenty identical codes at once, on several pending tokens, one is accepted",
    stems_from="check-then-set replay guards",
    broken_by="check_then_set",
    needs=TRIES,
)
def test_a_code_is_accepted_once_in_parallel(target: Target) -> None:
    for _ in target.rounds():
        person = target.newcomer()
        tokens, code = [person.pending() for _ in range(4)], person.code()
        calls = [Call("POST", "/auth/verify-mfa", {"tempToken": token, "totpCode": code}) for token in tokens * 5]
        assert statuses(target.together(calls)) == {200: 1, 401: 19}


@case(
    "P2",
    holds="of twenty codes at once on one pending token one opens a session",
    stems_from="ASVS 15.4.2",
    broken_by="check_then_set",
    needs=TRIES,
)
def test_a_pending_token_opens_one_session(target: Target) -> None:
    for _ in target.rounds():
        person = target.newcomer()
        call = Call("POST", "/auth/verify-mfa", {"tempToken": person.pending(), "totpCode": person.code()})
        answers = target.together([call] * 20)
        assert statuses(answers) == {200: 1, 401: 19}
        [token] = [answer.json["accessToken"] for answer in answers if answer.status == 200]
        assert len(target.get("/api/sessions", token).json["items"]) == 1


@case(
    "T30",
    holds="of twenty uses of a recovery code at once one is accepted",
    stems_from="lookup codes marked as used without a transaction",
    broken_by="recovery_races",
    needs=TRIES,
)
def test_a_recovery_code_is_accepted_once_in_parallel(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        code = person.tokens["recoveryCodes"][0]
        tokens = [person.pending() for _ in range(4)]
        calls = [Call("POST", "/auth/verify-mfa", {"tempToken": token, "recoveryCode": code}) for token in tokens * 5]
        assert statuses(target.together(calls)) == {200: 1, 401: 19}


@case(
    "P5",
    holds="a recovery code and a code of the phone at once open one session of a pending token",
    stems_from="ASVS 15.4.2",
    broken_by="check_then_set",
    needs=TRIES,
)
def test_two_proofs_open_one_session(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        pending, codes = person.pending(), person.tokens["recoveryCodes"]
        calls = [Call("POST", "/auth/verify-mfa", {"tempToken": pending, "totpCode": person.code()})]
        calls += [Call("POST", "/auth/verify-mfa", {"tempToken": pending, "recoveryCode": code}) for code in codes[:3]]
        assert statuses(target.together(calls * 3))[200] == 1


@case(
    "T43",
    holds="of twenty refreshes at once comes one chain",
    stems_from="CVE-2026-1035",
    broken_by="refresh_races",
    needs=TRIES,
)
def test_refreshing_in_parallel_makes_one_chain(target: Target) -> None:
    person = target.person()
    for _ in target.rounds():
        call = Call("POST", "/auth/refresh", {"refreshToken": person.tokens["refreshToken"]})
        given = [answer.json for answer in target.together([call] * 20) if answer.status == 200]
        assert len({tokens["refreshToken"] for tokens in given}) == 1
        person.tokens |= given[-1]
    assert len(target.get("/api/sessions", person.access).json["items"]) == 1


@case(
    "P7",
    holds="after a logout everywhere nothing lives that was refreshed meanwhile",
    stems_from="ASVS 7.4.1",
    broken_by="refresh_beats_logout",
    needs=TRIES,
)
def test_no_refresh_outruns_a_logout(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        refresh = Call("POST", "/auth/refresh", {"refreshToken": person.tokens["refreshToken"]})
        logout = Call("POST", "/auth/logout", {"everywhere": True}, person.access)
        answers = target.together([refresh, refresh, logout, refresh, refresh])
        assert answers[2].status == 204
        for answer in answers:
            is_dead(person, answer)


def is_dead(person: Person, answer: Answer) -> None:
    """That nothing lives of what an answer gave, if it gave anything."""
    if answer.status == 200:
        assert person.profile(answer.json["accessToken"]).status == 401, "an access token lives on"
        assert person.refresh(answer.json["refreshToken"]).status == 401, "a refresh token lives on"


@case(
    "P7b",
    holds="after a change of the password no other session lives that was refreshed meanwhile, and the changer's does",
    stems_from="ASVS 7.4.3",
    broken_by="refresh_beats_change",
    needs=TRIES,
)
def test_no_refresh_outruns_a_new_password(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        other = Person(target, person.name, person.password, tokens=dict(person.tokens))
        person.sign_in()
        body = {"currentPassword": person.password, "newPassword": secrets.token_urlsafe(18)}
        change = Call("POST", "/auth/password", body, person.access, source=target.client())
        with ThreadPoolExecutor(1) as beside:
            # The hash takes its time: whoever refreshes all along does so at the moment of the change, too.
            changed, answers = beside.submit(target.once, change), []
            while not changed.done() or len(answers) < 2:
                answers.append(other.refresh())
                other.tokens |= answers[-1].json
        assert changed.result().status == 204
        assert other.refresh().status == 401, "the newest refresh token lives on"
        for answer in (answers[0], answers[-1]):
            is_dead(other, answer)
        assert person.profile().status == 200


@case(
    "P7c",
    holds="of a disabled account nothing lives that was refreshed or opened at the same moment",
    stems_from="ASVS 7.4.2",
    broken_by="refresh_beats_disabling sign_in_beats_disabling",
    needs=("addresses", "admin"),
)
def test_nothing_outruns_disabling(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        refresh = Call("POST", "/auth/refresh", {"refreshToken": person.tokens["refreshToken"]})
        proofs = [{"tempToken": person.pending(), "recoveryCode": code} for code in person.tokens["recoveryCodes"][:2]]
        verify = [Call("POST", "/auth/verify-mfa", proof) for proof in proofs]
        account = f"/api/admin/users/{target.id_of(person)}"
        disable = Call("PATCH", account, {"disabled": True}, target.admin())
        answers = target.together([refresh, verify[0], refresh, disable, refresh, verify[1], refresh])
        assert answers.pop(3).status == 200
        # While it is disabled nothing works anyway: whoever enables it again must bring nothing back.
        assert target.send(Call("PATCH", account, {"disabled": False}, target.admin())).status == 200
        for answer in answers:
            is_dead(person, answer)
        assert person.refresh().status == 401


@case(
    "P9",
    holds="of eight registrations of one name at once one makes an account",
    stems_from="ASVS 15.4.2",
    broken_by="register_races",
    needs=TRIES,
)
def test_a_name_is_registered_once(target: Target) -> None:
    person = target.newcomer()
    body = {"password": secrets.token_urlsafe(18), "email": "attack@example.com"}
    for number in target.rounds():
        name = f"{person.name}x{number}"
        spelled = (name, name.upper(), name.title(), name) * 2
        answers = target.together([Call("POST", "/auth/register", body | {"username": each}) for each in spelled])
        target.people.append(Person(target, name, body["password"]))
        assert statuses(answers)[200] == 1, statuses(answers)
        assert {answer.status for answer in answers} <= {200, 400, 503}


@case(
    "P12",
    holds="no session outlives the reset of its user's factors, however close",
    stems_from="ASVS 7.4.2",
    broken_by="reset_races",
    needs=("tries", "admin"),
)
def test_no_sign_in_outruns_a_reset(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        codes = person.tokens["recoveryCodes"]
        proofs = [{"tempToken": person.pending(), "totpCode": person.code()}]
        proofs += [{"tempToken": person.pending(), "recoveryCode": code} for code in codes[:3]]
        path = f"/api/admin/users/{target.id_of(person)}/reset-mfa"
        calls = [Call("POST", "/auth/verify-mfa", proof) for proof in proofs]
        calls.insert(2, Call("POST", path, {"reason": "attack"}, target.admin()))
        answers = target.together(calls)
        assert answers.pop(2).status == 200
        for answer in answers:
            is_dead(person, answer)
        assert person.profile().status == 401


@case(
    "K5",
    holds="of many requests at once each is answered about its own user",
    stems_from="identities kept between requests",
    broken_by="shared_identity",
    needs=TRIES,
)
def test_nobody_sees_another(target: Target) -> None:
    people = [target.person(), target.person()]
    for _ in target.rounds():
        answers = target.together([Call("GET", "/api/profile", None, person.access) for person in people * 10])
        assert [answer.json["username"] for answer in answers] == [person.name for person in people * 10]


@case(
    "P3",
    holds="of two codes of different steps at once each is accepted once at most, the older not after the newer",
    stems_from="RFC 6238 section 5.2",
    broken_by="check_then_set",
    needs=TRIES,
)
def test_two_steps_at_once_are_each_accepted_once(target: Target) -> None:
    for _ in target.rounds():
        person = target.newcomer()
        tokens, older, newer = [person.pending() for _ in range(5)], person.code(), person.code()
        proofs = [
            {"tempToken": token, "totpCode": code} for token, code in zip(tokens, [older, newer] * 2, strict=False)
        ]
        answers = target.together([Call("POST", "/auth/verify-mfa", proof) for proof in proofs])
        assert 1 <= statuses(answers)[200] <= 2
        assert person.verify(tokens[-1], older).status == 401


@case(
    "P11",
    holds="new recovery codes and the use of an old one at once leave one set",
    stems_from="ASVS 7.5.1",
    broken_by="regenerate_keeps renewal_races",
    needs=TRIES,
)
def test_no_old_recovery_code_outruns_the_new(target: Target) -> None:
    for _ in target.rounds():
        person = target.person()
        old = person.tokens["recoveryCodes"]
        use = Call("POST", "/auth/verify-mfa", {"tempToken": person.pending(), "recoveryCode": old[0]})
        renew = Call("POST", "/api/mfa/recovery-codes", None, person.access)
        answers = target.together([use, renew, renew])
        assert answers[0].status in (200, 401)
        assert [answer.status for answer in answers[1:]] == [200, 200]
        assert person.recover(person.pending(), old[1]).status == 401
        alive = [person.recover(person.pending(), answer.json["recoveryCodes"][0]).status for answer in answers[1:]]
        assert sorted(alive) == [200, 401], "two sets of recovery codes live"


@case(
    "P8",
    holds="of wrong codes at once each is counted",
    stems_from="lost updates, ASVS 15.4.2",
    broken_by="lost_update",
    needs=("tries", "database"),
)
def test_no_failure_is_lost(target: Target) -> None:
    assert target.inside
    for _ in target.rounds():
        person = target.person()
        proofs = [{"tempToken": person.pending(), "totpCode": person.wrong()} for _ in range(4)]
        answers = target.together([Call("POST", "/auth/verify-mfa", proof) for proof in proofs])
        assert statuses(answers) == {401: 4}
        assert target.inside.failures(person.name) == 4, "failures at once were counted as one"


@case(
    "P10",
    holds="of four enrolments at once one key lives",
    stems_from="ASVS 15.4.2",
    broken_by="enrol_races",
    needs=TRIES,
)
def test_one_key_comes_out_of_many(target: Target) -> None:
    for _ in target.rounds():
        person = target.newcomer()
        calls = [Call("POST", "/auth/enrol", {"tempToken": person.pending()}) for _ in range(4)]
        answers = target.together(calls)
        assert statuses(answers) == {200: 4}
        taken = 0
        for answer in answers:
            person.secret = answer.json["manualEntryKey"]
            taken += person.verify(person.pending(), person.code()).status == 200
        assert taken == 1, f"{taken} keys of one enrolment live"


@case(
    "P14",
    holds="six people who sign in at the same moment are all signed in",
    stems_from="database is locked",
    broken_by="writers_500",
    needs=TRIES,
)
def test_many_at_once_are_signed_in(target: Target) -> None:
    for _ in target.rounds():
        people = [target.newcomer() for _ in range(6)]
        proofs = [{"tempToken": person.pending(), "totpCode": person.code()} for person in people]
        answers = target.together([Call("POST", "/auth/verify-mfa", proof) for proof in proofs])
        assert statuses(answers) == {200: 6}
        assert [answer.json["user"]["username"] for answer in answers] == [person.name for person in people]
