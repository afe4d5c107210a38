"""What is over is over: logout, reuse, reset, disabling, changed passwords; and nobody ends another's."""

import secrets

from tests.attacks.case import case
from tests.attacks.jws import claims_of
from tests.attacks.target import Call, Person, Target
from tests.attacks.test_states import optional


def is_over(person: Person, access: str = "", refresh: str = "", times: int = 3) -> None:
    """That both tokens of a session are dead, on every worker that may be asked."""
    for _ in range(times):
        assert person.profile(access).status == 401, "an access token outlived its session"
        assert person.refresh(refresh).status == 401, "a refresh token outlived its session"


@case(
    "T37",
    holds="a reset of the factors ends sessions, refresh tokens, devices, pending tokens and recovery codes",
    stems_from="sessions that kept their level",
    broken_by="reset_keeps_sessions reset_keeps_devices reset_keeps_pending reset_keeps_codes",
    needs=("admin",),
)
def test_a_reset_ends_everything(target: Target) -> None:
    person = target.person(device=True)
    before, path = person.pending(), f"/api/admin/users/{target.id_of(person)}/reset-mfa"
    answer = target.post(path, {"reason": "attack"}, target.admin())
    assert answer.status == 200
    is_over(person)
    assert person.verify(before, person.code()).code == "invalid_pending_token", "a pending token outlived the reset"
    by_device = person.login(deviceToken=person.tokens["deviceToken"]).json
    assert by_device["mfaRequired"] is True
    assert person.verify(by_device["tempToken"], person.code()).status == 401
    recovered = person.recover(by_device["tempToken"], person.tokens["recoveryCodes"][0])
    assert recovered.status == 401, "a recovery code outlived the reset"
    assert target.post("/auth/enrol", {"tempToken": person.pending()}).code == "factor_exists"
    body = {"tempToken": person.pending(), "enrolmentTicket": answer.json["enrolmentTicket"]}
    assert [target.post("/auth/enrol", body).status for _ in range(2)] == [200, 403]


@case(
    "T37b",
    holds="who removes their own factor, where they may, ends all that rested on it, and has a password's session then",
    stems_from="sessions that kept their level",
    broken_by="remove_keeps_sessions remove_keeps_devices removed_counts",
    needs=("admin", "policy"),
)
def test_removing_a_factor_ends_everything(target: Target) -> None:
    with optional(target):
        person = target.person(device=True)
        first, pending = dict(person.tokens), person.pending()
        person.sign_in()
        assert target.send(Call("DELETE", "/api/mfa", None, person.access)).status == 204
        for tokens in (first, person.tokens):
            is_over(person, tokens["accessToken"], tokens["refreshToken"])
        assert person.verify(pending, person.code()).code == "invalid_pending_token"
        answer = person.login(deviceToken=first["deviceToken"]).json
        claims = claims_of(answer["accessToken"])
        assert (claims["step"], claims["amr"]) == ("password", ["pwd"]), "a removed factor counts"
        assert person.profile(answer["accessToken"]).code == "full_authentication_required"
        assert person.verify(answer["tempToken"], person.code()).status == 401
        assert person.recover(answer["tempToken"], first["recoveryCodes"][0]).status == 401


@case(
    "K10",
    holds="the last administrator stays one: with the role, enabled, with a factor, and at all",
    stems_from="MFA cheat sheet: nobody left to administrate",
    broken_by="last_admin_goes",
    needs=("admin", "policy"),
)
def test_the_last_administrator_stays(target: Target) -> None:
    admin = target.admin()
    own = str(claims_of(admin)["sub"])
    for item in target.get("/api/admin/users?role=admin", admin).json["items"]:
        if item["id"] != own:  # of a case before
            assert target.send(Call("PATCH", f"/api/admin/users/{item['id']}", {"roles": []}, admin)).status == 200
    path = f"/api/admin/users/{own}"
    for method, where, body in (
        ("PATCH", path, {"roles": []}),
        ("PATCH", path, {"disabled": True}),
        ("POST", f"{path}/reset-mfa", {"reason": "attack"}),
        ("DELETE", path, None),
    ):
        answer = target.send(Call(method, where, body, admin))
        assert (answer.status, answer.code) == (409, "last_administrator"), f"{method} {where} answered {answer.status}"
    assert target.get("/api/admin/users", admin).status == 200


