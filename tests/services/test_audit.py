"""The audit log: a row in the transaction of the fact, one signal after it, and no secret in either."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from mfa_service.errors import InvalidCode, InvalidCredentials, UserExists
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo, Event, Recorded
from tests.conftest import Clock
from tests.factories import Person
from tests.services import CLIENT, Rows, another, events, log_in, register, sign_in, user_id_of, verify


def test_events_are_named_noun_happened_and_each_name_is_used_once() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*", event) for event in Event)
    assert len({event.value for event in Event}) == len(Event.__members__)


def test_a_row_says_what_happened_to_whom_from_where_and_when(services: Services, rows: Rows, clock: Clock) -> None:
    services.accounts.register(
        "ada",
        "analytical-engine-1843",
        "ada@example.com",
        ClientInfo("192.0.2.7", "192.0.2.0/24", "curl/8", "request-42"),
    )
    [row] = rows("SELECT * FROM mfa_events")
    assert row["event"] == "user.registered"
    assert row["user_id"] == user_id_of(rows, "ada")
    assert (row["address"], row["user_agent"], row["request_id"]) == ("192.0.2.7", "curl/8", "request-42")
    assert aware(row["at"]) == datetime.fromtimestamp(clock(), UTC)


def test_rows_are_numbered_in_the_order_of_what_happened(services: Services, rows: Rows) -> None:
    ada = register(services)
    with pytest.raises(InvalidCredentials):
        services.login.begin("ada", "wrong-password", CLIENT)
    token = log_in(services, ada)
    with pytest.raises(InvalidCode):
        verify(services, token, ada, steps=9)
    verify(services, token, ada)
    assert events(rows) == [
        "user.registered",
        "login.password_refused",
        "login.password_accepted",
        "login.code_refused",
        "factor.confirmed",
        "recovery_codes.issued",
        "login.completed",
    ]


def test_the_completed_login_names_session_and_methods(services: Services, rows: Rows) -> None:
    sign_in(services, register(services))
    [row] = rows("SELECT detail FROM mfa_events WHERE event = 'login.completed'")
    [session] = rows("SELECT id FROM mfa_sessions")
    assert detail_of(row) == {"session": session["id"], "amr": ["pwd", "otp", "mfa"], "new_client": True}


def test_listeners_hear_what_the_rows_say(services: Services, rows: Rows, clock: Clock) -> None:
    heard: list[Recorded] = []
    services.audit.signal.connect(lambda _sender, record: heard.append(record), weak=False)
    sign_in(services, register(services))
    stored = rows("SELECT * FROM mfa_events ORDER BY id")
    assert [(record.event, record.user_id) for record in heard] == [(row["event"], row["user_id"]) for row in stored]
    assert {record.client for record in heard} == {CLIENT}
    assert {record.at for record in heard} == {datetime.fromtimestamp(clock(), UTC)}
    assert [json.loads(json.dumps(record.detail)) for record in heard] == [detail_of(row) for row in stored]


def test_the_record_outlives_the_account(services: Services, rows: Rows) -> None:
    register(services)
    user_id = user_id_of(rows, "ada")
    rows("DELETE FROM mfa_secrets")
    rows("DELETE FROM mfa_users")
    assert rows("SELECT event, user_id FROM mfa_events") == [{"event": "user.registered", "user_id": user_id}]


def test_the_name_that_a_stranger_typed_is_not_kept_since_it_may_be_a_password(services: Services, rows: Rows) -> None:
    register(services)
    with pytest.raises(InvalidCredentials):
        services.login.begin("hunter2-typed-as-a-name", "x", CLIENT)
    with pytest.raises(UserExists):
        services.accounts.register("ada", "hunter2-as-a-password", "hunter2@example.com", CLIENT)
    assert "hunter2" not in dump(rows)
    assert rows("SELECT user_id FROM mfa_events WHERE event = 'login.password_refused'") == [{"user_id": None}]


def test_no_password_code_secret_or_token_is_recorded(services: Services, rows: Rows, clock: Clock) -> None:
    heard: list[Recorded] = []
    services.audit.signal.connect(lambda _sender, record: heard.append(record), weak=False)
    ada = register(services)
    token = log_in(services, ada)
    enrolment = services.login.enrol(token, CLIENT)
    with pytest.raises(InvalidCode):
        verify(services, token, ada)
    lost = ada.code(clock())
    ada = Person("ada", ada.password, ada.email, enrolment.secret)
    signed_in = verify(services, token, ada)
    made = [ada.password, enrolment.secret, lost, ada.code(clock()), token, signed_in.access_token]
    made += [value.split(".")[2] for value in (token, signed_in.access_token, signed_in.refresh_token)]
    made += [*(signed_in.recovery_codes or ()), signed_in.refresh_token]
    written = dump(rows) + repr(heard)
    assert [secret for secret in made if secret in written] == []


def test_a_service_is_deaf_to_the_events_of_another(services: Services) -> None:
    heard: list[Recorded] = []
    services.audit.signal.connect(lambda _sender, record: heard.append(record), weak=False)
    with another(services) as other:
        register(other)
    assert heard == []


def dump(rows: Rows) -> str:
    return json.dumps([{**row, "at": ""} for row in rows("SELECT * FROM mfa_events")])


def detail_of(row: dict[str, Any]) -> dict[str, Any]:
    detail = row["detail"]  # JSON arrives as text from SQLite and parsed from PostgreSQL
    return dict(json.loads(detail) if isinstance(detail, str) else detail)


def aware(at: datetime | str) -> datetime:
    time = datetime.fromisoformat(at) if isinstance(at, str) else at
    return time if time.tzinfo else time.replace(tzinfo=UTC)
