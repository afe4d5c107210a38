"""Seals over the audit log: what is sealed and when, that each way of tampering is named, what pruning leaves."""

import json
import re
import stat
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Executable, create_engine, delete, event, insert, select, text, update

from mfa_service.crypto.chain import GENESIS, Seal, SealKeys, digest_of
from mfa_service.errors import ConfigurationError
from mfa_service.models import AuditEvent, SealRecord
from mfa_service.services import Services, seals
from mfa_service.services.audit import Event
from tests.conftest import Clock
from tests.services import CLIENT, Rows, another, at_once, register

Tamper = Callable[..., None]
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

LAG = 60
OVERDUE = 900
#: Three seals over ten events each: where the first, the middle and the last of them are.
PLACES = [(1, 1), (2, 15), (3, 30)]
NUMBERS = [1, 2, 3]


# ── sealing ──────────────────────────────────────────────────────────────────────────────────────


def test_the_lag_is_twice_what_a_transaction_may_take() -> None:
    assert seals.LAG_SECONDS == LAG
    assert seals.OVERDUE_SECONDS == OVERDUE


def test_nothing_to_seal_makes_no_seal(services: Services, rows: Rows) -> None:
    assert services.seals.seal() == []
    assert rows("SELECT * FROM mfa_seals") == []
    assert findings(services) == []


def test_a_seal_is_over_the_events_in_the_order_of_their_ids(services: Services, rows: Rows, clock: Clock) -> None:
    write(services, 5)
    clock.advance(LAG)
    [seal] = services.seals.seal()
    assert (seal.number, seal.kind, seal.first_id, seal.last_id, seal.count) == (1, "seal", 1, 5, 5)
    assert (seal.previous, seal.sealed_at) == (GENESIS, services.now())
    assert seal.events_digest == digest_of(logged(services))[0]
    assert stored(services) == [seal]
    assert services.seals.chain.keys.is_genuine(seal)


def test_what_is_recorded_by_the_service_is_sealed(services: Services, clock: Clock) -> None:
    services.unit.run(lambda: services.audit.record(Event.USER_UNLOCKED, CLIENT, user_id="u", n=1), writes=True)
    clock.advance(LAG)
    assert [seal.count for seal in services.seals.seal()] == [1]


def test_events_younger_than_the_lag_wait(services: Services, clock: Clock) -> None:
    write(services, 3)
    clock.advance(LAG - 1)
    write(services, 2)
    assert services.seals.seal() == []
    clock.advance(1)
    assert [(seal.first_id, seal.last_id) for seal in services.seals.seal()] == [(1, 3)]
    clock.advance(LAG - 2)
    assert services.seals.seal() == []
    clock.advance(1)
    assert [(seal.first_id, seal.last_id) for seal in services.seals.seal()] == [(4, 5)]


def test_an_event_of_a_clock_that_is_ahead_is_sealed_with_those_after_it(services: Services, clock: Clock) -> None:
    write(services, 1)
    write(services, 1, at=services.now() + timedelta(seconds=50))
    write(services, 1)
    clock.advance(LAG)
    assert [(seal.first_id, seal.last_id, seal.count) for seal in services.seals.seal()] == [(1, 3, 3)]


def test_what_is_sealed_is_not_sealed_again(services: Services, clock: Clock) -> None:
    write(services, 3)
    clock.advance(LAG)
    assert len(services.seals.seal()) == 1
    clock.advance(3600)
    assert services.seals.seal() == []


def test_each_seal_names_the_one_before_it(services: Services, clock: Clock) -> None:
    for _ in range(4):
        write(services, 3)
        clock.advance(LAG)
        services.seals.seal()
    assert_one_chain(services)
    assert len(stored(services)) == 4


def test_many_events_are_sealed_in_several_ranges(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 4)
    write(services, 10)
    clock.advance(LAG)
    made = services.seals.seal()
    assert [(seal.first_id, seal.last_id, seal.count) for seal in made] == [(1, 4, 4), (5, 8, 4), (9, 10, 2)]
    assert_one_chain(services)


