"""Rules and deadlines: from when somebody must have a second factor, said by Python and counted by SQL alike."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from mfa_service.services.directory import Compliance
from mfa_service.services.login import PasswordOnly
from mfa_service.services.policy import ALWAYS, Deadline, Mode, Preview, Rules
from tests.administrators import everything
from tests.conftest import Clock
from tests.factories import PASSWORD
from tests.services import CLIENT, Rows, register, user_id_of

DAY = 86_400
ROLES = ("staff", "finance", "sales", "ops")

# ── one rule ─────────────────────────────────────────────────────────────────────────────────────


def test_as_it_comes_everybody_must_at_once(services: Services, ada: str) -> None:
    assert deadline_of(services, ada) == ALWAYS
    assert is_due(services, ada)
    assert services.policy.show() == Rules("required")


def test_under_optional_nobody_must(services: Services, ada: str) -> None:
    set_policy(services, "optional")
    assert deadline_of(services, ada) is None
    assert not is_due(services, ada)


def test_a_rule_about_a_role_is_about_those_who_have_it(services: Services, ada: str, rows: Rows) -> None:
    register(services, "bob")
    set_policy(services, "optional", roles={"staff": Deadline()})
    assert is_due(services, ada)
    assert not is_due(services, user_id_of(rows, "bob"))


def test_a_role_that_only_looks_alike_is_another(services: Services, ada: str) -> None:
    set_policy(services, "optional", roles={"staf": Deadline(), "staff-": Deadline(), "sta_f": Deadline()})
    assert deadline_of(services, ada) is None


def test_a_rule_about_one_user_is_about_nobody_else(services: Services, ada: str, rows: Rows) -> None:
    register(services, "bob")
    set_policy(services, "optional")
    require(services, ada, Deadline())
    assert is_due(services, ada)
    assert not is_due(services, user_id_of(rows, "bob"))
    require(services, ada, None)
    assert not is_due(services, ada)


def test_a_date_is_that_date_whoever_logs_in(services: Services, ada: str, clock: Clock) -> None:
    end = services.now() + timedelta(seconds=100)
    set_policy(services, "required", Deadline(at=end))
    assert deadline_of(services, ada) == log_in(services) == end
    clock.advance(99)
    assert not is_due(services, ada)
    clock.advance(1)
    assert is_due(services, ada)


@pytest.mark.parametrize("about", ["everybody", "a role", "one user"])
def test_days_begin_with_the_first_login_and_no_later_one_moves_them(
    services: Services, ada: str, clock: Clock, about: str
) -> None:
    put(services, ada, about, Deadline(days=7))
    clock.advance(30 * DAY)
    assert not is_due(services, ada)
    end = services.now() + timedelta(days=7)
    for _ in range(7):
        assert log_in(services) == end == deadline_of(services, ada)
        clock.advance(DAY)
    assert is_due(services, ada)
    assert log_in(services) is None


@pytest.mark.parametrize("about", ["everybody", "a role", "one user"])
def test_looking_begins_nothing(services: Services, ada: str, clock: Clock, rows: Rows, about: str) -> None:
    put(services, ada, about, Deadline(days=7))
    before = everything(rows)
    for _ in range(3):
        clock.advance(DAY)
        assert deadline_of(services, ada) == services.now() + timedelta(days=7)
        services.directory.compliance()
        services.directory.show(ada)
        services.factors.summary(ada)
    assert everything(rows) == before


@pytest.mark.parametrize("about", ["everybody", "a role", "one user"])
def test_a_deadline_that_is_moved_keeps_the_days_that_have_begun(
    services: Services, ada: str, clock: Clock, about: str
) -> None:
    put(services, ada, about, Deadline(days=7))
    log_in(services)
    began = services.now()
    clock.advance(3 * DAY)
    put(services, ada, about, Deadline(days=10))
    assert log_in(services) == began + timedelta(days=10)
    put(services, ada, about, Deadline(days=2))
    assert is_due(services, ada)


@pytest.mark.parametrize("about", ["everybody", "a role", "one user"])
def test_a_rule_that_is_put_in_place_again_moves_nothing(
    services: Services, ada: str, clock: Clock, about: str
) -> None:
    put(services, ada, about, Deadline(days=7))
    end = log_in(services)
    clock.advance(3 * DAY)
    put(services, ada, about, Deadline(days=7))
    assert log_in(services) == end


@pytest.mark.parametrize("about", ["everybody", "a role", "one user"])
def test_a_rule_that_is_dropped_and_made_anew_starts_anew(
    services: Services, ada: str, clock: Clock, about: str
) -> None:
    put(services, ada, about, Deadline(days=7))
    log_in(services)
    clock.advance(6 * DAY)
    put(services, ada, about, None)
    assert log_in(services) is None
    clock.advance(1)
    put(services, ada, about, Deadline(days=7))
    assert log_in(services) == services.now() + timedelta(days=7)


# ── several rules ────────────────────────────────────────────────────────────────────────────────


def test_the_earliest_of_several_deadlines_counts(services: Services, ada: str, clock: Clock) -> None:
    now = services.now()
    set_policy(services, "required", Deadline(at=now + timedelta(days=9)), {"staff": Deadline(days=5)})
    assert log_in(services) == now + timedelta(days=5)
    require(services, ada, Deadline(at=now + timedelta(days=2)))
    assert log_in(services) == now + timedelta(days=2)
    set_policy(services, "required", Deadline(at=now + timedelta(days=1)), {"staff": Deadline(days=5)})
    assert log_in(services) == now + timedelta(days=1)


def test_an_easier_rule_eases_no_other(services: Services, ada: str) -> None:
    set_policy(services, "required", Deadline(), {"staff": Deadline(days=300)})
    require(services, ada, Deadline(days=300))
    assert is_due(services, ada)


# ── preview ──────────────────────────────────────────────────────────────────────────────────────


def test_a_preview_counts_exactly_and_changes_nothing(services: Services, ada: str, rows: Rows, clock: Clock) -> None:
    for name in ("bob", "eve", "sam"):
        register(services, name)
    services.administration.change(By(CLIENT), user_id_of(rows, "bob"), Changes(roles=("finance",)))
    set_policy(services, "optional", roles={"finance": Deadline(days=7)})
    before = everything(rows), rows("SELECT count(*) AS n FROM mfa_events")
    late = Rules("optional", roles={"staff": Deadline()})
    assert services.policy.preview(late) == Preview(4, required=1, late=1, newly_required=1, released=1)
    everybody = Rules("required", Deadline(at=services.now() + timedelta(days=1)), {"staff": Deadline()})
    assert services.policy.preview(everybody) == Preview(4, required=4, late=1, newly_required=3, released=0)
    assert services.policy.preview(Rules("optional")) == Preview(4, 0, 0, 0, released=1)
    assert (everything(rows), rows("SELECT count(*) AS n FROM mfa_events")) == before


# ── SQL and Python say the same ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_sql_and_python_agree_about_anybody_under_any_rules(
    services: Services, rows: Rows, clock: Clock, seed: int
) -> None:
    dice = random.Random(seed)
    roles = populate(services, rows, dice, 150)
    for _ in range(6):
        clock.advance(dice.choice((0, 1, DAY, 20 * DAY)))
        services.administration.set_policy(By(CLIENT), any_rules(dice, services.now()))
        for user_id in dice.sample(sorted(roles), 15):
            services.unit.run(
                lambda it=user_id: services.policy.require(it, dice.choice((None, any_deadline(dice, services.now())))),
                writes=True,
            )
        for user_id in dice.sample(sorted(roles), 40):
            services.unit.run(lambda it=user_id: services.policy.find_deadline(it, starts=True), writes=True)
        clock.advance(dice.choice((0, 1, 3 * DAY)))
        assert_agreement(services, roles)
        assert_preview_comes_true(services, rows, any_rules(dice, services.now()), roles)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services, rows: Rows) -> str:
    """The id of somebody with the role `staff`."""
    register(services, "ada")
    services.administration.change(By(CLIENT), user_id_of(rows, "ada"), Changes(roles=("staff",)))
    return user_id_of(rows, "ada")


def set_policy(
    services: Services, mode: Mode, deadline: Deadline | None = None, roles: Mapping[str, Deadline] | None = None
) -> None:
    services.administration.set_policy(By(CLIENT), Rules(mode, deadline or Deadline(), roles or {}))


def require(services: Services, user_id: str, deadline: Deadline | None) -> None:
    changes = Changes(mfa_required=deadline is not None, deadline=deadline or Deadline())
    services.administration.change(By(CLIENT), user_id, changes)


def put(services: Services, user_id: str, about: str, deadline: Deadline | None) -> None:
    """Make, move or drop a rule that is the only one."""
    if about == "everybody":
        set_policy(services, "optional" if deadline is None else "required", deadline)
    else:
        set_policy(services, "optional", roles={"staff": deadline} if deadline and about == "a role" else {})
    if about == "one user":
        require(services, user_id, deadline)


def log_in(services: Services) -> datetime | None:
    """Give ada's password; the deadline that login tells, or None where it tells none."""
    outcome = services.login.begin("ada", PASSWORD, CLIENT)
    return outcome.deadline if isinstance(outcome, PasswordOnly) else None


