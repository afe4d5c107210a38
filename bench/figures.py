"""Each goal: how it is measured, and what counts as met."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import IO, cast

import jwt

from bench import floors, load
from bench.growth import Size, grow
from bench.servers import PASSWORD, WORKERS, Bench, memory_of
from mfa_service.crypto import libcrypt

STORM = 20
#: MiB that a worker may have in the end, and that it may have grown by in the second half.
MOST_MEMORY, GROWTH = 90, 2
#: Seconds until what was asked last is through, hashes above all.
PAUSE = 4
#: Hashing threads and places to wait of each process, as it is shipped and as it could be.
POOLS = ((1, 6), (1, 2), (1, 20), (2, 6))
#: Connections that log in at once, for the plot of what hashing allows.
STEPS = (1, 2, 4, 8, STORM)


@dataclass
class Figure:
    """One line of the report."""

    what: str
    goal: str
    measured: str
    is_met: bool
    detail: str


@dataclass(frozen=True)
class Effort:
    """How long to look."""

    rounds: int
    seconds: float
    storms: int
    storm_seconds: float
    mixed: int
    #: How many of each kind are asked for the medians of growth.
    asked: int
    users: tuple[int, ...]
    pools: tuple[tuple[int, int], ...]


QUICK = Effort(2, 2, 1, 3, 300, 15, (500, 5_000), POOLS[:1])
FULL = Effort(5, 5, 5, 30, 10_000, 100, (1_000, 100_000, 1_000_000), POOLS)


@dataclass
class Plots:
    """What the plots show, by database."""

    storm: dict[str, tuple[load.Answers, load.Answers]] = field(default_factory=dict)
    growth: dict[str, list[Size]] = field(default_factory=dict)
    hashing: dict[str, tuple[float, dict[int, float]]] = field(default_factory=dict)
    pools: list["Pool"] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """What a login storm comes to with so many threads and places to wait in each process."""

    threads: int
    queue: int
    #: Of what the cores can hash.
    logins: float
    refused: int
    #: Of the profile route beside it, in seconds.
    slowest: float


class Measures:
    """Everything that is measured of the service on one database."""

    def __init__(self, bench: Bench, name: str, effort: Effort, plots: Plots) -> None:
        self._bench, self._name, self._effort, self._plots = bench, name, effort, plots
        self._people = bench.add_people(STORM + 1)
        self._logins = [(username, PASSWORD) for username in bench.names[:STORM]]
        self._token = bench.sign_in(*self._people[0])
        self._by_hand = jwt.encode({"sub": self._people[0][0], "username": "ada"}, floors.SECRET)
        self._idle = self._bare_takes = 0.0

    def figures(self) -> Iterator[Figure]:
        yield self._start()
        yield from self._checks()
        if self._name == "SQLite":
            yield self._guard()
        with self._bench.service() as service:
            yield from self._verify(service)
            yield self._saturated(service)
            yield from self._storm(service)
            yield self._both_saturated(service)
        if self._name == "SQLite":
            self._plots.pools = [self._pool(*pool) for pool in self._effort.pools]
        with self._bench.service() as service:
            yield self._memory(service)

    def _start(self) -> Figure:
        took = [self._bench.seconds_to_start() for _ in range(self._effort.rounds)]
        met = median(took) <= 1.5
        return self._figure("start, until the first answer", "≤ 1.5 s", f"{median(took):.2f} s", met, took)

    def _checks(self) -> Iterator[Figure]:
        bench, seconds = self._bench, self._effort.seconds
        with bench.service() as service, bench.floor("with_select") as select, bench.floor("bare") as bare:
            runs = self._alternate(
                profile=lambda: load.throughput(f"{service}/api/profile", self._token, seconds),
                check=lambda: load.throughput(f"{service}/auth/check", self._token, seconds),
                select=lambda: load.throughput(f"{select}/api/profile", self._by_hand, seconds),
                bare=lambda: load.throughput(f"{bare}/api/profile", self._by_hand, seconds),
            )
            quarter = median(runs["bare"]) / 4
            self._bare_takes = load.at_rate(f"{bare}/api/profile", self._by_hand, quarter, seconds).busy
        self._idle = median(runs["profile"])
        yield self._ratio("`GET /api/profile`", runs, "profile", "select", 0.85)
        yield self._ratio("`GET /auth/check`", runs, "check", "select", 0.85)

    def _guard(self) -> Figure:
        bench, seconds = self._bench, self._effort.seconds
        with bench.service(), bench.floor("by_jwks") as guarded, bench.floor("by_hand") as floor:
            runs = self._alternate(
                guard=lambda: load.throughput(f"{guarded}/orders", self._token, seconds),
                by_hand=lambda: load.throughput(f"{floor}/orders", self._by_hand, seconds),
            )
        return self._ratio("a view under `require_mfa` by JWKS", runs, "guard", "by_hand", 0.90)

    def _verify(self, service: str) -> Iterator[Figure]:
        count = self._effort.rounds * 200
        people = self._bench.add_people(4 * count)
        load.each(service, self._bench.verify_bodies(people[:100]), "/auth/verify-mfa", None)  # warm
        fast = load.each(service, self._bench.verify_bodies(people[count : 2 * count]), "/auth/verify-mfa", None)
        rate = fast.rate(200)
        told = f"statuses {dict(fast.statuses)}"
        yield self._figure("`POST /auth/verify-mfa`", "≥ 200/s", f"{rate:,.0f}/s", rate >= 200, told)
        # Twice as many: one stall of a tenth of a second, by a checkpoint, is ten requests at this rate.
        half = load.each(service, self._bench.verify_bodies(people[2 * count :]), "/auth/verify-mfa", 100)
        slowest = half.percentile(0.99) * 1000
        told = f"p50 {half.percentile(0.5) * 1000:.1f} ms, statuses {dict(half.statuses)}"
        yield self._figure("the same at 100/s, p99", "< 25 ms", f"{slowest:.1f} ms", slowest < 25, told)

    def _saturated(self, service: str) -> Figure:
        seconds = self._effort.storm_seconds
        runs = self._alternate(
            bcrypt=lambda: floors.hashes_a_second(seconds / 2),
            logins=lambda: load.logins(service, self._logins, seconds / 2, STORM).rate(200),
        )
        floor, reached = median(runs["bcrypt"]), median(runs["logins"])
        told = f"{reached:.1f}/s against {floor:.1f} hashes/s, by rounds "
        told += ", ".join(f"{ours / its:.2f}" for its, ours in zip(runs["bcrypt"], runs["logins"], strict=True))
        own = floors.hashes_a_second(seconds / 2, compare=libcrypt.hashpw)
        told += f"; {reached / own:.2f} of the {own:.1f} that the service's own hashing reaches"
        by_step = {step: load.logins(service, self._logins, seconds / 3, step).rate(200) for step in STEPS[:-1]}
        self._plots.hashing[self._name] = floor, by_step | {STORM: reached}
        share = reached / floor
        return self._figure("logins under saturation", "≥ 0.95 × `bcrypt`", f"{share:.2f}", share >= 0.95, told)

    def _storm(self, service: str) -> Iterator[Figure]:
        rounds = [self._round(service) for _ in range(self._effort.storms)]
        typical = sorted(rounds, key=lambda each: each.times)[len(rounds) // 2]
        self._plots.storm[self._name] = typical.alone, typical.kept
        rate, share = median(each.rate for each in rounds), median(each.share for each in rounds)
        what = f"profile at {rate:,.0f}/s beside a login storm"
        yield self._figure(what, "≥ 0.99", f"{share:.2f}", share >= 0.99, [each.share for each in rounds])
        alone, beside = (answers.percentile(0.99) * 1000 for answers in (typical.alone, typical.kept))
        told = f"p99 {alone:.1f} ms alone, {beside:.1f} ms beside it; by rounds "
        told += ", ".join(f"{each.times:.1f}" for each in rounds)
        measured, is_met = f"{typical.times:.1f} ×", typical.times <= 2.5
        yield self._figure("its p99 against the same rate alone", "≤ 2.5 ×", measured, is_met, told)
        yield self._logins_of(rounds)
        refusals = [seconds for each in rounds for seconds in each.storm.refusals]
        slow, told = load.percentile(refusals, 0.99) * 1000, f"{len(refusals)} refused"
        yield self._figure("its refusals, p99", "< 50 ms", f"{slow:.1f} ms", slow < 50, told)

    def _round(self, service: str) -> "Round":
        seconds, profile = self._effort.storm_seconds, f"{service}/api/profile"
        time.sleep(PAUSE)
        floor = floors.hashes_a_second(seconds / 3)
        rate = load.throughput(profile, self._token, self._effort.seconds) / 4
        alone = load.at_rate(profile, self._token, rate, seconds / 2)
        with Beside(service, self._logins, seconds) as storm:
            kept = load.at_rate(profile, self._token, rate, seconds)
        return Round(floor, rate, alone, kept, storm)

    def _logins_of(self, rounds: list["Round"]) -> Figure:
        logins = median(each.logins for each in rounds)
        told = f"{median(each.storm.rate for each in rounds):.1f}/s, by rounds "
        told += ", ".join(f"{each.logins:.2f}" for each in rounds)
        told += f"; the rate beside it takes {median(each.alone.busy for each in rounds):.2f} of the cores"
        told += f" (`bare` at a quarter of its own: {self._bare_takes:.2f})"
        return self._figure("logins of the storm", "≥ 0.80 × `bcrypt`", f"{logins:.2f}", logins >= 0.80, told)

    def _both_saturated(self, service: str) -> Figure:
        seconds = self._effort.storm_seconds
        time.sleep(PAUSE)
        floor = floors.hashes_a_second(seconds / 2)
        with Beside(service, self._logins, seconds) as storm:
            profile = load.throughput(f"{service}/api/profile", self._token, seconds) / self._idle
        total, told = profile + storm.rate / floor, f"profile {profile:.2f} of idle, logins {storm.rate / floor:.2f}"
        return self._figure("both saturated, sum of shares", "≥ 0.85", f"{total:.2f}", total >= 0.85, told)

    def _pool(self, threads: int, queue: int) -> Pool:
        seconds, rate = self._effort.storm_seconds / 2, self._idle / 4
        settings = {"MFA_HASHING_THREADS": str(threads), "MFA_HASHING_QUEUE": str(queue)}
        floor = floors.hashes_a_second(seconds)
        with self._bench.service(**settings) as service:
            with Beside(service, self._logins, seconds) as storm:
                kept = load.at_rate(f"{service}/api/profile", self._token, rate, seconds)
            time.sleep(PAUSE)
        return Pool(threads, queue, storm.rate / floor, len(storm.refusals), kept.percentile(0.99))

    def _memory(self, service: str) -> Figure:
        count = self._effort.mixed
        self._mixed(service, count)
        before = max(each.proportional for each in memory_of(service)[:WORKERS])
        self._mixed(service, count)
        after = memory_of(service)[:WORKERS]
        most, resident = max(each.proportional for each in after), max(each.resident for each in after)
        told = f"{before} MiB after {count:,} requests, {most} after {2 * count:,} (PSS: what processes share is"
        told += f" counted once); RSS {resident} MiB"
        is_met = most <= MOST_MEMORY and most - before <= GROWTH
        return self._figure("memory of a worker", "≤ 90 MiB, flat", f"{most} MiB", is_met, told)

    def _mixed(self, service: str, count: int) -> None:
        """What a day brings, from eight connections: mostly checks, some sign-ins, a few new accounts and mistakes."""
        share = self._bench.add_people(count // 20)
        signing_in = self._bench.verify_bodies(share)

        def work(number: int) -> None:
            caller = load.Caller(service)
            for turn in range(number, count, 8):
                kind = turn % 20
                if kind == 0 and turn // 20 < len(signing_in):
                    caller.ask("POST", "/auth/verify-mfa", signing_in[turn // 20])
                elif kind == 1 and turn % 500 == 1:
                    caller.ask("POST", "/auth/register", self._bench.newcomer())
                elif kind == 2:
                    caller.ask("POST", "/auth/verify-mfa", {"tempToken": "no", "totpCode": "000000"})
                else:
                    path = "/auth/check" if kind % 3 else "/api/sessions" if kind == 3 else "/api/profile"
                    caller.ask("GET", path, token=self._token)

        load.together(work, 8)

    def _alternate(self, **measures: Callable[[], float]) -> dict[str, list[float]]:
        """Each measure in turn, round after round, so that whatever else the machine does hits all of them."""
        runs: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(self._effort.rounds):
            for name, measure in measures.items():
                runs[name].append(measure())
        return runs

    def _ratio(self, what: str, runs: dict[str, list[float]], ours: str, floor: str, goal: float) -> Figure:
        ratio = median(runs[ours]) / median(runs[floor])
        detail = f"{_spread(runs[ours])} /s against {_spread(runs[floor])} /s"
        return self._figure(what, f"≥ {goal} × `{floor}`", f"{ratio:.2f} × `{floor}`", ratio >= goal, detail)

    def _figure(self, what: str, goal: str, measured: str, is_met: bool, detail: object) -> Figure:
        if isinstance(detail, list):
            detail = ", ".join(f"{each:.2f}" for each in detail)
        return Figure(f"{what}, {self._name}", goal, measured, bool(is_met), str(detail))


class Beside:
    """Logins in another process, so that their clients share no interpreter with those of the profile."""

    def __init__(self, address: str, people: list[tuple[str, str]], seconds: float) -> None:
        self._arguments = [address, str(seconds), *(username for username, _ in people)]
        self.rate, self.refusals = 0.0, list[float]()

    def __enter__(self) -> "Beside":
        command = [sys.executable, "-m", "bench.storm", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # What starting it costs is not the storm's.
        cast("IO[str]", self._process.stdout).readline()
        return self

    def __exit__(self, *_: object) -> None:
        told, _ = self._process.communicate(timeout=120)
        self.rate, self.refusals = json.loads(told)


@dataclass(frozen=True)
class Round:
    """One look at a login storm, with what it is compared with from just before."""

    #: Hashes a second, and a quarter of the requests that the profile route reaches alone.
    floor: float
    rate: float
    alone: load.Answers
    kept: load.Answers
    storm: Beside

    @property
    def share(self) -> float:
        """Of the rate, what was answered."""
        return self.kept.rate(200) / self.rate

    @property
    def times(self) -> float:
        """How much longer the slowest hundredth takes."""
        return self.kept.percentile(0.99) / max(self.alone.percentile(0.99), 1e-9)

    @property
    def logins(self) -> float:
        """Of what the cores can hash."""
        return self.storm.rate / self.floor


def of_growth(bench: Bench, name: str, effort: Effort, plots: Plots) -> Iterator[Figure]:
    """How much longer everything takes with the most rows than with the fewest."""
    sizes = plots.growth[name] = list(grow(bench, list(effort.users), effort.asked))
    fewest, most = sizes[0], sizes[-1]
    for what, seconds in most.took.items():
        ratio = seconds / fewest.took[what]
        told = ", ".join(f"{size.took[what] * 1000:.1f} ms at {size.users:,}" for size in sizes)
        title = f"p50 of {what}, {fewest.users:,} to {most.users:,} users, {name}"
        yield Figure(title, "≤ 1.3 ×", f"{ratio:.2f} ×", ratio <= 1.3, told)


def _spread(values: list[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
