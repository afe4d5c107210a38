"""Reading the audit log: what a search lets through, pages that lose and repeat nothing, exports in batches."""

from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import insert

from mfa_service.models import AuditEvent
from mfa_service.services import Services, audit_log
from mfa_service.services.audit import ClientInfo, Event
from mfa_service.services.audit_log import EventEntry, EventFilter
from tests.conftest import Clock
from tests.services import CLIENT, Rows, another, register, user_id_of

ALL = EventFilter()


def test_an_entry_is_the_event_as_it_was_recorded(services: Services, clock: Clock) -> None:
    client = ClientInfo("192.0.2.7", "192.0.2.0/24", "curl/8 é", "request-42", "cli:ops")
    services.unit.run(lambda: services.audit.record(Event.USER_UNLOCKED, client, user_id="u", n=[1]), writes=True)
    [entry], cursor = services.audit_log.search(ALL, None)
    assert cursor is None
    assert entry == EventEntry(
        id=1,
        at=services.now(),
        event="user.unlocked",
        user_id="u",
        actor="cli:ops",
        address="192.0.2.7",
        user_agent="curl/8 é",
        request_id="request-42",
        detail={"n": [1]},
    )


def test_an_empty_log_is_one_empty_page(services: Services) -> None:
    assert services.audit_log.search(ALL, None) == ([], None)
    assert list(services.audit_log.export(ALL)) == []


def test_the_newest_comes_first_and_the_later_id_where_the_time_is_the_same(services: Services) -> None:
    write(services, {}, {}, {"after": 5}, {"after": -5})
    assert found(services, ALL) == [3, 2, 1, 4]


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        (EventFilter(event="login.completed"), [4, 1]),
        (EventFilter(user_id="ada"), [5, 2, 1]),
        (EventFilter(actor="cli:ops"), [6, 5]),
        (EventFilter(event="login.completed", user_id="ada"), [1]),
        (EventFilter(user_id="ada", actor="cli:ops"), [5]),
        (EventFilter(event="user.disabled", actor="cli:ops"), [6, 5]),
        (EventFilter(event="user.disabled", user_id="bob", actor="cli:ops"), [6]),
        (EventFilter(event="login.completed", actor="cli:ops"), []),
        (EventFilter(event="login"), []),
        (EventFilter(event=""), []),
        (EventFilter(user_id=""), []),
        (EventFilter(actor=""), []),
        (EventFilter(user_id="ADA"), []),
        (EventFilter(event="%"), []),
        (EventFilter(user_id="' OR 1=1 --"), []),
    ],
)
def test_a_search_by_event_user_and_actor(services: Services, six: None, which: EventFilter, ids: list[int]) -> None:
    assert found(services, which) == ids
    assert [entry.id for entry in services.audit_log.export(which)] == ids


def test_since_is_included_and_before_is_not(services: Services, six: None) -> None:
    third, fifth = (services.now() + timedelta(seconds=seconds) for seconds in (20, 40))
    assert found(services, EventFilter(since=third)) == [6, 5, 4, 3]
    assert found(services, EventFilter(before=fifth)) == [4, 3, 2, 1]
    assert found(services, EventFilter(since=third, before=fifth)) == [4, 3]
    assert found(services, EventFilter(since=third, before=third)) == []
    assert found(services, EventFilter(since=fifth, before=third)) == []
    just = timedelta(microseconds=1)
    assert found(services, EventFilter(since=third + just, before=fifth + just)) == [5, 4]


def test_all_conditions_hold_together(services: Services, six: None) -> None:
    conditions: dict[str, Any] = {
        "event": "user.disabled",
        "user_id": "ada",
        "actor": "cli:ops",
        "since": services.now() + timedelta(seconds=30),
        "before": services.now() + timedelta(seconds=50),
    }
    for count in range(len(conditions) + 1):
        for names in combinations(conditions, count):
            each = [set(found(services, EventFilter(**{name: conditions[name]}))) for name in names]
            expected = set(found(services, ALL)).intersection(*each)
            assert set(found(services, EventFilter(**{name: conditions[name] for name in names}))) == expected, names


