"""What is open between the password and the code, and after it: nothing may be skipped, swapped or kept."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from tests.attacks.case import case
from tests.attacks.jws import claims_of
from tests.attacks.target import Call, Person, Target
from tests.attacks.test_matrix import guarded, is_let_in


def ensure_nothing_opens(target: Target, pending: str) -> None:
    """That a pending token opens none of the routes that want a token, and is none that is refreshed."""
    wanted = guarded(target)
    assert len(wanted) > 15
    for method, path in wanted:
        answer = target.send(Call(method, path, {} if method != "GET" else None, pending))
        assert answer.status == 401, f"{method} {path} answered {answer.status} to a pending token"
    assert target.post("/auth/refresh", {"refreshToken": pending}).status == 401, "a pending token is refreshed"


@contextmanager
def optional(target: Target) -> Iterator[None]:
    """Meanwhile accounts may go without a second factor, but for administrators."""
    rules = {"mode": "optional", "roles": {"admin": None}}
    assert target.send(Call("PUT", "/api/admin/policy", rules, target.admin())).status == 200
    try:
        yield
    finally:
        target.send(Call("PUT", "/api/admin/policy", {"mode": "required", "roles": {}}, target.admin()))


@case(
    "T1",
    holds="the pending token is refused on every route but its own",
    stems_from="GHSA-5m69-7h2p-6qfw",
    broken_by="pending_opens pending_as_refresh",
)
def test_the_pending_token_opens_nothing(target: Target) -> None:
    pending = target.person().pending()
    ensure_nothing_opens(target, pending)


@case(
    "T3",
    holds="no session exists before the second step",
    stems_from="pending tokens that carried a live session",
    broken_by="session_at_login session_claim amr_at_login session_kept_at_login session_listed_at_login",
)
def test_a_password_opens_no_session(target: Target) -> None:
    person = target.person()
    known = {"iss", "aud", "sub", "username", "step", "jti", "iat", "exp"}
    for _ in range(2):
        more = set(claims_of(person.pending())) - known
        assert not more, f"a pending token names {more}"
    listed = target.get("/api/sessions", person.access).json["items"]
    assert len(listed) == 1, f"a password opens a session: {len(listed)} are listed"
    if target.inside:
        assert target.inside.sessions(person.name) == 1, "a password writes a session"


@case(
    "T6",
    holds="the access token proves both factors in amr",
    stems_from="CVE-2025-64103",
    broken_by="amr_otp_only",
)
def test_an_access_token_proves_both_factors(target: Target) -> None:
    claims = claims_of(target.person().access)
    target.shows(note=f"the access token says amr {claims['amr']}, step {claims.get('step')}")
    assert {"pwd", "otp", "mfa"} <= set(claims["amr"]), claims["amr"]
    assert claims["step"] == "authenticated"


@case(
    "T7",
    holds="a right password sets nothing that any route accepts",
    stems_from="GHSA-xg6x-h9c9-2m83",
    broken_by="refresh_at_login",
)
def test_the_first_step_sets_nothing(target: Target) -> None:
    person = target.person()
    answer = person.login()
    assert not answer.get("set-cookie")
    for value in [value for value in answer.json.values() if isinstance(value, str)]:
        assert target.get("/api/profile", value).status == 401
        assert person.refresh(value).status == 401
        assert person.login(deviceToken=value).json["mfaRequired"] is True
    assert not {"accessToken", "refreshToken", "deviceToken", "recoveryCodes"} & set(answer.json)


@case(
    "T8",
    holds="a device is remembered only after the second step",
    stems_from="GHSA-9phw-7h96-q3rv",
    broken_by="device_at_login",
)
def test_no_device_is_remembered_before_a_code(target: Target) -> None:
    person = target.person()
    answer = person.login(rememberDevice=True, deviceName="attacker")
    assert "deviceToken" not in answer.json
    assert "deviceToken" not in person.verify(answer.json["tempToken"], person.wrong(), rememberDevice=True).json
    assert target.get("/api/devices", person.access).json["items"] == []


@case(
    "T9",
    holds="whose code is asked for comes from the signed token alone",
    stems_from="GHSA-5vfx-8w6m-h3v4",
    broken_by="user_from_body",
)
def test_nobody_chooses_whose_challenge_they_answer(target: Target) -> None:
    victim, attacker = target.person(), target.person()
    pending, code = victim.pending(), attacker.code()
    named = {"username": attacker.name, "user": attacker.name, "userId": claims_of(attacker.access)["sub"]}
    answer = victim.verify(pending, code, **named)
    assert answer.status == 401, "the code of another user was accepted"
    cookie = {"Cookie": f"verify={attacker.name}; username={attacker.name}"}
    body = {"tempToken": pending, "totpCode": code}
    assert target.post(f"/auth/verify-mfa?username={attacker.name}", body, headers=cookie).status == 401


@case(
    "T10",
    holds="a step-up stays with its user and session, and its code is spent",
    stems_from="step-up tokens not bound to their caller",
    broken_by="step_up_new_session step_up_lifts_devices",
)
def test_a_step_up_stays_in_its_session(target: Target) -> None:
    person = target.person(device=True)
    by_device = person.login(deviceToken=person.tokens["deviceToken"]).json["accessToken"]
    before, code = claims_of(person.access), person.code()
    answer = person.step_up(code)
    assert answer.status == 200
    after = claims_of(answer.json["accessToken"])
    assert (after["sub"], after["sid"]) == (before["sub"], before["sid"])
    assert person.step_up(code).status == 401
    answer = target.post("/api/mfa/recovery-codes", {}, by_device)
    assert answer.code == "step_up_required", "another session of the user's was stepped up, too"


@case(
    "T10b",
    holds="a step-up makes its own session fresh, and no other of the same user",
    stems_from="step-up tokens not bound to their caller",
    broken_by="step_up_everywhere",
    needs=("clock",),
)
def test_a_step_up_freshens_no_other_session(target: Target) -> None:
    person = target.person()
    other = dict(person.tokens)
    person.sign_in()
    target.move(302)
    fresh = person.step_up(person.code()).json["accessToken"]
    assert target.post("/api/mfa/recovery-codes", {}, fresh).status == 200
    for token in (other["accessToken"], person.refresh(other["refreshToken"]).json["accessToken"]):
        assert target.post("/api/mfa/recovery-codes", {}, token).code == "step_up_required"


@case(
    "T33",
    holds="an unconfirmed factor neither satisfies a login nor locks anybody out",
    stems_from="unconfirmed factors that counted as enrolled",
    broken_by="unconfirmed_counts",
)
def test_an_unconfirmed_factor_does_not_count(target: Target) -> None:
    person = target.newcomer()
    answer = person.login()
    assert (answer.json["enrolmentRequired"], answer.json["methods"]) == (True, [])
    old = person.secret
    enrolled = target.post("/auth/enrol", {"tempToken": answer.json["tempToken"]})
    assert enrolled.status == 200, "an unconfirmed factor keeps its owner out"
    person.secret = enrolled.json["manualEntryKey"]
    assert person.secret != old
    assert person.sign_in()["accessToken"]


@case(
    "T34",
    holds="a further factor needs a fresh second factor",
    stems_from="CVE-2023-3597",
    broken_by="enrol_by_password",
)
def test_a_password_adds_no_factor(target: Target) -> None:
    person = target.person(device=True)
    answer = target.post("/auth/enrol", {"tempToken": person.pending()})
    assert (answer.status, answer.code) == (403, "factor_exists")
    by_device = person.login(deviceToken=person.tokens["deviceToken"]).json["accessToken"]
    assert target.post("/api/mfa/totp", {}, by_device).code == "step_up_required"


@case(
    "T35",
    holds="an account that must enrol reaches nothing else",
    stems_from="CVE-2025-3910",
    broken_by="enrolment_optional pending_opens_new",
)
def test_a_required_enrolment_is_not_skipped(target: Target) -> None:
    answer = target.newcomer().login()
    assert "accessToken" not in answer.json, "signed in without a factor"
    assert answer.json["mfaRequired"] is True
    pending = answer.json["tempToken"]
    ensure_nothing_opens(target, pending)


@case(
    "T36",
    holds="a secret is shown once; the new one is good from its confirmation on, and the old one till then, "
    "as are devices and pending tokens",
    stems_from="GHSA-7mgc-c7pq-3rr3",
    broken_by="replaced_at_once waiting_key_counts old_key_lives confirm_keeps_devices confirm_keeps_pending",
)
def test_an_authenticator_is_replaced_only_when_confirmed(target: Target) -> None:
    person = target.person(device=True)
    new = target.post("/api/mfa/totp", {}, person.access).json["manualEntryKey"]
    assert new != person.secret
    waiting = Person(target, person.name, person.password, new, _last=person._last)
    pending, code = person.pending(), waiting.code()
    assert person.verify(pending, code).status == 401, "a key that nobody confirmed signs in"
    assert person.step_up(code).status == 401, "a key that nobody confirmed steps up"
    answer = person.verify(pending, person.code())
    assert answer.status == 200, "the old authenticator is dead before the new one is confirmed"
    person.tokens |= answer.json
    for path in ("/api/mfa", "/api/profile", "/api/activity", "/api/mfa/totp"):
        answer = target.get(path, person.access)
        assert person.secret not in answer.text
        assert new not in answer.text
    ensure_the_old_ends(person, waiting)


def ensure_the_old_ends(person: Person, waiting: Person) -> None:
    """That with the confirmation of a new authenticator nothing of the old one is good for anything."""
    before, target = person.pending(), person.target
    confirmed = target.post("/api/mfa/totp/confirm", {"totpCode": waiting.code()}, person.access)
    assert confirmed.status == 204, f"a new authenticator is not confirmed: {confirmed.status}"
    code = waiting.code()
    person._last = waiting._last - 1  # a code that is as new, and by its time not one that was shown before
    assert person.verify(before, code).code == "invalid_pending_token", "a pending token from before goes on"
    by_device = person.login(deviceToken=person.tokens["deviceToken"]).json
    assert by_device["mfaRequired"] is True, "a device goes on that the old authenticator let in"
    assert person.verify(by_device["tempToken"], person.code()).status == 401, "the old authenticator signs in"
    assert person.step_up(code).status == 200, "the new authenticator does not step up"


@case(
    "T39",
    holds="a new password gives no session without a code",
    stems_from="password resets that signed their user in",
    broken_by="reset_gives_session",
)
def test_a_new_password_skips_no_code(target: Target) -> None:
    person = target.person()
    for path in ("/auth/password/reset", "/auth/password/forgot"):
        body = {"username": person.name, "resetToken": "x" * 32, "newPassword": secrets.token_urlsafe(16)}
        answer = target.post(path, body)
        assert answer.status >= 400 or answer.status == 202
        assert "Token" not in answer.text
    new = secrets.token_urlsafe(18)
    answer = target.post("/auth/password", {"currentPassword": person.password, "newPassword": new}, person.access)
    assert (answer.status, answer.content) == (204, b"")
    person.password = new
    assert person.login().json["mfaRequired"] is True


@case(
    "T40",
    holds="the first enrolment needs the password",
    stems_from="CVE-2021-3632",
    broken_by="enrol_by_name",
)
def test_nobody_enrols_for_another(target: Target) -> None:
    person, other = target.newcomer(), target.person()
    named = {"username": person.name, "userId": person.name}
    for token in ("", "x", other.access, person.name):
        answer = target.post("/auth/enrol", named | {"tempToken": token})
        assert answer.status in (400, 401, 403), f"enrolled for {person.name}"
        assert "manualEntryKey" not in answer.json
    assert target.post("/auth/enrol", named).status == 400


#: All that the token of a password alone opens, where an account may go without a second factor.
OPEN_TO_PASSWORDS = frozenset(
    {("GET", "/api/mfa"), ("GET", "/api/sessions"), ("DELETE", "/api/sessions/x"), ("POST", "/auth/logout")}
)


@case(
    "D3e",
    holds="where a password is enough to sign in, its token opens the account's sessions and nothing else",
    stems_from="RFC 8725 section 3.12, CVE-2025-3910",
    broken_by="password_step_opens",
    needs=("admin", "policy"),
)
def test_a_session_of_a_password_opens_little(target: Target) -> None:
    with optional(target):
        token = target.newcomer().login().json["accessToken"]
        wanted = sorted(guarded(target), key=lambda each: each[1] == "/auth/logout")  # which ends it
        opened = {each for each in wanted if is_let_in(target, *each, token)}
        assert opened == OPEN_TO_PASSWORDS, opened ^ OPEN_TO_PASSWORDS


@case(
    "T41",
    holds="with the first factor the sessions of a password alone are over, and the next login asks for a code",
    stems_from="CVE-2024-45042",
    broken_by="level_cached weak_sessions_stay",
    needs=("admin", "policy"),
)
def test_what_an_account_needs_is_not_remembered(target: Target) -> None:
    with optional(target):
        person = target.newcomer()
        old = person.login().json
        assert target.get("/api/mfa", old["accessToken"]).status == 200
        person.sign_in()
        for _ in range(3):  # on every worker
            assert target.get("/api/mfa", old["accessToken"]).status == 401, "a session of a password goes on"
            assert person.refresh(old["refreshToken"]).status == 401
        again = person.login().json
        assert again["mfaRequired"] is True, "a login asks for no code, as before there was a factor"
        assert "accessToken" not in again


@case(
    "T42",
    holds="a step-up takes the code of its own user only",
    stems_from="GHSA-f66q-9rf6-8795",
    broken_by="step_up_any_user",
)
def test_the_code_of_another_steps_nobody_up(target: Target) -> None:
    person, other = target.person(), target.person()
    answer = person.step_up(other.code(), username=other.name)
    assert answer.status == 401, "stepped up with the code of another user"


@case(
    "D5",
    holds="a pending token is good once",
    stems_from="ASVS 2.3.1",
    broken_by="pending_again",
)
def test_a_pending_token_is_spent(target: Target) -> None:
    person = target.newcomer()
    pending = person.pending()
    assert person.verify(pending, person.code()).status == 200
    answer = person.verify(pending, person.code())
    assert (answer.status, answer.code) == (401, "invalid_pending_token")


@case(
    "D8",
    holds="a change of the password ends open pending tokens",
    stems_from="ASVS 7.4.2",
    broken_by="pending_survives_change",
)
def test_pending_tokens_end_with_the_password(target: Target) -> None:
    person = target.person()
    pending, new = person.pending(), secrets.token_urlsafe(18)
    body = {"currentPassword": person.password, "newPassword": new}
    assert target.post("/auth/password", body, person.access).status == 204
    person.password = new
    assert person.verify(pending, person.code()).code == "invalid_pending_token"


@case(
    "D1",
    holds="a pending token ends after 300 seconds, by the server's clock",
    stems_from="ASVS 9.2.1",
    broken_by="pending_lives_on",
    needs=("clock",),
)
def test_a_pending_token_ends(target: Target) -> None:
    person = target.newcomer()
    early, late = person.pending(), person.pending()
    target.move(285)
    assert person.verify(early, person.code()).status == 200
    target.move(301)
    assert person.verify(late, person.code()).code == "invalid_pending_token"


@case(
    "D10",
    holds="no step is skipped: a code before the password, or a confirmation before a new key, opens nothing",
    stems_from="ASVS 2.3.1",
    broken_by="confirm_without_enrol",
)
def test_no_step_is_skipped(target: Target) -> None:
    person = target.person()
    assert target.post("/auth/verify-mfa", {"totpCode": person.code(), "username": person.name}).status == 400
    answer = target.post("/api/mfa/totp/confirm", {"totpCode": person.code()}, person.access)
    assert (answer.status, answer.code) == (409, "nothing_to_confirm")


@case(
    "K6",
    holds="what changes an account's security wants a recent second factor, and says so (RFC 9470)",
    stems_from="RFC 9470, ASVS 7.5.1",
    broken_by="no_step_up",
)
def test_a_remembered_device_changes_nothing(target: Target) -> None:
    person = target.person(device=True)
    token = person.login(deviceToken=person.tokens["deviceToken"]).json["accessToken"]
    body = {"currentPassword": person.password, "newPassword": secrets.token_urlsafe(18)}
    for path in ("/api/mfa/recovery-codes", "/api/mfa/totp", "/api/mfa/totp/confirm", "/auth/password"):
        answer = target.post(path, body | {"totpCode": "000000"}, token)
        assert answer.code == "step_up_required", f"{path} answered {answer.status}"
        assert "insufficient_user_authentication" in answer.get("www-authenticate")
    assert target.send(Call("DELETE", "/api/mfa", None, token)).code == "step_up_required"


@case(
    "K6b",
    holds="five minutes after its factor a session opens no step-up route, refreshed or not",
    stems_from="ASVS 7.5.1",
    broken_by="step_up_for_ever",
    needs=("clock",),
)
def test_a_factor_grows_old(target: Target) -> None:
    person = target.person()
    target.move(302)
    fresh = person.refresh().json["accessToken"]
    for token in (person.access, fresh):
        assert target.post("/api/mfa/recovery-codes", {}, token).code == "step_up_required"
    assert target.post("/api/mfa/recovery-codes", {}, person.step_up(person.code()).json["accessToken"]).status == 200


@case(
    "T38",
    holds="whether a second factor is due is read at each refresh, and at each request",
    stems_from='a stale "MFA enabled" in tokens',
    broken_by="stale_policy rule_keeps_devices policy_keeps_devices",
    needs=("admin", "policy"),
)
def test_a_rule_counts_at_once(target: Target) -> None:
    with optional(target):
        other = target.person(device=True)
        ensure_a_rule_about_one_counts(target)
        assert is_remembered(other), "a rule about one person counts for another"
    assert not is_remembered(other), "a device is let in that is older than the policy"


def is_remembered(person: Person) -> bool:
    return person.login(deviceToken=person.tokens["deviceToken"]).json["mfaRequired"] is False


def ensure_a_rule_about_one_counts(target: Target) -> None:
    """That who must show a second factor from now on has no session without, and no device from before."""
    person, known = target.newcomer(), target.person(device=True)
    tokens = person.login().json
    assert target.get("/api/mfa", tokens["accessToken"]).status == 200
    assert person.profile(tokens["accessToken"]).code == "full_authentication_required"
    assert is_remembered(known)
    for user in (target.id_of(person), target.id_of(known)):
        answer = target.send(Call("PATCH", f"/api/admin/users/{user}", {"mfaRequired": True}, target.admin()))
        assert answer.status == 200
    assert target.get("/api/mfa", tokens["accessToken"]).status == 401
    assert person.refresh(tokens["refreshToken"]).status == 401
    assert not is_remembered(known), "a device is let in that is older than the rule"