def deadline_of(services: Services, user_id: str) -> datetime | None:
    return services.unit.run(lambda: services.policy.find_deadline(user_id), writes=False)


def is_due(services: Services, user_id: str) -> bool:
    return services.unit.run(lambda: services.policy.is_due(user_id), writes=False)


def any_deadline(dice: random.Random, now: datetime) -> Deadline:
    at = now + timedelta(seconds=dice.choice((-DAY, -1, 0, 1, DAY)))
    return dice.choice((Deadline(), Deadline(at=at), Deadline(days=dice.choice((1, 3, 30)))))


def any_rules(dice: random.Random, now: datetime) -> Rules:
    about = dice.sample(ROLES, dice.randrange(len(ROLES)))
    mode: Mode = dice.choice(("optional", "optional", "required"))
    return Rules(mode, any_deadline(dice, now), {role: any_deadline(dice, now) for role in about})


def populate(services: Services, rows: Rows, dice: random.Random, count: int) -> dict[str, tuple[str, ...]]:
    """Users with any roles; some have a factor. By hand, because it is faster."""
    roles: dict[str, tuple[str, ...]] = {}
    at = datetime(2023, 1, 1, tzinfo=UTC)
    for number in range(count):
        user_id = f"user{number:018}"
        roles[user_id] = tuple(sorted(dice.sample(ROLES, dice.choice((0, 0, 1, 2)))))
        rows(
            "INSERT INTO mfa_users (id, username, username_key, email, email_key, sealed_password, password_set_at, "
            "created_at, seen_at) VALUES (:id, :id, :id, '', '', :sealed, :at, :at, :at)",
            id=user_id,
            sealed=b"",
            at=str(at),
        )
        for role in roles[user_id]:
            rows("INSERT INTO mfa_user_roles (user_id, role) VALUES (:id, :role)", id=user_id, role=role)
        if dice.random() < 0.2:
            rows(
                "INSERT INTO mfa_secrets (id, user_id, sealed_secret, last_step, created_at, confirmed_at) "
                "VALUES (:id, :id, :sealed, 0, :at, :at)",
                id=user_id,
                sealed=b"",
                at=str(at),
            )
    return roles