def test_gaps_between_ids_are_within_the_ranges(
    services: Services, tamper: Tamper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gaps(services, tamper, clock, monkeypatch)
    assert [(seal.first_id, seal.last_id, seal.count) for seal in stored(services)] == [
        (1, 4, 3),
        (5, 8, 3),
        (9, 12, 3),
    ]
    assert_one_chain(services)


def test_without_a_key_nothing_is_sealed(services: Services, clock: Clock, tmp_path: Path) -> None:
    write(services, 1)
    clock.advance(LAG)
    with another(services, seal_keys=tmp_path) as keyless:
        with pytest.raises(ConfigurationError, match="there is no seal key"):
            keyless.seals.seal()
        keyless.sealer.ensure_running()
        assert stored(services) == []


# ── replicas ─────────────────────────────────────────────────────────────────────────────────────


def test_replicas_that_seal_at_once_make_one_chain(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 3)
    with another(services) as one, another(services) as two:
        replicas = one, two
        for _ in range(30):
            write(services, 12)
            clock.advance(LAG)
            made = at_once(2, lambda number: replicas[number].seals.seal())
            assert [it for it in made if isinstance(it, Exception)] == []
            services.seals.seal()
    assert_one_chain(services)
    assert sum(seal.count for seal in stored(services)) == 30 * 12


def test_a_seal_that_another_makes_while_one_is_being_drafted_is_not_doubled(services: Services, clock: Clock) -> None:
    write(services, 5)
    clock.advance(LAG)
    with another(services) as slower:
        once = iter([services.seals.seal])

        def overtake(*call: Any) -> None:
            if "FROM mfa_events" in call[2]:
                next(once, lambda: None)()

        event.listen(slower.engine, "before_cursor_execute", overtake)
        assert slower.seals.seal() == []
    assert_one_chain(services)
    assert [(seal.first_id, seal.last_id) for seal in stored(services)] == [(1, 5)]


def test_sealing_and_pruning_at_once_make_one_chain(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 3)
    write(services, 6)
    clock.advance(LAG)
    services.seals.seal()
    with another(services) as pruner:
        for _ in range(10):
            clock.advance(LAG)
            write(services, 6)
            clock.advance(LAG)
            acts = [services.seals.seal, lambda: list(pruner.seals.prune(timedelta(seconds=LAG + 1), CLIENT))]
            made = at_once(2, lambda number, acts=acts: acts[number]())
            assert [it for it in made if isinstance(it, Exception)] == []
            services.seals.seal()
    assert_one_chain(services)


def test_an_event_is_written_while_others_are_being_sealed(services: Services, clock: Clock, rows: Rows) -> None:
    write(services, 5)
    clock.advance(LAG)
    took: list[float] = []
    with another(services) as sealer, another(services) as writer:

        def record(*call: Any) -> None:
            if "FROM mfa_events" in call[2]:
                began = time.monotonic()
                register(writer, f"user{len(took)}")
                took.append(time.monotonic() - began)

        event.listen(sealer.engine, "after_cursor_execute", record)
        assert [seal.count for seal in sealer.seals.seal()] == [5]
    assert took
    assert max(took) < 3
    assert len(rows("SELECT id FROM mfa_events")) == 5 + len(took)
    assert findings(services) == []


@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
def test_a_seal_that_is_being_stored_locks_nobody_out(services: Services, clock: Clock, rows: Rows) -> None:
    write(services, 5)
    clock.advance(LAG)
    with another(services) as sealer:
        event.listen(
            sealer.engine,
            "after_cursor_execute",
            lambda *call: register(services) if "INSERT INTO mfa_seals" in call[2] else None,
        )
        assert len(sealer.seals.seal()) == 1
    assert len(rows("SELECT id FROM mfa_events")) == 6


# ── shipping ─────────────────────────────────────────────────────────────────────────────────────


def test_seals_are_appended_to_a_file_as_lines_that_only_we_read(
    services: Services, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 2)
    path = tmp_path / "seals.ndjson"
    with another(services, seals_output=str(path)) as shipping:
        for _ in range(2):
            write(services, 6)
            clock.advance(LAG)
            shipping.seals.seal()
        clock.advance(3600)
        list(shipping.seals.prune(timedelta(minutes=30), CLIENT))
    lines = path.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [Seal.from_json(line) for line in lines] == stored(services)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert findings(services, shipped_in(path)) == []


def test_seals_go_to_standard_output(services: Services, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    write(services, 1)
    clock.advance(LAG)
    with another(services, seals_output="-") as shipping:
        [seal] = shipping.seals.seal()
    assert capsys.readouterr().out == seal.as_json() + "\n"


def test_none_is_nowhere(
    services: Services,
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(services, 1)
    clock.advance(LAG)
    assert len(services.seals.seal()) == 1
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "none").exists()


# ── verifying ────────────────────────────────────────────────────────────────────────────────────


def test_an_untouched_log_is_sound(services: Services, thirty: list[Seal], clock: Clock) -> None:
    assert findings(services) == []
    assert findings(services, thirty) == []
    clock.advance(365 * 86_400)
    assert findings(services) == []


def test_verifying_says_how_far_it_is(services: Services, thirty: list[Seal]) -> None:
    assert [progress.events for progress in services.seals.verify()] == [10, 20, 30, 30]


def test_who_has_the_public_key_alone_verifies(services: Services, thirty: list[Seal], tmp_path: Path) -> None:

    [key] = services.seals.chain.keys.public.values()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(pem)
    with another(services, seal_keys=tmp_path) as auditor:
        assert findings(auditor, thirty) == []


def test_verifying_changes_nothing(services: Services, thirty: list[Seal], rows: Rows) -> None:
    before = everything(rows)
    findings(services)
    assert everything(rows) == before


CHANGES: dict[str, Any] = {
    "at": datetime(2023, 11, 14, 22, 13, 20, 1, UTC),
    "event": "login.code_refused",
    "user_id": None,
    "actor": "cli:eve",
    "address": "192.0.2.2",
    "user_agent": "",
    "request_id": "request-2",
    "detail": {"n": True},
}


def test_each_column_of_an_event_is_changed_here() -> None:
    assert {*CHANGES, "id"} == {column.name for column in AuditEvent.__table__.columns}


@pytest.mark.parametrize(("number", "event_id"), PLACES)
@pytest.mark.parametrize("column", CHANGES)
def test_an_event_that_is_changed_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int, event_id: int, column: str
) -> None:
    tamper(update(AuditEvent).where(AuditEvent.id == event_id).values({column: CHANGES[column]}))
    assert findings(services) == [f"{span(number)}: changed, exchanged or reordered"]


@pytest.mark.parametrize(("number", "event_id"), PLACES)
def test_an_event_that_is_deleted_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int, event_id: int
) -> None:
    tamper(delete(AuditEvent).where(AuditEvent.id == event_id))
    assert findings(services) == [f"{span(number)}: 10 were sealed, 9 are there"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_whole_range_that_is_deleted_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int
) -> None:
    tamper(delete(AuditEvent).where(AuditEvent.id.between(10 * number - 9, 10 * number)))
    assert findings(services) == [f"{span(number)}: 10 were sealed, 0 are there"]