@case(
    "T44",
    holds="a disabled user's access, refresh and device tokens all fail, at once, and who is enabled again has none",
    stems_from="CVE-2025-53942",
    broken_by="disabled_goes_on disabled_keeps_sessions disabled_keeps_devices disabled_keeps_pending",
    needs=("admin",),
)
def test_a_disabled_user_is_out(target: Target) -> None:
    person = target.person(device=True)
    pending, path = person.pending(), f"/api/admin/users/{target.id_of(person)}"
    assert target.send(Call("PATCH", path, {"disabled": True}, target.admin())).status == 200
    is_over(person)
    assert person.verify(pending, person.code()).status == 401
    refused = person.login(deviceToken=person.tokens["deviceToken"])
    assert (refused.status, refused.json["error"]) == (401, "Invalid credentials")
    assert target.send(Call("PATCH", path, {"disabled": False}, target.admin())).status == 200
    is_over(person)
    assert person.verify(pending, person.code()).code == "invalid_pending_token", "a pending token came back"
    assert person.login(deviceToken=person.tokens["deviceToken"]).json["mfaRequired"] is True, "a device came back"


@case(
    "A8",
    holds="a deleted user's tokens open nothing of whoever takes the name next",
    stems_from="ASVS 10.3.3",
    broken_by="name_is_the_key",
    needs=("admin",),
)
def test_a_name_taken_again_is_another_account(target: Target) -> None:
    person = target.person()
    gone = Call("DELETE", f"/api/admin/users/{target.id_of(person)}", None, target.admin())
    assert target.send(gone).status == 204
    is_over(person)
    heir = target.newcomer(username=person.name)
    heir.sign_in()
    is_over(person)
    assert claims_of(heir.access)["sub"] != claims_of(person.access)["sub"]


@case(
    "J4",
    holds="a refresh token that was replaced before ends its session, and the refusal is kept",
    stems_from="RFC 9700, ASVS 10.4.5",
    broken_by="reuse_tolerated",
)
def test_reuse_ends_the_session(target: Target) -> None:
    person = target.person()
    second = person.refresh().json
    third = person.refresh(second["refreshToken"]).json
    answer = person.refresh()
    assert (answer.status, answer.code) == (401, "refresh_reused")
    is_over(person, third["accessToken"], third["refreshToken"])


@case(
    "J8",
    holds="logout ends a session at once, on every worker",
    stems_from="ASVS 7.4.1",
    broken_by="logout_keeps_access",
)
def test_logout_ends_the_session(target: Target) -> None:
    person = target.person()
    assert person.profile().status == 200
    assert target.post("/auth/logout", {}, person.access).status == 204
    is_over(person, times=4)


@case(
    "J9",
    holds="a new password ends other sessions and remembered devices",
    stems_from="ASVS 7.4.3",
    broken_by="change_keeps_sessions",
)
def test_a_new_password_ends_other_sessions(target: Target) -> None:
    person = target.person(device=True)
    other = dict(person.tokens)
    person.sign_in()
    new = secrets.token_urlsafe(18)
    body = {"currentPassword": person.password, "newPassword": new}
    assert target.post("/auth/password", body, person.access).status == 204
    is_over(person, other["accessToken"], other["refreshToken"])
    assert person.profile().status == 200
    assert person.login().status == 401, "the old password still works"
    person.password = new
    assert person.login(deviceToken=other["deviceToken"]).json["mfaRequired"] is True


@case(
    "B13",
    holds="the password is changed only by who knows it",
    stems_from="ASVS 6.2.3",
    broken_by="change_without_current",
)
def test_changing_a_password_needs_it(target: Target) -> None:
    person = target.person()
    new = secrets.token_urlsafe(18)
    for current in (None, "", "wrong-password-1", new):
        body = {"currentPassword": current, "newPassword": new}
        answer = target.post("/auth/password", body if current is not None else {"newPassword": new}, person.access)
        target.shows(answer)
        assert answer.status in (400, 401)
    assert person.login().status == 200