def assert_agreement(services: Services, roles: Mapping[str, tuple[str, ...]]) -> None:
    """One by one, all at once, counted by SQL and listed by SQL: the same."""
    many = services.unit.run(lambda: services.policy.find_deadlines(roles), writes=False)
    assert many == {user_id: at for user_id in roles if (at := deadline_of(services, user_id))}
    listed = {row.user_id: row for row in services.directory.whole_report(None)}
    assert set(listed) == set(roles)
    by_standing = {row.user_id: name for name in STANDINGS for row in services.directory.whole_report(name)}
    assert by_standing == {user_id: row.standing for user_id, row in listed.items()}
    standings = list(by_standing.values())
    counted = Compliance(len(roles), *(standings.count(name) for name in STANDINGS))
    assert services.directory.compliance() == counted
    for user_id, row in listed.items():
        if row.standing != "enrolled":
            is_late = user_id in many and many[user_id] <= services.now()
            assert row.standing == ("late" if is_late else "due" if user_id in many else "free")


def assert_preview_comes_true(
    services: Services, rows: Rows, rules: Rules, roles: Mapping[str, tuple[str, ...]]
) -> None:
    without = {row.user_id for row in services.directory.whole_report(None) if row.standing != "enrolled"}
    before = services.unit.run(lambda: set(services.policy.find_deadlines(roles)), writes=False) & without
    preview = services.policy.preview(rules)
    services.administration.set_policy(By(CLIENT), rules)
    after = services.unit.run(lambda: services.policy.find_deadlines(roles), writes=False)
    required = set(after) & without
    late = {user_id for user_id in required if after[user_id] <= services.now()}
    numbers = (len(without), len(required), len(late), len(required - before), len(before - required))
    assert preview == Preview(*numbers)


STANDINGS = ("enrolled", "late", "due", "free")