@pytest.mark.parametrize("event_id", [0, -1, -(2**31)])
def test_an_event_before_the_first_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, event_id: int
) -> None:
    tamper(insert(AuditEvent).values(copy_of(services, 1) | {"id": event_id}))
    assert findings(services) == ["1 events below 1: inserted"]


@pytest.mark.parametrize(
    ("event_id", "said"), [(2, "1 to 4 (seal 1)"), (6, "5 to 8 (seal 2)"), (11, "9 to 12 (seal 3)")]
)
def test_an_event_in_a_gap_is_named(
    services: Services, tamper: Tamper, clock: Clock, monkeypatch: pytest.MonkeyPatch, event_id: int, said: str
) -> None:
    with_gaps(services, tamper, clock, monkeypatch)
    tamper(insert(AuditEvent).values(copy_of(services, 7) | {"id": event_id}))
    assert findings(services) == [f"events {said}: 3 were sealed, 4 are there"]


@pytest.mark.parametrize(("event_id", "free", "said"), [(3, 2, "1 to 4 (seal 1)"), (10, 11, "9 to 12 (seal 3)")])
def test_an_event_that_moves_into_a_gap_is_named(
    services: Services,
    tamper: Tamper,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    event_id: int,
    free: int,
    said: str,
) -> None:
    with_gaps(services, tamper, clock, monkeypatch)
    tamper(update(AuditEvent).where(AuditEvent.id == event_id).values(id=free))
    assert findings(services) == [f"events {said}: changed, exchanged or reordered"]


@pytest.mark.parametrize(("number", "one", "two"), [(1, 1, 2), (2, 14, 17), (3, 29, 30)])
def test_two_events_that_are_exchanged_are_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int, one: int, two: int
) -> None:
    swap_events(tamper, one, two)
    assert findings(services) == [f"{span(number)}: changed, exchanged or reordered"]


def test_two_events_that_are_exchanged_across_ranges_are_named_in_both(
    services: Services, thirty: list[Seal], tamper: Tamper
) -> None:
    swap_events(tamper, 10, 21)
    assert findings(services) == [f"{span(number)}: changed, exchanged or reordered" for number in (1, 3)]


def test_an_event_over_which_another_is_copied_is_named(services: Services, thirty: list[Seal], tamper: Tamper) -> None:
    tamper(delete(AuditEvent).where(AuditEvent.id == 15))
    tamper(insert(AuditEvent).values(copy_of(services, 14) | {"id": 15}))
    assert findings(services) == [f"{span(2)}: changed, exchanged or reordered"]


def test_an_event_that_is_inserted_late_after_the_last_seal_is_named_when_it_is_overdue(
    services: Services, thirty: list[Seal], tamper: Tamper
) -> None:
    tamper(insert(AuditEvent).values(copy_of(services, 1) | {"id": 40, "at": services.now() - timedelta(hours=1)}))
    [finding] = findings(services)
    assert finding.startswith("events 40 to 40: 1 are long due and under no seal")


@pytest.mark.parametrize("act", ["changed", "deleted"])
def test_events_after_the_last_seal_are_not_covered(
    services: Services, thirty: list[Seal], tamper: Tamper, act: str
) -> None:
    write(services, 2)
    if act == "changed":
        tamper(update(AuditEvent).where(AuditEvent.id == 31).values(event="login.completed"))
    else:
        tamper(delete(AuditEvent).where(AuditEvent.id == 31))
    assert findings(services) == []


SEAL_CHANGES: dict[str, Any] = {
    "number": 99,
    "kind": "prune",
    "first_id": 2,
    "last_id": 31,
    "count": 9,
    "events_digest": "ab" * 32,
    "previous": "cd" * 32,
    "sealed_at": datetime(2023, 11, 14, 22, 13, 20, 1, UTC),
    "key_id": "A" * 43,
    "signature": "A" * 86,
}


def test_each_column_of_a_seal_is_changed_here() -> None:
    assert set(SEAL_CHANGES) == {field.name for field in fields(Seal)} == set(SealRecord.__table__.columns.keys())


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("column", SEAL_CHANGES)
def test_a_seal_that_is_changed_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int, column: str
) -> None:
    tamper(update(SealRecord).where(SealRecord.number == number).values({column: SEAL_CHANGES[column]}))
    found = findings(services)
    named = SEAL_CHANGES["number"] if column == "number" else number
    assert f"seal {named} is not signed by a key of ours: changed or inserted" in found
    if column not in ("kind", "first_id", "last_id", "number"):
        assert seals_in(found) <= {number, number + 1}
        assert [it for it in found if it.startswith("events") and "changed" in it] == (
            [f"{span(number)}: changed, exchanged or reordered"] if column == "events_digest" else []
        )


