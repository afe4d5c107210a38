"""Accounts over HTTP: found, looked at, changed, reset, unlocked, deleted; and no answer holds a secret."""

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from tests.administrators import administrator, complete, everything, id_of, promote, refusal, services_of
from tests.conftest import Clock
from tests.factories import PASSWORD, Person, bearer, log_in, register
from tests.services import Rows

FUTURE = "2027-01-31T00:00:00Z"


def test_the_list_is_newest_first_with_all_that_is_nobodys_secret(
    client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock
) -> None:
    promote(client, id_of(client, "ada"), "staff", "finance")
    answer = client.get("/api/admin/users", headers=root)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert [item["username"] for item in answer.json["items"]] == ["ada", "root"]
    first = answer.json["items"][0]
    told = {"id", "username", "email", "roles", "mfa", "createdAt", "lastSeenAt"}
    assert first.keys() - {"disabledAt"} == told
    assert (first["id"], first["roles"], first["mfa"]) == (id_of(client, "ada"), ["finance", "staff"], "none")


def test_an_account_is_shown_with_its_counters(
    client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock
) -> None:
    complete(client, ada, clock(), rememberDevice=True)
    client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": "000000"})
    shown = client.get(path(client), headers=root).json
    assert (shown["mfa"], shown["sessions"], shown["devices"], shown["recoveryCodesLeft"]) == ("enabled", 1, 1, 10)
    assert shown["mfaRequired"] is False
    assert [(lock["subject"], lock["failures"]) for lock in shown["locks"]] == [("totp", 1)]


def test_sessions_that_idled_out_are_not_counted(
    client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock
) -> None:
    complete(client, ada, clock())
    clock.advance(86_400)
    again = administrator(client, clock(), "again")
    assert client.get(path(client), headers=again).json["sessions"] == 0


def test_what_is_left_out_of_a_change_stays(client: FlaskClient, root: dict[str, str], ada: Person) -> None:
    body: dict[str, Any] = {"roles": ["staff"], "mfaRequired": True, "mfaDeadline": {"days": 7}, "reason": "new here"}
    answer = client.patch(path(client), json=body, headers=root)
    assert (answer.status_code, answer.json["roles"], answer.json["mfaRequired"]) == (200, ["staff"], True)
    assert answer.json["mfaRule"] == {"days": 7}
    disabled = client.patch(path(client), json={"disabled": True}, headers=root).json
    assert (disabled["roles"], disabled["mfaRule"]) == (["staff"], {"days": 7})
    assert disabled["disabledAt"]
    nothing = client.patch(path(client), json={}, headers=root).json
    assert nothing == disabled
    enabled = client.patch(path(client), json={"disabled": False, "roles": [], "mfaRequired": False}, headers=root).json
    assert (enabled["roles"], enabled["mfaRequired"], enabled.get("disabledAt")) == ([], False, None)


def test_a_change_is_answered_as_done_though_somebody_deletes_the_account_right_after(
    client: FlaskClient, root: dict[str, str], ada: Person, rows: Rows
) -> None:
    @event.listens_for(services_of(client).session, "after_commit")
    def delete_who_is_disabled(_session: Any) -> None:
        rows("DELETE FROM mfa_users WHERE disabled_at IS NOT NULL")

    answer = client.patch(path(client), json={"disabled": True, "roles": ["staff"]}, headers=root)
    assert (answer.status_code, answer.json["username"], answer.json["roles"]) == (200, "ada", ["staff"])
    assert rows("SELECT username FROM mfa_users") == [{"username": "root"}]


def test_a_reset_gives_a_ticket_that_enrols(
    client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock
) -> None:
    complete(client, ada, clock())
    answer = client.post(path(client, "/reset-mfa"), json={"reason": "lost phone"}, headers=root)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert answer.json.keys() == {"enrolmentTicket", "expiresIn"}
    assert answer.json["expiresIn"] == 86_400
    body = {"tempToken": log_in(client, ada), "enrolmentTicket": answer.json["enrolmentTicket"]}
    assert client.post("/auth/enrol", json=body).status_code == 200