@case(
    "J13",
    holds="nobody sees or ends another's sessions and devices",
    stems_from="ASVS 8.2.2",
    broken_by="idor_sessions",
)
def test_nobody_ends_anothers_session(target: Target) -> None:
    victim, attacker = target.person(device=True), target.person()
    session = target.get("/api/sessions", victim.access).json["items"][0]["id"]
    device = target.get("/api/devices", victim.access).json["items"][0]["id"]
    for path in (
        f"/api/sessions/{session}",
        f"/api/devices/{device}",
        f"/api/sessions/{session}%00",
        "/api/sessions/*",
    ):
        answer = target.send(Call("DELETE", path, None, attacker.access))
        assert answer.status in (400, 404), f"{path} answered {answer.status}"
    assert session not in target.get(f"/api/sessions?user={claims_of(victim.access)['sub']}", attacker.access).text
    assert victim.profile().status == 200
    assert victim.login(deviceToken=victim.tokens["deviceToken"]).json["mfaRequired"] is False


@case(
    "J18",
    holds="nobody chooses the id of a session or of a token",
    stems_from="ASVS 7.2.4",
    broken_by="sid_from_client",
)
def test_nobody_chooses_a_session_id(target: Target) -> None:
    person = target.newcomer()
    chosen = "f" * 32
    given = dict.fromkeys(("sid", "sessionId", "session", "jti"), chosen)
    headers = {"Cookie": f"session={chosen}; sid={chosen}", "X-Session-Id": chosen}
    body = {"tempToken": person.pending(), "totpCode": person.code()} | given
    answer = target.post("/auth/verify-mfa", body, headers=headers)
    assert answer.status == 200
    assert chosen not in claims_of(answer.json["accessToken"]).values()


@case(
    "K15",
    holds="a remembered device counts for its own user, with the right password",
    stems_from="PortSwigger: brute-forcing a stay-logged-in cookie",
    broken_by="device_any_user",
)
def test_a_device_is_its_users(target: Target) -> None:
    person, other = target.person(device=True), target.person()
    device = person.tokens["deviceToken"]
    assert other.login(deviceToken=device).json["mfaRequired"] is True
    assert person.login(deviceToken=device, password="wrong-password-1").status == 401
    tampered = device[:-1] + ("A" if device[-1] != "A" else "B")
    for token in (tampered, device + "=", device[:-4], "", person.name):
        assert person.login(deviceToken=token).json["mfaRequired"] is True
    assert person.login(deviceToken=device).json["mfaRequired"] is False


@case(
    "K15b",
    holds="a logout everywhere forgets remembered devices",
    stems_from="GHSA-9phw-7h96-q3rv",
    broken_by="device_survives",
)
def test_a_logout_everywhere_forgets_devices(target: Target) -> None:
    person = target.person(device=True)
    pending = person.pending()
    assert target.post("/auth/logout", {"everywhere": True}, person.access).status == 204
    assert person.login(deviceToken=person.tokens["deviceToken"]).json["mfaRequired"] is True
    assert person.verify(pending, person.code()).code == "invalid_pending_token"


@case(
    "J2",
    holds="a session of a password alone never grows into one of two factors",
    stems_from="Supabase: AAL on refresh",
    broken_by="refresh_raises",
)
def test_a_device_session_stays_what_it_is(target: Target) -> None:
    person = target.person(device=True)
    tokens = person.login(deviceToken=person.tokens["deviceToken"]).json
    for _ in range(3):
        tokens = person.refresh(tokens["refreshToken"]).json
        assert claims_of(tokens["accessToken"])["amr"] == ["pwd"]
        assert target.post("/api/mfa/recovery-codes", {}, tokens["accessToken"]).status == 401


@case(
    "T2b",
    holds="a session ends after an hour unless it is refreshed",
    stems_from="ASVS 9.2.1",
    broken_by="access_lives_on",
    needs=("clock",),
)
def test_an_access_token_ends(target: Target) -> None:
    person = target.person()
    target.move(3590)
    assert person.profile().status == 200
    target.move(3602)
    assert person.profile().code == "invalid_token"
    assert person.refresh().status == 200