@pytest.mark.parametrize("number", NUMBERS)
def test_a_seal_that_is_changed_together_with_its_event_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int
) -> None:
    fit_to_tampered_events(services, tamper, number)
    found = findings(services)
    assert found[0] == f"seal {number} is not signed by a key of ours: changed or inserted"
    assert (
        found[1:]
        == [f"seal {number + 1} does not follow the one before it: one of them is not what was made"][: 3 - number]
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_a_range_that_is_moved_below_the_end_of_the_one_before_is_named_readably(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int
) -> None:
    tamper(update(SealRecord).where(SealRecord.number == number).values(first_id=10 * number - 12))
    for finding in findings(services):
        for first, last in re.findall(r"events (-?\d+) to (-?\d+) are under no seal", finding):
            assert int(first) <= int(last), finding


@pytest.mark.parametrize("number", [1, 2])
def test_a_seal_that_is_deleted_is_named(services: Services, thirty: list[Seal], tamper: Tamper, number: int) -> None:
    tamper(delete(SealRecord).where(SealRecord.number == number))
    first, last = 10 * number - 9, 10 * number
    assert findings(services) == [f"seal {number} is missing", f"events {first} to {last} are under no seal"]


def test_several_seals_that_are_deleted_are_named(services: Services, thirty: list[Seal], tamper: Tamper) -> None:
    tamper(delete(SealRecord).where(SealRecord.number < 3))
    assert findings(services) == ["seals 1 to 2 are missing", "events 1 to 20 are under no seal"]


def test_the_newest_seal_that_is_deleted_is_named_when_its_events_are_overdue(
    services: Services, thirty: list[Seal], tamper: Tamper, clock: Clock
) -> None:
    tamper(delete(SealRecord).where(SealRecord.number == 3))
    clock.advance(OVERDUE - LAG)
    assert findings(services) == []  # it might just not have been made
    assert findings(services, thirty) == ["seal 3 was shipped, and is missing here or another one"]
    clock.advance(1)
    [finding] = findings(services)
    assert finding.startswith("events 21 to 30: 10 are long due and under no seal: the newest seals were removed")


def test_all_seals_that_are_deleted_are_named(
    services: Services, thirty: list[Seal], tamper: Tamper, clock: Clock
) -> None:
    tamper(delete(SealRecord))
    clock.advance(OVERDUE)
    [finding] = findings(services)
    assert finding.startswith("events 1 to 30: 30 are long due and under no seal")


def test_overdue_is_three_rounds_where_rounds_are_long(services: Services, clock: Clock) -> None:
    write(services, 1)
    with another(services, seal_seconds=3600) as seldom:
        clock.advance(3 * 3600 + LAG)
        assert findings(seldom) == []
        assert len(findings(services)) == 1
        clock.advance(1)
        assert len(findings(seldom)) == 1


@pytest.mark.parametrize("signer", ["nobody", "a foreign key", "a foreign key under our name"])
def test_a_seal_that_is_appended_by_somebody_else_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, signer: str
) -> None:
    write(services, 1)
    digest, count = digest_of(logged(services)[30:])
    forged = replace(thirty[2], number=4, first_id=31, last_id=31, count=count, events_digest=digest)
    tamper(insert(SealRecord).values(vars(forge(replace(forged, previous=thirty[2].digest), signer))))
    assert findings(services) == ["seal 4 is not signed by a key of ours: changed or inserted"]