@pytest.mark.parametrize(
    ("count", "sizes"), [(49, [49]), (50, [50]), (51, [50, 1]), (100, [50, 50]), (101, [50, 50, 1])]
)
def test_a_page_has_fifty_and_only_a_page_that_is_not_the_last_has_a_cursor(
    services: Services, count: int, sizes: list[int]
) -> None:
    write(services, *({"after": number // 7} for number in range(count)))
    pages = paged(services, ALL)
    assert [len(page) for page in pages] == sizes
    assert [each for page in pages for each in page] == list(range(count, 0, -1))


def test_pages_of_a_search_are_pages_of_what_it_lets_through(services: Services) -> None:
    write(services, *({"user_id": "ada" if number % 2 else "bob"} for number in range(150)))
    pages = paged(services, EventFilter(user_id="ada"))
    assert [len(page) for page in pages] == [50, 25]
    assert [each for page in pages for each in page] == list(range(150, 0, -2))


def test_events_that_arrive_meanwhile_neither_repeat_nor_hide_any(services: Services) -> None:
    write(services, *({"after": number // 20} for number in range(120)))
    seen, cursor = [], None
    while True:
        entries, cursor = services.audit_log.search(ALL, cursor)
        seen += [entry.id for entry in entries]
        if cursor is None:
            break
        write(services, *[{"after": 1000}] * 60)
    assert seen == list(range(120, 0, -1))


def test_a_cursor_holds_when_its_event_is_gone(services: Services, rows: Rows, clock: Clock) -> None:
    write(services, *[{}] * 60)
    entries, cursor = services.audit_log.search(ALL, None)
    clock.advance(61)
    services.seals.seal()
    clock.advance(3600)
    assert list(services.seals.prune(timedelta(minutes=1), CLIENT)) == [60]
    assert entries[-1].id == 11
    assert services.audit_log.search(ALL, cursor) == ([], None)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "-", "1", "1-", "-1", "1-x", "1--1", "٣-1", "1-٣", "1.5-1", "9" * 18 + "-1", "1-" + "9" * 19, "1-1;"],
)  # fmt: skip
def test_a_cursor_that_can_not_be_read_leads_nowhere(services: Services, six: None, cursor: str) -> None:
    assert services.audit_log.search(ALL, cursor) == ([], None)


@pytest.mark.parametrize("cursor", ["9" * 17 + "-" + "9" * 18, "0-0"])
def test_a_cursor_may_lie_at_either_end(services: Services, six: None, cursor: str) -> None:
    entries, following = services.audit_log.search(ALL, cursor)
    assert (len(entries), following) == (6 if cursor.startswith("9") else 0, None)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_an_export_is_all_of_it_in_the_order_of_the_search(
    services: Services, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(audit_log, "BATCH", batch)
    write(services, *({"after": number // 4, "user_id": "ada" if number % 3 else "bob"} for number in range(20)))
    for which in (ALL, EventFilter(user_id="ada"), EventFilter(since=services.now() + timedelta(seconds=2))):
        assert list(services.audit_log.export(which)) == services.audit_log.search(which, None)[0]


def test_an_export_has_each_event_once_although_others_arrive(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "BATCH", 3)
    write(services, *[{}] * 10)
    seen = []
    for entry in services.audit_log.export(ALL):
        seen.append(entry.id)
        write(services, {"after": 1})
    assert seen == list(range(10, 0, -1))


def test_an_export_that_waits_for_its_reader_holds_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "BATCH", 2)
    write(services, *[{}] * 5)
    next(exporting := services.audit_log.export(ALL))
    assert services.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with another(services) as writer:
        register(writer)
    assert len(list(exporting)) == 4


def test_what_users_did_is_found_by_their_id_after_they_are_gone(services: Services, rows: Rows) -> None:
    register(services, "ada")
    user_id = user_id_of(rows, "ada")
    for table in ("mfa_secrets", "mfa_users"):
        rows(f"DELETE FROM {table}")
    assert found(services, EventFilter(user_id=user_id)) == [1]


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def six(services: Services) -> None:
    """Events ten seconds apart."""
    acts = [
        ("login.completed", "ada", None),
        ("session.ended", "ada", None),
        ("session.ended", None, None),
        ("login.completed", "bob", None),
        ("user.disabled", "ada", "cli:ops"),
        ("user.disabled", "bob", "cli:ops"),
    ]
    write(
        services,
        *(
            {"event": event, "user_id": user_id, "actor": actor, "after": 10 * number}
            for number, (event, user_id, actor) in enumerate(acts)
        ),
    )


def write(services: Services, *events: dict[str, Any]) -> None:
    """Events with these columns; `after` is how many seconds from now."""
    usual = {"event": "session.refreshed", "user_id": None, "actor": None, "address": "", "user_agent": ""}
    rows = [usual | {"request_id": "", "detail": {}} | each for each in events]
    rows = [row | {"at": services.now() + timedelta(seconds=row.get("after", 0))} for row in rows]
    columns = {column.name for column in AuditEvent.__table__.columns} - {"id"}
    with services.engine.begin() as connection:
        connection.execute(insert(AuditEvent), [{name: row[name] for name in columns} for row in rows])


def found(services: Services, which: EventFilter) -> list[int]:
    return [entry.id for entry in services.audit_log.search(which, None)[0]]


def paged(services: Services, which: EventFilter) -> list[list[int]]:
    """The ids on each page."""
    pages: list[list[int]] = []
    cursor = None
    while not pages or cursor:
        entries, cursor = services.audit_log.search(which, cursor)
        pages.append([entry.id for entry in entries])
    return pages
