"""Administration: each act is on record, the last administrator stays, and nothing happens to anybody else."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import InvalidRequest, InvalidToken, LastAdministrator, MFAError, NotFound, RoleRequired
from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from mfa_service.services.audit import ClientInfo, Event
from mfa_service.services.policy import Deadline, Rules
from tests.administrators import administrator, everything, id_of, refusal
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    another,
    at_once,
    ensure_refused,
    is_live,
    log_in,
    outcome_of,
    register,
    sign_in,
    totp,
    user_id_of,
    verify,
)

Act = Callable[[Services, By, str], object]

ACTS: dict[str, Act] = {
    "change": lambda services, by, user_id: services.administration.change(by, user_id, Changes(roles=("staff",))),
    "require": lambda services, by, user_id: services.administration.change(by, user_id, Changes(mfa_required=True)),
    "disable": lambda services, by, user_id: services.administration.disable(by, user_id),
    "enable": lambda services, by, user_id: services.administration.enable(by, user_id),
    "delete": lambda services, by, user_id: services.administration.delete(by, user_id),
    "reset": lambda services, by, user_id: services.administration.reset_factors(by, user_id),
    "unlock": lambda services, by, user_id: services.administration.unlock(by, user_id),
    "end sessions": lambda services, by, user_id: services.administration.end_sessions(by, user_id),
}
WITHOUT_TARGET: dict[str, Callable[[Services, By], object]] = {
    "policy": lambda services, by: services.administration.set_policy(by, Rules("optional")),
    "export": lambda services, by: services.administration.record_export(by, Event.AUDIT_EXPORTED, {}),
}

# ── on record ────────────────────────────────────────────────────────────────────────────────────


def test_roles_are_recorded_as_they_were_and_as_they_are(services: Services, root: By, ada: str, rows: Rows) -> None:
    services.administration.change(root, ada, Changes(roles=("staff", "finance")))
    services.administration.change(root, ada, Changes(roles=("staff",)))
    first, second = recorded(rows, "roles.changed", ada)
    assert first == (actor_of(root), {"reason": "because", "before": [], "after": ["finance", "staff"]})
    assert second == (actor_of(root), {"reason": "because", "before": ["finance", "staff"], "after": ["staff"]})


def test_a_requirement_is_recorded_as_it_was_and_as_it_is(services: Services, root: By, ada: str, rows: Rows) -> None:
    for changes in (Changes(mfa_required=True, deadline=Deadline(days=7)), Changes(mfa_required=True)):
        services.administration.change(root, ada, changes)
    services.administration.change(root, ada, Changes(mfa_required=False))
    found = [(detail["before"], detail["after"]) for _, detail in recorded(rows, "requirement.changed", ada)]
    assert found == [("not required", {"days": 7}), ({"days": 7}, "at once"), ("at once", "not required")]


def test_a_policy_is_recorded_as_it_was_and_as_it_is(services: Services, root: By, rows: Rows) -> None:
    services.administration.set_policy(root, Rules("optional", roles={"staff": Deadline(days=3)}))
    [(actor, detail)] = recorded(rows, "policy.changed", None)
    assert (actor, detail["reason"]) == (actor_of(root), "because")
    assert detail["before"] == {"mode": "required", "deadline": None, "roles": {}}
    assert detail["after"] == {"mode": "optional", "deadline": None, "roles": {"staff": {"days": 3}}}


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("disable", "user.disabled"),
        ("delete", "user.deleted"),
        ("reset", "factor.removed"),
        ("unlock", "user.unlocked"),
        ("end sessions", "sessions.ended"),
    ],
)
def test_each_act_is_recorded_with_who_did_it_to_whom_and_why(
    services: Services, root: By, ada: str, rows: Rows, name: str, event: str
) -> None:
    ACTS[name](services, root, ada)
    [(actor, detail)] = recorded(rows, event, ada)
    assert (actor, detail["reason"]) == (actor_of(root), "because")
    assert name != "delete" or detail["before"]["roles"] == []


def test_enabling_is_recorded_with_who_did_it(services: Services, root: By, ada: str, rows: Rows) -> None:
    services.administration.disable(root, ada)
    services.administration.enable(root, ada)
    assert recorded(rows, "user.enabled", ada) == [(actor_of(root), {"reason": "because"})]


def test_roles_that_are_given_at_the_same_time_are_all_given(services: Services, ada: str) -> None:
    with another(services) as replica:
        for number in range(6):
            given = [f"a{number}", f"b{number}", f"c{number}", f"d{number}"]
            outcomes = at_once(
                4,
                lambda place, given=given: (services, replica)[place % 2].administration.change(
                    By(ClientInfo()), ada, Changes(adds_role=given[place])
                ),
            )
            assert outcomes == [None] * 4
            assert set(given) <= set(services.directory.show(ada).entry.roles)


def test_changes_of_the_policy_at_the_same_time_are_all_made(services: Services) -> None:
    def enforce(place: int) -> None:
        by = By(ClientInfo())
        services.administration.change_policy(
            by, lambda rules: replace(rules, roles={**rules.roles, f"r{place}": Deadline()})
        )

    assert at_once(5, enforce) == [None] * 5
    assert set(services.policy.show().roles) == {f"r{place}" for place in range(5)}


@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
def test_the_very_first_ones_are_kept_though_neither_saw_the_other(services: Services) -> None:
    both_have_looked = threading.Barrier(2, timeout=10)

    def enforce(place: int) -> None:
        looks = iter([both_have_looked.wait])

        def change(rules: Rules) -> Rules:
            next(looks, lambda: 0)()  # the first time only
            return replace(rules, roles={**rules.roles, f"r{place}": Deadline()})

        services.administration.change_policy(By(ClientInfo()), change)

    assert at_once(2, enforce) == [None] * 2
    assert set(services.policy.show().roles) == {"r0", "r1"}


def test_an_administrator_who_has_not_enrolled_is_no_other_one(services: Services, root: By, rows: Rows) -> None:
    register(services, "bob")
    me, bob = actor_of(root), user_id_of(rows, "bob")
    rows("UPDATE mfa_secrets SET confirmed_at = created_at WHERE user_id = :me", me=me)
    services.administration.change(root, bob, Changes(adds_role="admin"))
    ensure_refused(LastAdministrator, lambda: services.administration.change(root, me, Changes(removes_role="admin")))


def test_the_operator_is_named(services: Services, ada: str, rows: Rows) -> None:
    services.administration.unlock(By(ClientInfo(actor="cli:grace")), ada)
    assert recorded(rows, "user.unlocked", ada) == [("cli:grace", {"reason": ""})]


def test_what_changes_nothing_is_not_recorded(services: Services, root: By, ada: str, rows: Rows) -> None:
    services.administration.change(root, ada, Changes(roles=("staff",), disabled=False, mfa_required=True))
    before = rows("SELECT count(*) AS n FROM mfa_events")
    services.administration.change(root, ada, Changes())
    services.administration.change(root, ada, Changes(roles=("staff",), disabled=False, mfa_required=True))
    assert rows("SELECT count(*) AS n FROM mfa_events") == before


def test_no_ticket_is_on_record(services: Services, root: By, ada: str, rows: Rows) -> None:
    ticket = services.administration.reset_factors(root, ada)
    assert ticket not in str(rows("SELECT * FROM mfa_events"))
    assert ticket not in str(everything(rows))


# ── the last administrator ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["change", "disable", "delete", "reset"])
def test_the_last_administrator_cant_be_taken_away(services: Services, root: By, rows: Rows, name: str) -> None:
    user_id, before = actor_of(root), everything(rows)
    ensure_refused(LastAdministrator, lambda: ACTS[name](services, root, user_id))
    assert everything(rows) == before


@pytest.mark.parametrize("name", ["change", "disable", "delete"])
def test_nor_by_the_operator(services: Services, root: By, rows: Rows, name: str) -> None:
    before = everything(rows)
    ensure_refused(LastAdministrator, lambda: ACTS[name](services, By(CLIENT), actor_of(root)))
    assert everything(rows) == before


def test_the_operator_alone_resets_the_last_one(services: Services, root: By) -> None:
    assert services.administration.reset_factors(By(CLIENT, reason="lost phone"), actor_of(root))


@pytest.mark.parametrize("name", ["change", "disable", "delete"])
def test_a_disabled_administrator_is_not_the_other_one(services: Services, root: By, rows: Rows, name: str) -> None:
    second = promoted(services, rows, "second")
    services.administration.disable(root, second)
    ensure_refused(LastAdministrator, lambda: ACTS[name](services, root, actor_of(root)))


@pytest.mark.parametrize("name", ["change", "disable", "delete", "reset"])
def test_with_another_one_an_administrator_can_go(services: Services, root: By, rows: Rows, name: str) -> None:
    promoted(services, rows, "second")
    ACTS[name](services, root, actor_of(root))


def test_the_last_one_may_get_more_roles(services: Services, root: By, rows: Rows) -> None:
    services.administration.change(root, actor_of(root), Changes(roles=("admin", "staff")))
    assert len(rows("SELECT * FROM mfa_user_roles")) == 2


@pytest.mark.parametrize("name", ["change", "disable", "delete"])
def test_of_two_that_take_each_other_away_at_the_same_time_one_stays(
    services: Services, root: By, rows: Rows, name: str
) -> None:
    first = actor_of(root)
    for number in range(6):
        second = promoted(services, rows, f"second{number}")
        pair = [(by_of(services, first), second), (by_of(services, second), first)]

        def act(number: int, pair: list[tuple[By, str]] = pair) -> object:
            with another(services) as worker:
                return outcome_of(lambda: ACTS[name](worker, *pair[number]))

        outcomes = at_once(2, act)
        assert sum(isinstance(outcome, InvalidToken | RoleRequired) for outcome in outcomes) == 1, outcomes
        assert count_administrators(rows) == 1
        found = rows(
            "SELECT r.user_id FROM mfa_user_roles r JOIN mfa_users u ON u.id = r.user_id "
            "WHERE r.role = 'admin' AND u.disabled_at IS NULL"
        )
        first = str(found[0]["user_id"])


def test_of_many_that_step_down_at_the_same_time_one_stays(services: Services, root: By, rows: Rows) -> None:
    ids = [actor_of(root), *(promoted(services, rows, f"number{n}") for n in range(4))]
    for _ in range(2):
        for user_id in ids:
            services.administration.change(By(CLIENT), user_id, Changes(roles=("admin",)))
        acts = [by_of(services, user_id) for user_id in ids]

        def act(number: int, acts: list[By] = acts) -> object:
            with another(services) as worker:
                return outcome_of(lambda: ACTS["change"](worker, acts[number], ids[number]))

        outcomes = at_once(len(ids), act)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [LastAdministrator]
        assert count_administrators(rows) == 1


def test_over_http_the_last_administrator_is_409(client: FlaskClient, clock: Clock) -> None:
    headers = administrator(client, clock())
    path = f"/api/admin/users/{id_of(client, 'root')}"
    for method, tail, body in (
        ("PATCH", "", {"roles": []}),
        ("PATCH", "", {"disabled": True}),
        ("DELETE", "", {}),
        ("POST", "/reset-mfa", {"reason": "lost"}),
    ):
        answer = client.open(path + tail, method=method, json=body, headers=headers)
        assert refusal(answer) == (409, "last_administrator")


# ── between guard and unit ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ACTS)
def test_who_has_lost_the_role_meanwhile_is_refused(
    services: Services, root: By, ada: str, rows: Rows, name: str
) -> None:
    promoted(services, rows, "second")
    services.administration.change(By(CLIENT), actor_of(root), Changes(roles=()))
    refused_without_a_trace(services, rows, RoleRequired, lambda: ACTS[name](services, root, ada))


@pytest.mark.parametrize("end", ["session", "disable", "delete"])
@pytest.mark.parametrize("name", ACTS)
def test_whose_session_has_ended_meanwhile_is_refused(
    services: Services, root: By, ada: str, rows: Rows, name: str, end: str
) -> None:
    promoted(services, rows, "second")
    {"session": ACTS["end sessions"], "disable": ACTS["disable"], "delete": ACTS["delete"]}[end](
        services, By(CLIENT), actor_of(root)
    )
    refused_without_a_trace(services, rows, InvalidToken, lambda: ACTS[name](services, root, ada))


@pytest.mark.parametrize("name", WITHOUT_TARGET)
def test_so_it_is_for_what_is_about_nobody(services: Services, root: By, rows: Rows, name: str) -> None:
    promoted(services, rows, "second")
    services.administration.change(By(CLIENT), actor_of(root), Changes(roles=()))
    refused_without_a_trace(services, rows, RoleRequired, lambda: WITHOUT_TARGET[name](services, root))
    services.administration.end_sessions(By(CLIENT), actor_of(root))
    refused_without_a_trace(services, rows, InvalidToken, lambda: WITHOUT_TARGET[name](services, root))


@pytest.mark.parametrize("name", ACTS)
def test_whose_session_it_is_counts_not_just_that_it_lives(
    services: Services, root: By, ada: str, rows: Rows, name: str
) -> None:
    theirs = acting(services, ada)
    stolen = By(root.client, Identity(actor_of(root), "root", theirs.session_id, 0, ("pwd", "otp", "mfa")), "because")
    refused_without_a_trace(services, rows, InvalidToken, lambda: ACTS[name](services, stolen, ada))


# ── what is done, and to whom ────────────────────────────────────────────────────────────────────


def test_unlocking_brings_a_disabled_factor_back(services: Services, root: By, rows: Rows, clock: Clock) -> None:
    bob = register(services, "bob")
    sign_in(services, bob)
    fail(services, bob, clock, 100)
    clock.advance(3600)
    ensure_code_refused(services, bob)
    services.administration.unlock(by_of(services, actor_of(root)), user_id_of(rows, "bob"))
    assert sign_in(services, bob)
    assert rows("SELECT * FROM mfa_locks") == []


def test_unlocking_opens_a_delayed_password(services: Services, root: By, rows: Rows) -> None:
    bob = register(services, "bob")
    for _ in range(8):
        outcome_of(lambda: services.login.begin("bob", "wrong-password", CLIENT))
    assert isinstance(outcome_of(lambda: log_in(services, bob)), MFAError)
    services.administration.unlock(root, user_id_of(rows, "bob"))
    assert log_in(services, bob)


def test_unlocking_ends_nothing(services: Services, root: By, rows: Rows) -> None:
    bob = register(services, "bob")
    signed_in, pending = sign_in(services, bob), log_in(services, bob)
    services.administration.unlock(root, user_id_of(rows, "bob"))
    assert is_live(services, signed_in)
    assert verify(services, pending, bob, steps=1)


@pytest.mark.parametrize("name", ACTS)
def test_nothing_happens_to_anybody_else(services: Services, root: By, ada: str, rows: Rows, name: str) -> None:
    bob = register(services, "bob")
    sign_in(services, bob)
    log_in(services, bob)
    outcome_of(lambda: services.login.begin("bob", "wrong-password", CLIENT))
    outsiders = (user_id_of(rows, "bob"), actor_of(root))
    before = about(rows, outsiders)
    assert before["mfa_locks"] != [] != before["mfa_challenges"]
    ACTS[name](services, root, ada)
    assert about(rows, outsiders) == before


@pytest.mark.parametrize("name", ACTS)
def test_nobody_is_not_found(services: Services, root: By, ada: str, rows: Rows, name: str) -> None:
    for user_id in ("", "x" * 22, "ada", "%"):
        refused_without_a_trace(services, rows, NotFound, lambda it=user_id: ACTS[name](services, root, it))


@pytest.mark.parametrize("role", ["", "Admin", "ad min", "x" * 33, "admin\n", "ädmin", "admin:x", "аdmin"])
def test_what_is_no_name_of_a_role_is_refused(services: Services, root: By, ada: str, rows: Rows, role: str) -> None:
    rules = Rules("optional", roles={role: Deadline()})
    for act in (
        lambda: services.administration.change(root, ada, Changes(roles=("staff", role))),
        lambda: services.administration.set_policy(root, rules),
    ):
        refused_without_a_trace(services, rows, InvalidRequest, act)


def test_one_change_that_is_refused_takes_the_others_along(services: Services, root: By, rows: Rows) -> None:
    changes = Changes(roles=("admin", "staff"), disabled=True, mfa_required=True)
    refused_without_a_trace(
        services, rows, LastAdministrator, lambda: services.administration.change(root, actor_of(root), changes)
    )


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(services: Services, rows: Rows) -> By:
    """The administrator, in a live session."""
    return by_of(services, promoted(services, rows, "root"))


@pytest.fixture
def ada(services: Services, rows: Rows) -> str:
    """The id of somebody who is signed in."""
    sign_in(services, register(services, "ada"))
    return user_id_of(rows, "ada")


def promoted(services: Services, rows: Rows, username: str) -> str:
    register(services, username)
    user_id = user_id_of(rows, username)
    services.administration.change(By(CLIENT), user_id, Changes(roles=("admin",)))
    return user_id


def by_of(services: Services, user_id: str) -> By:
    client = ClientInfo("192.0.2.9", "192.0.2.9", "console", "request-9", actor=user_id)
    return By(client, acting(services, user_id), "because")


def actor_of(by: By) -> str:
    assert by.identity
    return by.identity.user_id


def recorded(rows: Rows, event: str, user_id: str | None) -> list[tuple[str | None, dict[str, Any]]]:
    """Who did it, and what else is on record, oldest first."""
    found = rows("SELECT user_id, actor, detail FROM mfa_events WHERE event = :event ORDER BY id", event=event)
    details = [(row["user_id"], row["actor"], row["detail"]) for row in found]
    read = [(whom, actor, json.loads(it) if isinstance(it, str) else it) for whom, actor, it in details]
    return [(actor, detail) for whom, actor, detail in read if whom == user_id]


def refused_without_a_trace(services: Services, rows: Rows, kind: type[MFAError], act: Callable[[], object]) -> None:
    before, recorded_before = everything(rows), rows("SELECT count(*) AS n FROM mfa_events")
    ensure_refused(kind, act)
    assert everything(rows) == before
    assert rows("SELECT count(*) AS n FROM mfa_events") == recorded_before


def count_administrators(rows: Rows) -> int:
    held = "SELECT r.user_id FROM mfa_user_roles r JOIN mfa_users u ON u.id = r.user_id WHERE r.role = 'admin'"
    return len(rows(f"{held} AND u.disabled_at IS NULL"))


def about(rows: Rows, user_ids: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """All rows that are about these users."""
    return {
        table: [row for row in found if row.get("user_id", row.get("id")) in user_ids]
        for table, found in everything(rows).items()
    }


def fail(services: Services, person: Person, clock: Clock, times: int) -> None:
    """So many wrong codes in a row, each after its delay."""
    for _ in range(times):
        ensure_code_refused(services, person)
        clock.advance(901)


def ensure_code_refused(services: Services, person: Person) -> None:
    pending = log_in(services, person)
    assert isinstance(outcome_of(lambda: services.login.complete(pending, totp("000000"), CLIENT)), MFAError)