@pytest.mark.parametrize("signer", ["nobody", "a foreign key", "a foreign key under our name"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_seal_that_is_made_anew_by_somebody_else_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, number: int, signer: str
) -> None:
    tamper(delete(SealRecord).where(SealRecord.number == number))
    tamper(insert(SealRecord).values(vars(forge(thirty[number - 1], signer))))
    found = findings(services)
    assert found[0] == f"seal {number} is not signed by a key of ours: changed or inserted"
    assert (
        found[1:]
        == [f"seal {number + 1} does not follow the one before it: one of them is not what was made"][: 3 - number]
    )


@pytest.mark.parametrize("number", [0, -1])
def test_a_seal_before_the_first_is_named(services: Services, thirty: list[Seal], tamper: Tamper, number: int) -> None:
    tamper(insert(SealRecord).values(vars(replace(thirty[0], number=number, previous="f" * 64))))
    assert [it for it in findings(services) if f"seal {number} " in it or "seals below 1" in it]


def test_a_forged_seal_does_not_keep_events_from_being_sealed(
    services: Services, thirty: list[Seal], tamper: Tamper, clock: Clock
) -> None:
    tamper(insert(SealRecord).values(vars(replace(thirty[0], number=0, previous="f" * 64, last_id=10**9))))
    write(services, 5)
    clock.advance(LAG)
    services.seals.seal()
    clock.advance(OVERDUE)
    assert [it for it in findings(services) if "events 31 to 35" in it] == []


def test_our_own_seal_under_another_number_is_named(services: Services, thirty: list[Seal], tamper: Tamper) -> None:
    tamper(insert(SealRecord).values(vars(replace(thirty[0], number=4, previous=thirty[2].digest))))
    assert "seal 4 is not signed by a key of ours: changed or inserted" in findings(services)


@pytest.mark.parametrize(("one", "two"), [(1, 2), (2, 3), (1, 3)])
def test_two_seals_that_are_exchanged_are_both_named(
    services: Services, thirty: list[Seal], tamper: Tamper, one: int, two: int
) -> None:
    for old, new in ((one, 99), (two, one), (99, two)):
        tamper(update(SealRecord).where(SealRecord.number == old).values(number=new))
    found = findings(services)
    for number in (one, two):
        assert f"seal {number} is not signed by a key of ours: changed or inserted" in found


def test_the_end_of_the_log_that_is_cut_off_with_its_seal_shows_in_what_was_shipped_alone(
    services: Services, thirty: list[Seal], tamper: Tamper, clock: Clock
) -> None:
    tamper(delete(SealRecord).where(SealRecord.number == 3))
    tamper(delete(AuditEvent).where(AuditEvent.id > 20))
    clock.advance(OVERDUE)
    assert findings(services) == []
    assert findings(services, thirty) == ["seal 3 was shipped, and is missing here or another one"]


def test_a_log_that_is_emptied_shows_in_what_was_shipped_alone(
    services: Services, thirty: list[Seal], tamper: Tamper
) -> None:
    tamper(delete(SealRecord))
    tamper(delete(AuditEvent))
    assert findings(services) == []
    assert findings(services, thirty) == [
        f"seal {number} was shipped, and is missing here or another one" for number in NUMBERS
    ]


def test_a_chain_that_is_written_anew_with_our_key_shows_in_what_was_shipped_alone(
    services: Services, thirty: list[Seal], tamper: Tamper
) -> None:
    tamper(update(AuditEvent).where(AuditEvent.id == 15).values(event="login.completed"))
    tamper(delete(SealRecord).where(SealRecord.number > 1))
    services.seals.seal()
    assert findings(services) == []
    assert findings(services, thirty) == [
        f"seal {number} was shipped, and is missing here or another one" for number in (2, 3)
    ]


def test_the_beginning_of_the_log_that_is_cut_off_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper
) -> None:
    tamper(delete(SealRecord).where(SealRecord.number == 1))
    tamper(delete(AuditEvent).where(AuditEvent.id <= 10))
    assert findings(services) == ["seal 1 is missing", "events 1 to 10 are under no seal"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_shipped_seal_that_is_not_ours_is_named_and_nothing_else(
    services: Services, thirty: list[Seal], number: int
) -> None:
    kept = [replace(it, count=11) if it.number == number else it for it in thirty]
    assert findings(services, kept) == [f"shipped seal {number} is not signed by a key of ours"]


def test_every_tampering_is_named_where_there_are_many(services: Services, thirty: list[Seal], tamper: Tamper) -> None:
    tamper(delete(AuditEvent).where(AuditEvent.id == 1))
    tamper(update(AuditEvent).where(AuditEvent.id == 30).values(address="::1"))
    assert findings(services) == [
        f"{span(1)}: 10 were sealed, 9 are there",
        f"{span(3)}: changed, exchanged or reordered",
    ]


@on_sqlite
@pytest.mark.parametrize(
    "change", ["at = 'yesterday'", "at = 5", "detail = '{'", "detail = x'ff'", "event = x'00'", "event = x'ff'"]
)
def test_an_event_that_can_no_longer_be_read_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, change: str
) -> None:
    tamper(text(f"UPDATE mfa_events SET {change} WHERE id = 15"))
    [finding] = findings(services)
    assert finding.startswith(span(2))


@on_sqlite
@pytest.mark.parametrize(
    "change", ["sealed_at = 'yesterday'", "first_id = 'x'", "last_id = 'x'", "count = 'x'", "signature = x'ff'"]
)
def test_a_seal_that_can_no_longer_be_read_is_named(
    services: Services, thirty: list[Seal], tamper: Tamper, change: str
) -> None:
    tamper(text(f"UPDATE mfa_seals SET {change} WHERE number = 2"))
    assert [it for it in findings(services) if "seal 2" in it]


# ── pruning ──────────────────────────────────────────────────────────────────────────────────────


def test_whole_ranges_that_are_older_go_and_verifying_is_content(
    services: Services, aged: list[Seal], rows: Rows
) -> None:
    assert prune(services) == [10, 10]
    assert [row["id"] for row in rows("SELECT id FROM mfa_events ORDER BY id")] == [*range(21, 31), 31]
    assert findings(services) == []
    assert findings(services, aged) == []


def test_pruning_leaves_a_signed_record_and_an_event(services: Services, aged: list[Seal], rows: Rows) -> None:
    prune(services)
    record = stored(services)[-1]
    assert (record.number, record.kind, record.last_id, record.previous) == (4, "prune", 20, aged[2].digest)
    assert services.seals.chain.keys.is_genuine(record)
    [row] = rows("SELECT * FROM mfa_events WHERE event = 'audit.pruned'")
    detail = json.loads(row["detail"]) if isinstance(row["detail"], str) else row["detail"]
    assert detail == {"through": 20, "seal": 4}
    assert row["request_id"] == CLIENT.request_id