def test_unlock_end_sessions_and_delete_answer_204(
    client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock
) -> None:
    token = complete(client, ada, clock())["accessToken"]
    assert client.post(path(client, "/unlock"), headers=root).status_code == 204
    assert client.get("/api/profile", headers=bearer(token)).status_code == 200
    assert client.delete(path(client, "/sessions"), headers=root, json={"reason": "asked"}).status_code == 204
    assert client.get("/api/profile", headers=bearer(token)).status_code == 401
    there = path(client)
    assert client.delete(there, headers=root).status_code == 204
    assert refusal(client.get(there, headers=root)) == (404, "not_found")


@pytest.mark.parametrize(
    ("tail", "method", "body", "member"),
    [
        ("", "PATCH", {"roles": "admin"}, "roles"),
        ("", "PATCH", {"roles": ["Admin"]}, "roles"),
        ("", "PATCH", {"roles": ["a\u0000"]}, "roles"),
        ("", "PATCH", {"roles": [1]}, "roles"),
        ("", "PATCH", {"roles": [None]}, "roles"),
        ("", "PATCH", {"roles": [f"r{n}" for n in range(33)]}, "roles"),
        ("", "PATCH", {"disabled": "yes"}, "disabled"),
        ("", "PATCH", {"disabled": 1}, "disabled"),
        ("", "PATCH", {"mfaRequired": 10**30}, "mfaRequired"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"at": FUTURE, "days": 3}}, "deadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {}}, "deadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"at": "2027-01-31T00:00:00"}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"at": 1_800_000_000}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"at": "9999-12-31T23:59:59-23:59"}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"at": "0001-01-01T00:00:00+23:59"}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"days": 366}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"days": -1}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"days": 10**30}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"days": 1.5}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": {"days": True}}, "mfaDeadline"),
        ("", "PATCH", {"mfaRequired": True, "mfaDeadline": "soon"}, "mfaDeadline"),
        ("", "PATCH", {"disabled": True, "reason": "a\u0000b"}, "reason"),
        ("", "PATCH", {"disabled": True, "reason": "\ud800"}, "reason"),
        ("", "PATCH", {"disabled": True, "reason": "x" * 257}, "reason"),
        ("", "DELETE", {"reason": 7}, "reason"),
        ("/reset-mfa", "POST", {}, "reason"),
        ("/reset-mfa", "POST", {"reason": ""}, "reason"),
        ("/reset-mfa", "POST", {"reason": None}, "reason"),
        ("/reset-mfa", "POST", {"reason": "\u001b[2J"}, "reason"),
        ("/unlock", "POST", {"reason": []}, "reason"),
        ("/sessions", "DELETE", {"reason": {}}, "reason"),
    ],
    ids=ascii,
)
def test_a_bad_body_is_400_with_its_member_and_changes_nothing(
    client: FlaskClient, root: dict[str, str], ada: Person, rows: Rows, tail: str, method: str, body: Any, member: str
) -> None:
    before = everything(rows)
    answer = client.open(path(client, tail), method=method, json=body, headers=root)
    assert refusal(answer) == (400, "invalid_request"), answer.text
    assert member in answer.json["fields"]
    assert everything(rows) == before


def test_a_reset_wants_more_than_blanks_for_a_reason(
    client: FlaskClient, root: dict[str, str], ada: Person, rows: Rows
) -> None:
    answer = client.post(path(client, "/reset-mfa"), json={"reason": "   "}, headers=root)
    assert refusal(answer) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("query", "member"),
    [
        ({"mfa": "some"}, "mfa"),
        ({"seenSince": "yesterday"}, "seenSince"),
        ({"seenSince": "1700000000"}, "seenSince"),
        ({"seenBefore": "2027-01-31T00:00:00"}, "seenBefore"),
        ({"seenBefore": "2027-01-31"}, "seenBefore"),
        ({"q": "a\u0000"}, "q"),
        ({"role": "a\u0000"}, "role"),
        ({"cursor": "a\u0000"}, "cursor"),
    ],
    ids=ascii,
)
def test_a_bad_query_is_400_with_its_member(
    client: FlaskClient, root: dict[str, str], query: dict[str, str], member: str
) -> None:
    answer = client.get("/api/admin/users", query_string=query, headers=root)
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json["fields"].keys() == {member}