@case(
    "J1",
    holds="no other spelling of a refresh token is one, and trying them ends nobody's session",
    stems_from="ASVS 7.2.3",
    broken_by="refresh_loose",
)
def test_a_refresh_token_is_whole(target: Target) -> None:
    person, other = target.person(), target.person()
    token, foreign = person.tokens["refreshToken"], other.tokens["refreshToken"]
    middle = len(token) - 20
    changed = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    half = len(token) // 2
    forms = (changed, token[:-1], token[:-8], token + "=", token + "A", f" {token}", token.swapcase(), token[::-1])
    for form in (*forms, token[:half], token[:half] + foreign[half:], foreign[:half] + token[half:]):
        assert person.refresh(form).status in (400, 401), "another spelling of a refresh token was taken"
    assert person.refresh().status == 200, "a forged token ended a session"


@case(
    "J7",
    holds="a session that nobody refreshes for a day is over",
    stems_from="ASVS 7.3.1",
    broken_by="idle_for_ever",
    needs=("clock",),
)
def test_an_idle_session_ends(target: Target) -> None:
    person, day = target.person(), 24 * 3600
    target.move(day - 60)
    kept = person.refresh()
    assert kept.status == 200, "a session ended before its time"
    target.move(2 * day - 120)
    kept = person.refresh(kept.json["refreshToken"])
    assert kept.status == 200, "refreshing does not keep a session"
    target.move(3 * day)
    assert person.refresh(kept.json["refreshToken"]).status == 401, "an idle session goes on"
    assert person.profile(kept.json["accessToken"]).status == 401


@case(
    "J7b",
    holds="no session lasts longer than 30 days, however often it is refreshed",
    stems_from="ASVS 7.3.2, 10.4.8",
    broken_by="absolute_for_ever",
    needs=("clock",),
)
def test_no_refreshing_outlasts_the_end(target: Target) -> None:
    person, month = target.person(), 30 * 24 * 3600
    tokens = person.tokens
    for moment in range(80_000, month, 80_000):
        target.move(moment)
        answer = person.refresh(tokens["refreshToken"])
        assert answer.status == 200, f"a session ended after {moment} s"
        tokens = answer.json
    target.move(month - 60)
    tokens = person.refresh(tokens["refreshToken"]).json
    target.move(month + 5)
    assert person.refresh(tokens["refreshToken"]).status == 401, "refreshing outlasts the end of a session"
    assert person.profile(tokens["accessToken"]).status == 401, "an access token outlasts its session"


@case(
    "K14",
    holds="a device is remembered for 30 days, however often it is used",
    stems_from="ASVS 7.3.2, NIST SP 800-63B section 2.2.3",
    broken_by="device_for_ever",
    needs=("clock",),
)
def test_a_device_is_forgotten(target: Target) -> None:
    person, month = target.person(device=True), 30 * 24 * 3600
    device = person.tokens["deviceToken"]
    for moment in (month // 2, month - 60):
        target.move(moment)
        assert person.login(deviceToken=device).json["mfaRequired"] is False
    target.move(month + 60)
    assert person.login(deviceToken=device).json["mfaRequired"] is True, "a device is remembered for ever"


@case(
    "J12",
    holds="an administrator ends all sessions of a user at once",
    stems_from="ASVS 7.4.5",
    broken_by="admin_end_ignored",
    needs=("admin",),
)
def test_an_administrator_ends_sessions(target: Target) -> None:
    person = target.person()
    path = f"/api/admin/users/{target.id_of(person)}/sessions"
    assert target.send(Call("DELETE", path, {"reason": "attack"}, target.admin())).status == 204
    is_over(person)


@case(
    "C10",
    holds="who failed at the code after a right password is seen by the account's owner",
    stems_from="ASVS 6.3.5",
    broken_by="no_trace",
)
def test_a_failed_code_leaves_a_trace(target: Target) -> None:
    person = target.person()
    assert person.verify(person.pending(), person.wrong()).status == 401
    events = [item["event"] for item in target.get("/api/activity", person.access).json["items"]]
    assert "login.code_refused" in events, "a thief's try leaves no trace"