def test_the_chain_goes_on_after_pruning(services: Services, aged: list[Seal], clock: Clock) -> None:
    prune(services)
    write(services, 4)
    clock.advance(LAG)
    assert [(seal.number, seal.first_id, seal.last_id) for seal in services.seals.seal()] == [(5, 31, 35)]
    clock.advance(10 * 86_400)
    assert prune(services) == [10, 5]
    assert findings(services) == []
    assert_one_chain(services)


def test_a_range_with_one_event_that_is_younger_stays_whole(
    services: Services, thirty: list[Seal], clock: Clock, rows: Rows
) -> None:
    clock.advance(3600 - LAG)
    assert prune(services, timedelta(hours=1)) == []
    clock.advance(1)
    assert prune(services, timedelta(hours=1)) == [10, 10, 10]


def test_a_range_in_which_a_younger_event_stands_first_stays_and_so_do_those_after_it(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 5)
    write(services, 7)
    write(services, 1, at=services.now() + timedelta(hours=2))
    write(services, 7)
    clock.advance(LAG)
    assert len(services.seals.seal()) == 3
    clock.advance(3600)
    assert prune(services, timedelta(hours=1)) == [5]
    assert findings(services) == []


def test_where_nothing_is_old_enough_nothing_happens(services: Services, thirty: list[Seal], rows: Rows) -> None:
    before = everything(rows)
    assert prune(services) == []
    assert everything(rows) == before


def test_what_was_never_sealed_is_never_pruned(services: Services, clock: Clock, rows: Rows) -> None:
    write(services, 5)
    clock.advance(365 * 86_400)
    assert prune(services) == []
    assert len(rows("SELECT id FROM mfa_events")) == 5


def test_pruning_again_prunes_nothing_and_says_nothing(services: Services, aged: list[Seal], rows: Rows) -> None:
    prune(services)
    before = everything(rows)
    assert prune(services) == []
    assert everything(rows) == before


@pytest.mark.parametrize(("event_id", "number"), [(1, 1), (10, 1), (15, 2)])
def test_an_event_that_is_put_back_into_a_pruned_range_is_named(
    services: Services, aged: list[Seal], tamper: Tamper, event_id: int, number: int
) -> None:
    was = copy_of(services, event_id)
    prune(services)
    tamper(insert(AuditEvent).values(was))
    assert findings(services) == [f"{span(number)} were pruned, and 1 are there: inserted"]


@pytest.mark.parametrize("signer", ["nobody", "a foreign key", "a foreign key under our name"])
def test_a_forged_record_excuses_nothing(
    services: Services, aged: list[Seal], tamper: Tamper, signer: str, rows: Rows
) -> None:
    digest, count = digest_of([])
    record = replace(
        aged[2], number=4, kind="prune", first_id=1, last_id=10, count=count, events_digest=digest,
        previous=aged[2].digest,
    )  # fmt: skip
    tamper(insert(SealRecord).values(vars(forge(record, signer))))
    tamper(delete(AuditEvent).where(AuditEvent.id <= 10))
    assert findings(services) == [
        f"{span(1)}: 10 were sealed, 0 are there",
        "seal 4 is not signed by a key of ours: changed or inserted",
    ]


def test_the_record_that_is_removed_leaves_a_hole_that_is_named(
    services: Services, aged: list[Seal], tamper: Tamper
) -> None:
    prune(services)
    tamper(delete(SealRecord).where(SealRecord.number == 4))
    assert findings(services) == [f"{span(number)}: 10 were sealed, 0 are there" for number in (1, 2)]


@pytest.mark.parametrize(
    ("number", "act"),
    [
        *((1, act) for act in ("changed", "deleted", "reordered", "emptied", "fitted", "seal changed", "seal removed")),
        *((2, act) for act in ("changed", "deleted", "reordered", "emptied", "fitted", "seal changed")),
    ],
)
def test_what_was_tampered_with_is_not_pruned(
    services: Services, aged: list[Seal], tamper: Tamper, rows: Rows, act: str, number: int
) -> None:
    {
        "changed": lambda: tamper(update(AuditEvent).where(AuditEvent.id == 10 * number).values(address="::1")),
        "deleted": lambda: tamper(delete(AuditEvent).where(AuditEvent.id == 10 * number)),
        "reordered": lambda: swap_events(tamper, 10 * number, 10 * number - 1),
        "emptied": lambda: tamper(delete(AuditEvent).where(AuditEvent.id.between(10 * number - 9, 10 * number))),
        "fitted": lambda: fit_to_tampered_events(services, tamper, number),
        "seal changed": lambda: tamper(update(SealRecord).where(SealRecord.number == number).values(key_id="A" * 43)),
        "seal removed": lambda: tamper(delete(SealRecord).where(SealRecord.number == number)),
    }[act]()
    before = everything(rows)
    with pytest.raises(ConfigurationError, match="nothing is pruned"):
        prune(services)
    assert everything(rows) == before