@pytest.mark.parametrize("q", ["%", "_", "\U0010ffff", "'", "a%00".replace("%00", "\u200b"), "\ud7ff", "ad a", "\\"])
def test_whatever_is_searched_for_is_no_error(client: FlaskClient, root: dict[str, str], q: str) -> None:
    answer = client.get("/api/admin/users", query_string={"q": q}, headers=root)
    assert (answer.status_code, answer.json["items"]) == (200, [])


@pytest.mark.parametrize("cursor", ["", "x", "1", "-1", "1-", f"{10**17 - 1}-x", f"{10**30}-x", "1-" + "x" * 30])
def test_a_cursor_of_nobody_leads_nowhere_and_is_no_error(
    client: FlaskClient, root: dict[str, str], cursor: str
) -> None:
    for listing in ("users", "compliance", "audit", "audit/seals"):
        answer = client.get(f"/api/admin/{listing}", query_string={"cursor": cursor}, headers=root)
        assert answer.status_code == 200, (listing, answer.text)


def test_no_answer_of_an_admin_route_holds_a_secret(
    app: Flask, client: FlaskClient, root: dict[str, str], ada: Person, clock: Clock, rows: Rows
) -> None:
    signed_in, pending = complete(client, ada, clock(), rememberDevice=True), log_in(client, ada)
    ticket = client.post(path(client, "/reset-mfa"), json={"reason": "lost"}, headers=root).json["enrolmentTicket"]
    tokens = [signed_in[name] for name in ("accessToken", "refreshToken", "deviceToken")]
    secrets = {ada.secret, ada.code(clock()), PASSWORD, pending, ticket, *tokens, *signed_in["recoveryCodes"]}
    secrets |= {row["digest"] for table in ("devices", "tickets") for row in rows(f"SELECT digest FROM mfa_{table}")}
    answers = []
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods & {"GET", "PUT", "PATCH", "POST"}) if "/admin" in rule.rule else ():
            if rule.rule.endswith("/reset-mfa"):
                continue
            where = rule.rule.replace("<user_id>", id_of(client, "ada"))
            body = (
                {}
                if method == "GET"
                else {"json": {"mode": "required"} if "policy" in rule.rule else {"roles": ["staff"]}}
            )
            answers.append(client.open(where, method=method, headers=root, **body))
    answers.append(client.get("/api/admin/compliance?format=csv", headers=root))
    assert {answer.status_code for answer in answers} == {200, 204}
    assert len(answers) > 9
    for answer in answers:
        assert not [secret for secret in secrets if secret in answer.text]
        assert not re.search(r"\$2[aby]\$|eyJ|digest\"|sealed", answer.text.replace("eventsDigest", ""))


def test_ids_and_privileges_in_a_body_are_bound_to_nothing(
    client: FlaskClient, root: dict[str, str], ada: Person, rows: Rows
) -> None:
    before = rows("SELECT id, username, email, sealed_password FROM mfa_users ORDER BY id")
    body = {"id": "x", "username": "eve", "email": "e@x.org", "password": "x", "totpSecret": "x", "role": "admin"}
    assert client.patch(path(client), json=body, headers=root).status_code == 200
    assert rows("SELECT id, username, email, sealed_password FROM mfa_users ORDER BY id") == before
    assert services_of(client).directory.show(id_of(client, "ada")).entry.roles == ()


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(client: FlaskClient, clock: Clock) -> dict[str, str]:
    headers = administrator(client, clock())
    clock.advance(1)
    return headers


@pytest.fixture
def ada(client: FlaskClient, root: dict[str, str]) -> Person:
    return register(client, "ada")


def path(client: FlaskClient, tail: str = "") -> str:
    return f"/api/admin/users/{id_of(client, 'ada')}{tail}"
