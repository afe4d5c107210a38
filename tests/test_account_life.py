"""An account's life in any order: after every step the invariants hold, and every answer is the one foreseen.

The model below knows the rules by itself and asks the service nothing. It foresees the refusal of each call, or that
there is none; then the invariants compare what it remembers with what the database and the tokens say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import (
    FactorExists,
    InvalidCode,
    InvalidCredentials,
    InvalidPendingToken,
    InvalidRecoveryCode,
    InvalidRefreshToken,
    InvalidToken,
    MFAError,
    NothingToConfirm,
    RefreshReused,
)
from mfa_service.models import Lock, TOTPSecret, User
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo
from mfa_service.services.factors import Proof
from mfa_service.services.login import MFAPending, Remember, SignedIn
from tests.conftest import Clock
from tests.factories import totp

Refusal = type[MFAError]
T = TypeVar("T")

HOME = ClientInfo("192.0.2.1", "192.0.2.1", "at home", "request-1")
ABROAD = ClientInfo("198.51.100.7", "198.51.100.7", "abroad", "request-2")
PASSWORDS = ("analytical-engine-1843", "difference-engine-1822")
WRONG_PASSWORD = "no-engine-at-all-1791"
START = 1_700_000_000.0
WINDOW, ATTEMPTS, FRESH, GRACE, ENROLLING = 2, 5, 300, 10, 600
PENDING, ACCESS, IDLE, LIFETIME, DEVICE = 300, 3600, 86_400, 30 * 86_400, 30 * 86_400
DAY = 86_400

INFINITE = float("inf")

_numbers = count(1)


# ── what the model remembers ─────────────────────────────────────────────────────────────────────


@dataclass
class Counter:
    """Failures in a row."""

    failures: int
    failed_at: float
    open_at: float | None = None
    is_disabled: bool = False


@dataclass
class Authenticator:
    """A secret, when it is wiped unless a code has confirmed it, and the last step that it was used at."""

    secret: str
    expires_at: float = INFINITE
    last_step: int = -1


@dataclass
class Waiting:
    """A pending token."""

    token: str
    expires_at: float
    attempts: int = 0
    is_closed: bool = False


@dataclass
class Stay:
    """A session, with every refresh token that it ever gave."""

    id: str
    refresh_tokens: list[str]
    amr: tuple[str, ...]
    authenticated_at: float
    started_at: float
    refreshed_at: float
    rotated_at: float | None = None
    is_ended: bool = False


@dataclass
class Pass:
    """An access token."""

    token: str
    stay: Stay
    expires_at: float
    amr: tuple[str, ...]
    authenticated_at: float


@dataclass
class Remembered:
    """A device token."""

    token: str
    expires_at: float
    is_forgotten: bool = False


@dataclass
class Life:
    """All that is true of one account."""

    clock: Clock
    user_id: str = ""
    password: str = PASSWORDS[0]
    is_disabled: bool = False
    had_factor: bool = False
    confirmed: Authenticator | None = None
    unconfirmed: Authenticator | None = None
    recovery_codes: set[str] = field(default_factory=set)
    dead_codes: list[str] = field(default_factory=list)
    counters: dict[str, Counter] = field(default_factory=dict)

    # Tokens of former accounts of the name stay in these lists: dead for ever.
    waiting: list[Waiting] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    devices: list[Remembered] = field(default_factory=list)

    # ── lockout ──

    def lets_through(self, subject: str) -> bool:
        found = self.counters.get(subject)
        return not found or not (found.is_disabled or (found.open_at or 0) > self.clock())

    def failed(self, subject: str) -> bool:
        """Count a failure, and say whether a delay follows."""
        counter = self.counters.setdefault(subject, Counter(0, 0))
        counter.failures, counter.failed_at = counter.failures + 1, self.clock()
        first_delay = 101 if subject in ("password", "trusted_password") else 5
        if counter.failures < first_delay:
            return False
        counter.open_at = self.clock() + min(2 ** (counter.failures - first_delay), 900)
        counter.is_disabled = counter.is_disabled or (counter.failures == 100 and subject in ("totp", "recovery_codes"))
        return True

    def passed(self, *subjects: str) -> None:
        for subject in subjects:
            self.counters.pop(subject, None)

    # ── proofs ──

    def judge_password(self, password: str, client: ClientInfo, *, is_trusted: bool = False) -> Refusal | None:
        subjects = [f"password:{client.network}", "trusted_password" if is_trusted else "password"]
        if self.is_disabled or not all(map(self.lets_through, subjects)):
            return InvalidCredentials
        if password != self.password:
            for subject in subjects:
                self.failed(subject)
            return InvalidCredentials
        self.passed(*subjects)
        return None

    def judge_proof(self, proof: Proof) -> Refusal | None:
        if proof.method == "totp":
            self.wipe_expired()
            return self._judge_code(self.confirmed or self.unconfirmed, proof.value)
        return self._judge_recovery_code(proof.value)

    def _judge_recovery_code(self, code: str) -> Refusal | None:
        if not self.lets_through("recovery_codes"):
            return InvalidRecoveryCode
        if code not in self.recovery_codes:
            self._failed_factor("recovery_codes")
            return InvalidRecoveryCode
        self.recovery_codes.remove(code)
        self.dead_codes.append(code)
        self.passed("recovery_codes")
        if "totp" in self.counters and self.counters["totp"].is_disabled:
            self.passed("totp")
        return None

    def _judge_code(self, authenticator: Authenticator | None, code: str) -> Refusal | None:
        if not self.lets_through("totp"):
            return InvalidCode
        step = self.step_of(authenticator, code)
        if authenticator is None or step is None or step <= authenticator.last_step:
            self._failed_factor("totp")
            return InvalidCode
        authenticator.last_step = step
        self.passed("totp")
        return None

    def judge_replacement(self, code: str) -> Refusal | None:
        self.wipe_expired()
        return self._judge_code(self.unconfirmed, code) if self.unconfirmed else NothingToConfirm

    def wipe_expired(self) -> None:
        if self.unconfirmed and self.unconfirmed.expires_at <= self.clock():
            self.unconfirmed = None

    def step_of(self, authenticator: Authenticator | None, code: str) -> int | None:
        if authenticator is None:
            return None
        now = self.step()
        steps = range(now - WINDOW, now + WINDOW + 1)
        return max((step for step in steps if totp(authenticator.secret, step) == code), default=None)

    def step(self) -> int:
        return int(self.clock()) // 30

    def _failed_factor(self, subject: str) -> None:
        if self.failed(subject):
            self.close_waiting()

    # ── what lives ──

    def is_open(self, waiting: Waiting) -> bool:
        return not waiting.is_closed and waiting.attempts < ATTEMPTS and waiting.expires_at > self.clock()

    def is_live(self, stay: Stay) -> bool:
        now = self.clock()
        is_fresh = stay.started_at + LIFETIME > now and stay.refreshed_at > now - IDLE
        return not stay.is_ended and not self.is_disabled and is_fresh

    def is_good(self, access: Pass) -> bool:
        return access.expires_at > self.clock() and self.is_live(access.stay)

    def is_known(self, device: Remembered) -> bool:
        return not device.is_forgotten and device.expires_at > self.clock()

    def is_recent(self, access: Pass) -> bool:
        return "mfa" in access.amr and access.authenticated_at > self.clock() - FRESH

    # ── what ends it ──

    def close_waiting(self) -> None:
        for waiting in self.waiting:
            waiting.is_closed = True

    def forget_devices(self) -> None:
        for device in self.devices:
            device.is_forgotten = True

    def end_stays(self, *, keep: Stay | None = None) -> None:
        for stay in self.stays:
            stay.is_ended = stay.is_ended or stay is not keep

    def end_trust(self, *, keep: Stay | None = None) -> None:
        self.end_stays(keep=keep)
        self.forget_devices()
        self.close_waiting()

    def kill_codes(self) -> None:
        self.dead_codes += self.recovery_codes
        self.recovery_codes = set()

    def prune(self) -> None:
        day_ago = self.clock() - DAY
        old = [name for name, counter in self.counters.items() if ":" in name and counter.failed_at < day_ago]
        self.passed(*old)


# ── the machine ──────────────────────────────────────────────────────────────────────────────────

#: Which of a list is meant, counted from the newest; 0 also means one that is dead.
newest = st.sampled_from([1, 2, 1, 3, 2, 0])
clients = st.sampled_from([HOME, HOME, ABROAD])
code_kinds = st.sampled_from(["right", "right", "right", "wrong", "replayed", "older", "early", "other", "letters"])
#: Past a delay, a grace, a step, a fresh factor, a replacement; and now and then past much more.
short_waits = st.sampled_from([1, 2, 9, 10, 11, 30, 30, 60, 150, 299, 300, 600, 900])
waits = st.one_of(short_waits, short_waits, st.sampled_from([ACCESS - 1, ACCESS, IDLE - 1, IDLE, 2 * IDLE, LIFETIME]))
recovery_kinds = st.sampled_from(["fresh", "fresh", "dead", "invented"])


class AccountLife(RuleBasedStateMachine):
    """Steps that anybody may take, in any order; some are right, many are not."""

    services: Services
    clock: Clock

    @initialize(is_in=st.booleans())
    def begin(self, is_in: bool) -> None:
        self.clock.now = START
        self.username = f"ada{next(_numbers)}"
        self.life = Life(self.clock)
        self.successors: dict[tuple[str, int], str] = {}
        self.used_steps: set[tuple[str, int]] = set()
        self.used_codes: set[str] = set()
        self.register()
        if is_in:
            self.sign_in(remember=True)

    def register(self) -> None:
        life = self.life
        enrolment = self.services.accounts.register(self.username, PASSWORDS[0], "ada@example.com", HOME)
        find = select(User.id).where(User.username == self.username)
        life.user_id = self.services.unit.run(lambda: self.services.session.scalars(find).one(), writes=False)
        life.password, life.unconfirmed = PASSWORDS[0], Authenticator(enrolment.secret)

    # ── signing in ──

    @rule(is_right=st.sampled_from([True, True, False]), client=clients, which=newest, with_device=st.booleans())
    def log_in(self, is_right: bool, client: ClientInfo, which: int, with_device: bool) -> None:
        life = self.life
        device = self.pick(life.devices, which, life.is_known) if with_device and life.devices else None
        is_trusted = device is not None and life.is_known(device)
        password = life.password if is_right else WRONG_PASSWORD
        expected = life.judge_password(password, client, is_trusted=is_trusted)
        token = device and device.token
        answer = self.call(expected, lambda: self.services.login.begin(self.username, password, client, token))
        if isinstance(answer, SignedIn):
            assert is_trusted
            self.came_in(answer, ("pwd",))
        elif isinstance(answer, MFAPending):
            assert not is_trusted
            assert bool(answer.methods) == bool(life.confirmed)
            life.waiting.append(Waiting(answer.token, self.clock() + PENDING))

    @precondition(lambda self: self.life.waiting)
    @rule(which=newest, kind=code_kinds, remember=st.booleans())
    def verify(self, which: int, kind: str, remember: bool) -> None:
        self.complete(self.some_waiting(which), self.totp_proof(kind), remember=remember)

    @precondition(lambda self: self.life.waiting and self.life.had_factor)
    @rule(which=newest, kind=recovery_kinds, remember=st.booleans())
    def verify_with_recovery_code(self, which: int, kind: str, remember: bool) -> None:
        self.complete(self.some_waiting(which), self.recovery_proof(kind), remember=remember)

    @rule(remember=st.booleans())
    def sign_in(self, remember: bool) -> None:
        """The usual way in one step and with patience, so that there is something to lose."""
        self.wait_until_let_in()
        self.log_in(is_right=True, client=HOME, which=0, with_device=False)
        self.complete(self.life.waiting[-1], self.totp_proof("right"), remember=remember)

    def wait_until_let_in(self) -> None:
        life = self.life
        if life.is_disabled:
            self.enable(is_on=True)
        life.wipe_expired()
        if not life.confirmed and not life.unconfirmed:
            self.delete_and_register_the_name_anew()
        if "totp" in life.counters and life.counters["totp"].is_disabled:
            self.reset_factors()
            self.delete_and_register_the_name_anew()
        opens = [counter.open_at or 0 for counter in life.counters.values()]
        last_step = life.confirmed.last_step if life.confirmed else 0
        self.clock.now = max([self.clock(), *opens, 30.0 * (last_step + 1 - WINDOW)])

    @precondition(lambda self: self.life.waiting)
    @rule(which=newest)
    def enrol(self, which: int) -> None:
        life, waiting = self.life, self.pick(self.life.waiting, which, self.life.is_open)
        expected = FactorExists if life.had_factor else None
        expected = expected if life.is_open(waiting) else InvalidPendingToken
        enrolment = self.call(expected, lambda: self.services.login.enrol(waiting.token, HOME))
        if enrolment:
            life.unconfirmed = Authenticator(enrolment.secret, self.clock() + ENROLLING)

    # ── being in ──

    @precondition(lambda self: self.life.stays)
    @rule(which=newest, age=st.sampled_from([0, 0, 1, 1, 2]), pause=st.sampled_from([0, 9, 10, 11]))
    def refresh(self, which: int, age: int, pause: int) -> None:
        """With the current token, the one it replaced, or an older one."""
        stay = self.pick(self.life.stays, which, self.life.is_live)
        while self.life.is_live(stay) and len(stay.refresh_tokens) <= age:
            self.show_refresh_token(stay, len(stay.refresh_tokens) - 1)
        self.clock.advance(pause)
        self.show_refresh_token(stay, max(0, len(stay.refresh_tokens) - 1 - age))

    def show_refresh_token(self, stay: Stay, generation: int) -> None:
        expected = self.judge_refresh(stay, generation)
        fresh = self.call(expected, lambda: self.services.login.refresh(stay.refresh_tokens[generation], HOME))
        if fresh:
            if generation == len(stay.refresh_tokens) - 1:
                stay.refreshed_at = stay.rotated_at = self.clock()
                stay.refresh_tokens.append(fresh.refresh_token)
            successor = self.successors.setdefault((stay.id, generation), fresh.refresh_token)
            assert fresh.refresh_token == successor == stay.refresh_tokens[-1]
            self.take_access(fresh.access_token, stay)

    def judge_refresh(self, stay: Stay, generation: int) -> Refusal | None:
        life, newest_generation = self.life, len(stay.refresh_tokens) - 1
        if not life.is_live(stay):
            return InvalidRefreshToken
        if generation == newest_generation:
            return None
        is_last = generation == newest_generation - 1
        if is_last and stay.rotated_at is not None and self.clock() < stay.rotated_at + GRACE:
            return None
        stay.is_ended = True
        return RefreshReused

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, kind=code_kinds)
    def step_up(self, which: int, kind: str) -> None:
        self.show_again(self.pick(self.life.passes, which, self.life.is_good), lambda: self.totp_proof(kind))

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, kind=recovery_kinds)
    def step_up_with_recovery_code(self, which: int, kind: str) -> None:
        self.show_again(self.pick(self.life.passes, which, self.life.is_good), lambda: self.recovery_proof(kind))

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, everywhere=st.booleans())
    def log_out(self, which: int, everywhere: bool) -> None:
        access = self.pick(self.life.passes, which, self.life.is_good)
        identity = self.admitted(access)
        if identity is None:
            return
        self.services.login.sign_out(identity, HOME, everywhere=everywhere)
        if everywhere:
            self.life.end_trust()
        access.stay.is_ended = True

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, is_right=st.booleans(), client=clients)
    def change_password(self, which: int, is_right: bool, client: ClientInfo) -> None:
        life, access = self.life, self.pick(self.life.passes, which, self.life.is_good)
        identity = self.admitted(access, is_recent=True)
        if identity is None:
            return
        current = life.password if is_right else WRONG_PASSWORD
        new = PASSWORDS[1 - PASSWORDS.index(life.password)]
        change = self.services.accounts.change_password
        expected = life.judge_password(current, client, is_trusted=True)
        self.call(expected, lambda: change(life.user_id, identity.session_id, current, new, client))
        if expected is None:
            life.password = new
            life.passed("password")
            life.end_trust(keep=access.stay)

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest)
    def renew_recovery_codes(self, which: int) -> None:
        identity = self.admitted(self.pick(self.life.passes, which, self.life.is_good), is_recent=True)
        if identity:
            codes = self.services.factors.renew_recovery_codes(identity, HOME)
            self.life.passed("recovery_codes")
            self.take_recovery_codes(codes)

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest)
    def begin_replacement(self, which: int) -> None:
        identity = self.admitted(self.pick(self.life.passes, which, self.life.is_good), is_recent=True)
        if identity:
            self.replace(identity)

    def replace(self, identity: Identity) -> None:
        enrolment = self.services.factors.replace(identity, HOME)
        self.life.unconfirmed = Authenticator(enrolment.secret, self.clock() + ENROLLING)

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, kind=code_kinds)
    def confirm_replacement(self, which: int, kind: str) -> None:
        life, access = self.life, self.pick(self.life.passes, which, self.life.is_good)
        identity = self.admitted(access, is_recent=True)
        if not identity:
            return
        if which > 1 and not life.unconfirmed:
            self.replace(identity)
        code = self.code(kind, life.unconfirmed, other=life.confirmed)
        new = life.unconfirmed
        expected = life.judge_replacement(code)
        self.call(expected, lambda: self.services.factors.confirm_replacement(identity, code, HOME))
        if expected is None:
            assert new is not None
            self.spend(new)
            life.confirmed, life.unconfirmed = new, None
            life.forget_devices()
            life.close_waiting()
            for stay in life.stays:
                stay.is_ended = stay.is_ended or "mfa" not in stay.amr

    @precondition(lambda self: any(map(self.life.is_good, self.life.passes)))
    @rule(which=newest, all_of_them=st.booleans(), data=st.data())
    def forget_device(self, which: int, all_of_them: bool, data: st.DataObject) -> None:
        life, access = self.life, self.pick(self.life.passes, which, self.life.is_good)
        if not self.admitted(access):
            return
        if all_of_them:
            self.services.devices.forget_own(life.user_id, HOME)
            life.forget_devices()
            return
        listed, _ = self.services.devices.list(life.user_id, None)
        if listed:
            gone = data.draw(st.sampled_from(listed))
            self.services.devices.forget(life.user_id, gone.id, HOME)
            for device in life.devices:
                device.is_forgotten = device.is_forgotten or not self.is_recognised(device)

    # ── what operators and time do ──

    @rule(what=st.sampled_from(["disable", "enable", "enable", "reset", "totp", "recovery_codes", "password", "", ""]))
    def operate(self, what: str) -> None:
        if what in ("disable", "enable"):
            self.enable(is_on=what == "enable")
        elif what == "reset" and self.life.confirmed:
            self.reset_factors()
        elif what in ("totp", "recovery_codes", "password") and self.life.had_factor:
            self.bring_near_its_end(what)

    def enable(self, *, is_on: bool) -> None:
        if is_on:
            self.services.administration.enable(By(HOME), self.life.user_id)
        else:
            self.services.administration.disable(By(HOME, reason="test"), self.life.user_id)
            self.life.end_trust()
        self.life.is_disabled = not is_on

    def reset_factors(self) -> None:
        life = self.life
        self.services.administration.reset_factors(By(HOME, reason="test"), life.user_id)
        life.confirmed = life.unconfirmed = None
        life.kill_codes()
        life.passed("totp", "recovery_codes")
        life.end_trust()

    def bring_near_its_end(self, subject: str) -> None:
        """Years of failures; tried one by one they take more than a day of the clock."""
        if subject not in self.life.counters:
            failures = 100 if subject == "password" else 98
            self.life.counters[subject] = Counter(failures, self.clock())
            values = {"failures": failures, "failed_at": datetime.fromtimestamp(self.clock(), UTC)}
            row = Lock(user_id=self.life.user_id, subject=subject, **values)
            self.services.unit.run(lambda: self.services.session.add(row), writes=True)

    @precondition(lambda self: self.life.had_factor and not self.life.confirmed)
    @rule()
    def delete_and_register_the_name_anew(self) -> None:
        life = self.life
        self.services.administration.delete(By(HOME, reason="test"), life.user_id)
        life.end_trust()
        life.counters.clear()
        life.is_disabled = life.had_factor = False
        self.register()

    @rule(seconds=waits)
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        if seconds > ACCESS:
            self.services.housekeeping.prune()
            self.life.prune()

    # ── what must be true after every step ──

    @invariant()
    def access_tokens_live_as_long_as_their_session(self) -> None:
        for access in self.life.passes[-6:]:
            assert (self.identity(access) is not None) == self.life.is_good(access)

    @invariant()
    def sessions_are_those_that_nothing_has_ended(self) -> None:
        listed, _ = self.services.sessions.list(self.life.user_id, None)
        assert {row.id for row in listed} == {stay.id for stay in self.life.stays if self.life.is_live(stay)}
        for stay in self.life.stays[-3:]:
            if not self.life.is_live(stay):
                self.call(
                    InvalidRefreshToken, lambda stay=stay: self.services.login.refresh(stay.refresh_tokens[-1], HOME)
                )

    @invariant()
    def pending_tokens_are_open_or_not(self) -> None:
        """Asked by enrolling, which refuses both for another reason and changes nothing."""
        for waiting in self.life.waiting[-3:]:
            is_open = self.life.is_open(waiting)
            if self.life.had_factor or not is_open:
                expected = FactorExists if is_open else InvalidPendingToken
                self.call(expected, lambda waiting=waiting: self.services.login.enrol(waiting.token, HOME))

    @invariant()
    def devices_are_those_that_nobody_forgot(self) -> None:
        for device in self.life.devices[-6:]:
            assert self.is_recognised(device) == self.life.is_known(device)
        listed, _ = self.services.devices.list(self.life.user_id, None)
        assert len(listed) == sum(map(self.life.is_known, self.life.devices))

    @invariant()
    def the_counters_are_what_was_tried(self) -> None:
        find = select(Lock).where(Lock.user_id == self.life.user_id)
        rows = self.services.unit.run(lambda: self.services.session.scalars(find).all(), writes=False)
        counted = {
            row.subject: (row.failures, row.open_at and row.open_at.timestamp(), row.disabled_at is not None)
            for row in rows
        }
        assert counted == {
            subject: (counter.failures, counter.open_at, counter.is_disabled)
            for subject, counter in self.life.counters.items()
        }

    @invariant()
    def there_is_one_confirmed_authenticator_at_most(self) -> None:
        find = select(TOTPSecret).where(TOTPSecret.user_id == self.life.user_id, TOTPSecret.confirmed_at.is_not(None))
        rows = self.services.unit.run(lambda: self.services.session.scalars(find).all(), writes=False)
        steps = [self.life.confirmed.last_step] if self.life.confirmed else []
        assert [row.last_step for row in rows] == steps

    @invariant()
    def recovery_codes_are_counted(self) -> None:
        summary = self.services.factors.summary(self.life.user_id)
        assert summary.recovery_codes_left == len(self.life.recovery_codes)
        codes = ("recovery_code",) if self.life.recovery_codes else ()
        assert summary.methods == (("totp", *codes) if self.life.confirmed else ())

    # ── acts that rules share ──

    def some_waiting(self, which: int) -> Waiting:
        """A pending token: mostly an open one, for which somebody logs in where there is none."""
        if which > 1 and not any(map(self.life.is_open, self.life.waiting)):
            self.log_in(is_right=True, client=HOME, which=0, with_device=False)
        return self.pick(self.life.waiting, which, self.life.is_open)

    def complete(self, waiting: Waiting, proof: Proof, *, remember: bool) -> None:
        life = self.life
        if life.is_open(waiting):
            waiting.attempts += 1
            expected = life.judge_proof(proof)
        else:
            expected = InvalidPendingToken
        wish = Remember("laptop") if remember else None
        answer = self.call(expected, lambda: self.services.login.complete(waiting.token, proof, HOME, wish))
        if answer is None:
            return
        waiting.is_closed = True
        amr = self.spent(proof)
        assert (answer.recovery_codes is not None) == (not life.confirmed)
        if answer.recovery_codes:
            life.confirmed, life.unconfirmed, life.had_factor = life.unconfirmed, None, True
            self.take_recovery_codes(answer.recovery_codes)
        left = len(life.recovery_codes)
        assert answer.recovery_codes_left == (left if left < 4 or proof.method == "recovery_code" else None)
        assert (answer.device_token is not None) == remember
        if answer.device_token:
            life.devices.append(Remembered(answer.device_token, self.clock() + DEVICE))
        self.came_in(answer, amr)

    def show_again(self, access: Pass, proof_of: Callable[[], Proof]) -> None:
        life, identity = self.life, self.admitted(access)
        if identity is None:
            return
        proof = proof_of()
        expected = life.judge_proof(proof)
        answer = self.call(expected, lambda: self.services.login.step_up(identity, proof, HOME))
        if answer:
            access.stay.amr, access.stay.authenticated_at = self.spent(proof), self.clock()
            self.take_access(answer.access_token, access.stay)

    def admitted(self, access: Pass, *, is_recent: bool = False) -> Identity | None:
        """Who a token speaks for, if the guard lets it pass."""
        identity = self.identity(access)
        if identity is None or (is_recent and not self.life.is_recent(access)):
            return None
        assert (identity.amr, identity.auth_time) == (access.amr, access.authenticated_at)
        return identity

    def identity(self, access: Pass) -> Identity | None:
        try:
            identity = self.services.verifier.access(access.token, now=self.clock())
        except InvalidToken:
            return None
        return identity if self.services.sessions.find_account(identity) else None

    def came_in(self, answer: SignedIn, amr: tuple[str, ...]) -> None:
        now = self.clock()
        session_id = answer.refresh_token.partition(".")[0]
        assert session_id not in {stay.id for stay in self.life.stays}
        stay = Stay(session_id, [answer.refresh_token], amr, now, now, now)
        self.life.stays.append(stay)
        self.take_access(answer.access_token, stay)

    def take_access(self, token: str, stay: Stay) -> None:
        access = Pass(token, stay, self.clock() + ACCESS, stay.amr, stay.authenticated_at)
        self.life.passes.append(access)
        assert self.admitted(access)

    def take_recovery_codes(self, codes: tuple[str, ...]) -> None:
        self.life.kill_codes()
        assert len(set(codes)) == 10
        self.life.recovery_codes = set(codes)

    def spent(self, proof: Proof) -> tuple[str, ...]:
        """Note that a proof was accepted, which may happen once; returns the `amr` of it."""
        if proof.method == "recovery_code":
            assert proof.value not in self.used_codes
            self.used_codes.add(proof.value)
            return ("pwd", "recovery", "mfa")
        authenticator = self.life.confirmed or self.life.unconfirmed
        assert authenticator is not None
        self.spend(authenticator)
        return ("pwd", "otp", "mfa")

    def spend(self, authenticator: Authenticator) -> None:
        use = (authenticator.secret, authenticator.last_step)
        assert use not in self.used_steps
        self.used_steps.add(use)

    def totp_proof(self, kind: str) -> Proof:
        life = self.life
        return Proof("totp", self.code(kind, life.confirmed or life.unconfirmed, other=life.unconfirmed))

    def code(self, kind: str, authenticator: Authenticator | None, *, other: Authenticator | None) -> str:
        now = self.life.step()
        authenticator = authenticator or Authenticator("A" * 32)
        if kind == "other" and other is not None:
            return totp(other.secret, now)
        last = authenticator.last_step if authenticator.last_step >= 0 else now - WINDOW - 1
        steps = {"right": max(now - WINDOW, last + 1), "replayed": last, "older": last - 1, "early": now + WINDOW + 1}
        if kind in steps:
            return totp(authenticator.secret, steps[kind])
        near = {totp(authenticator.secret, now + offset) for offset in range(-WINDOW, WINDOW + 1)}
        return (
            "letter" if kind == "letters" else next(code for code in map("{:06}".format, range(10)) if code not in near)
        )

    def recovery_proof(self, kind: str) -> Proof:
        codes = {"fresh": sorted(self.life.recovery_codes), "dead": self.life.dead_codes}.get(kind)
        return Proof("recovery_code", codes[-1] if codes else "0000-0000-0000-0000-0000-0000")

    def is_recognised(self, device: Remembered) -> bool:
        recognises = self.services.devices.recognises
        return self.services.unit.run(lambda: recognises(self.life.user_id, device.token), writes=False)

    def pick(self, things: list[T], which: int, is_alive: Callable[[T], bool]) -> T:
        """Mostly one that is alive: the dead ones are asked after every step."""
        alive = [thing for thing in things if is_alive(thing)]
        among = alive if alive and which else things
        return among[-1 - which % len(among)]

    def call(self, expected: Refusal | None, act: Callable[[], Any]) -> Any:
        """Run it; None where it was refused as foreseen. Any other refusal, or none, fails the test."""
        if expected is None:
            return act()
        with pytest.raises(MFAError) as refusal:
            act()
        assert refusal.type is expected
        return None


# ── the run ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def machine(services: Services, clock: Clock) -> type[AccountLife]:
    """The machine over this test's database."""
    return type("Machine", (AccountLife,), {"services": services, "clock": clock})


def test_an_account_s_life_in_any_order(machine: type[AccountLife]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=18 if machine.services.engine.dialect.name == "sqlite" else 10,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