def test_a_forged_seal_does_not_make_what_was_never_sealed_go(
    services: Services, aged: list[Seal], tamper: Tamper, rows: Rows
) -> None:
    write(services, 3, at=services.now() - timedelta(days=30))
    digest, count = digest_of(logged(services)[30:])
    forged = replace(aged[2], number=4, first_id=31, last_id=33, count=count, events_digest=digest, signature="")
    tamper(update(AuditEvent).where(AuditEvent.id.between(21, 30)).values(at=services.now() - timedelta(days=30)))
    digest, count = digest_of(logged(services)[20:30])
    tamper(update(SealRecord).where(SealRecord.number == 3).values(events_digest=digest))
    tamper(insert(SealRecord).values(vars(replace(forged, previous="e" * 64))))
    with pytest.raises(ConfigurationError, match="nothing is pruned"):
        prune(services)
    assert len(rows("SELECT id FROM mfa_events")) == 33


def test_tampering_with_what_stays_does_not_keep_the_rest_from_going(
    services: Services, aged: list[Seal], tamper: Tamper
) -> None:
    tamper(update(AuditEvent).where(AuditEvent.id == 25).values(address="::1"))
    assert prune(services) == [10, 10]
    assert findings(services) == [f"{span(3)}: changed, exchanged or reordered"]


def test_a_pruning_that_was_cut_short_is_completed_by_the_next(
    services: Services, aged: list[Seal], rows: Rows
) -> None:
    next(pruning := services.seals.prune(timedelta(days=7), CLIENT))
    pruning.close()
    assert findings(services) == [
        f"{span(2)} were pruned, and 10 are there: pruning runs, or was cut short: run it again"
    ]
    assert prune(services) == [10]
    assert findings(services) == []
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'audit.pruned'")) == 1
    assert len([seal for seal in stored(services) if seal.kind == "prune"]) == 1


@pytest.mark.parametrize("looked_at", [0, 1, 2])
def test_pruning_while_somebody_verifies_is_no_tampering(services: Services, aged: list[Seal], looked_at: int) -> None:
    verifying = services.seals.verify()
    found = [next(verifying) for _ in range(looked_at)]
    assert prune(services) == [10, 10]
    found += verifying
    assert [progress.findings for progress in found] == [()] * len(found)


def test_tampering_is_named_though_somebody_prunes_meanwhile(
    services: Services, aged: list[Seal], tamper: Tamper
) -> None:
    tamper(delete(AuditEvent).where(AuditEvent.id == 25))
    verifying = services.seals.verify()
    next(verifying)
    prune(services)
    assert [finding for progress in verifying for finding in progress.findings] == [
        f"{span(3)}: 10 were sealed, 9 are there"
    ]


def test_what_was_put_into_a_pruned_range_is_evidence_and_stays(
    services: Services, aged: list[Seal], rows: Rows, tamper: Tamper
) -> None:
    copies = [copy_of(services, number) for number in (13, 17)]
    prune(services)
    tamper(insert(AuditEvent), copies)
    with pytest.raises(ConfigurationError, match="10 were sealed, 2 are there"):
        prune(services)
    assert len(rows("SELECT id FROM mfa_events WHERE id IN (13, 17)")) == 2


def test_without_a_key_nothing_is_pruned(services: Services, aged: list[Seal], rows: Rows, tmp_path: Path) -> None:
    before = everything(rows)
    with another(services, seal_keys=tmp_path) as keyless, pytest.raises(ConfigurationError):
        prune(keyless)
    assert everything(rows) == before


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


def test_seals_come_in_pages_newest_first(services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "MAX_EVENTS", 1)
    write(services, 101)
    clock.advance(LAG)
    made = services.seals.seal()
    first, cursor = services.seals.chain.page(None)
    second, following = services.seals.chain.page(cursor)
    third, end = services.seals.chain.page(following)
    assert [len(first), len(second), len(third)] == [50, 50, 1]
    assert end is None
    assert first + second + third == made[::-1]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1e3", "9" * 30, "٣", "1; DROP TABLE"])
def test_a_cursor_that_can_not_be_read_leads_nowhere(services: Services, thirty: list[Seal], cursor: str) -> None:
    assert services.seals.chain.page(cursor) == ([], None)


# ── a running service ────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
def test_a_running_service_seals_by_itself(serve: Callable[..., str], rows: Rows, services: Services) -> None:
    old = datetime.fromtimestamp(time.time() - 3600, UTC)
    write(services, 3, at=old)
    serve(MFA_SEAL_SECONDS=1)  # and asks /healthz until it answers: the first request starts the timer
    wait_for(lambda: rows("SELECT number FROM mfa_seals"))
    assert rows("SELECT number, first_id, last_id, count FROM mfa_seals") == [
        {"number": 1, "first_id": 1, "last_id": 3, "count": 3}
    ]
    write(services, 2, at=old)
    wait_for(lambda: len(rows("SELECT number FROM mfa_seals")) == 2)
    assert findings(services) == []


@pytest.mark.services
def test_several_workers_seal_one_chain(serve: Callable[..., str], rows: Rows, services: Services, redis: str) -> None:
    address = serve(workers=3, MFA_SEAL_SECONDS=1, MFA_REDIS_URL=redis)
    ask_often(address)
    for count in (5, 10, 15):
        write(services, 5, at=datetime.fromtimestamp(time.time() - 3600, UTC))
        wait_for(lambda count=count: rows("SELECT sum(count) AS sealed FROM mfa_seals")[0]["sealed"] == count)
    assert_one_chain(services)


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def thirty(services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[Seal]:
    """Thirty events under three seals."""
    monkeypatch.setattr(seals, "MAX_EVENTS", 10)
    write(services, 30)
    clock.advance(LAG)
    made = services.seals.seal()
    assert len(made) == 3
    return made


@pytest.fixture
def aged(services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[Seal]:
    """Two ranges of ten events each that are ten days old, and one of today."""
    monkeypatch.setattr(seals, "MAX_EVENTS", 10)
    write(services, 20)
    clock.advance(10 * 86_400)
    write(services, 10)
    clock.advance(LAG)
    made = services.seals.seal()
    assert len(made) == 3
    return made


@pytest.fixture
def tamper(database: str) -> Iterator[Tamper]:
    """Change the log as somebody does who owns the database."""
    engine = create_engine(database)

    def run(statement: Executable, values: list[dict[str, Any]] | None = None) -> None:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(statement, values)

    yield run
    engine.dispose()


def write(services: Services, count: int, at: datetime | None = None) -> None:
    """So many events, all of them different."""
    row = {"at": at or services.now(), "event": "session.refreshed", "user_id": "u", "actor": None}
    row |= {"address": "192.0.2.1", "user_agent": "tests é", "request_id": "request-1"}
    with services.engine.begin() as connection:
        connection.execute(insert(AuditEvent), [row | {"detail": {"n": number}} for number in range(count)])


def with_gaps(services: Services, tamper: Tamper, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges 1 to 4, 5 to 8 and 9 to 12, in each of which an id was never used, as after a rollback."""
    monkeypatch.setattr(seals, "MAX_EVENTS", 3)
    write(services, 12)
    tamper(delete(AuditEvent).where(AuditEvent.id.in_([2, 6, 11])))
    clock.advance(LAG)
    services.seals.seal()


def findings(services: Services, shipped: Sequence[Seal] = ()) -> list[str]:
    return [finding for progress in services.seals.verify(shipped) for finding in progress.findings]


def prune(services: Services, older_than: timedelta = timedelta(days=7)) -> list[int]:
    return list(services.seals.prune(older_than, CLIENT))


def stored(services: Services) -> list[Seal]:
    with services.engine.connect() as connection:
        table = SealRecord.__table__
        return [Seal(**row) for row in connection.execute(select(table).order_by(table.c.number)).mappings()]


def logged(services: Services) -> list[dict[str, Any]]:
    """Events in the form that is sealed."""
    with services.engine.connect() as connection:
        rows = connection.execute(select(AuditEvent.__table__).order_by(AuditEvent.id)).mappings()
        return [dict(row) | {"at": row["at"].isoformat(timespec="microseconds")} for row in rows]


def copy_of(services: Services, event_id: int) -> dict[str, Any]:
    with services.engine.connect() as connection:
        rows = connection.execute(select(AuditEvent.__table__).where(AuditEvent.id == event_id))
        return dict(rows.mappings().one())


def everything(rows: Rows) -> list[object]:
    return [rows(f"SELECT * FROM mfa_{table} ORDER BY 1") for table in ("events", "seals")]


def span(number: int) -> str:
    """How a finding begins that is about this range of ten."""
    return f"events {10 * number - 9} to {10 * number} (seal {number})"


def seals_in(found: list[str]) -> set[int]:
    return {int(number) for finding in found for number in re.findall(r"seal (-?\d+)", finding)}


def swap_events(tamper: Tamper, one: int, two: int) -> None:
    for old, new in ((one, 99), (two, one), (99, two)):
        tamper(update(AuditEvent).where(AuditEvent.id == old).values(id=new))


def fit_to_tampered_events(services: Services, tamper: Tamper, number: int) -> None:
    """Change an event, and the digest in its seal so that both agree."""
    tamper(update(AuditEvent).where(AuditEvent.id == 10 * number - 5).values(event="login.completed"))
    digest, _count = digest_of(logged(services)[10 * number - 10 : 10 * number])
    tamper(update(SealRecord).where(SealRecord.number == number).values(events_digest=digest))


def forge(seal: Seal, signer: str) -> Seal:
    if signer == "nobody":
        return replace(seal, signature="")
    signed = SealKeys(Ed25519PrivateKey.generate(), []).sign(seal)
    return replace(signed, key_id=seal.key_id) if signer.endswith("our name") else signed


def assert_one_chain(services: Services) -> None:
    """Numbers without a gap, each naming the one before it, ranges side by side, and nothing to find."""
    chain = stored(services)
    assert [seal.number for seal in chain] == list(range(1, len(chain) + 1))
    assert [seal.previous for seal in chain] == [GENESIS, *(seal.digest for seal in chain[:-1])]
    ranges = [(seal.first_id, seal.last_id) for seal in chain if seal.kind == "seal"]
    assert [first for first, _last in ranges] == [1, *(last + 1 for _first, last in ranges[:-1])]
    assert findings(services) == []


def shipped_in(path: Path) -> list[Seal]:
    return [Seal.from_json(line) for line in path.read_text().splitlines()]


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def ask_often(address: str) -> None:
    """Enough requests that each worker has had one."""

    for _ in range(60):
        urllib.request.urlopen(f"{address}/healthz", timeout=5).close()
