"""`make bench`: measure every goal beside its floor, and write bench/REPORT.md.

Floor and service take turns, and what counts is the ratio of their medians: absolute figures say little on a shared
machine. A goal that is missed stands in the report as missed.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jwt

from bench import floors, load
from bench.servers import PASSWORD, THREADS, WORKERS, Bench, memory_of, postgresql, redis

REPORT = Path(__file__).parent / "REPORT.md"
STORM = 20
QUICK_BELOW = 5


@dataclass
class Figure:
    """One line of the report."""

    what: str
    goal: str
    measured: str
    is_met: bool
    detail: str


@dataclass
class Effort:
    """How long to look."""

    rounds: int
    seconds: float
    storm_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in about five minutes, with less certainty")
    effort = Effort(3, 3, 15) if parser.parse_args().quick else Effort(5, 8, 30)
    figures: list[Figure] = []
    with ExitStack() as stack:
        store = stack.enter_context(redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfa-bench-")))
        databases = {"SQLite": f"sqlite:///{folder}/mfa.db", "PostgreSQL": stack.enter_context(postgresql())}
        for name, database in databases.items():
            for figure in _figures(Bench(folder / name, database, store), name, effort):
                print(f"{figure.what}: {figure.measured} ({figure.goal})", flush=True)
                figures.append(figure)
    REPORT.write_text(_report(figures, effort))
    print(f"wrote {REPORT}")


def _figures(bench: Bench, name: str, effort: Effort) -> Iterator[Figure]:
    people = bench.add_people(40)
    token, by_hand = bench.sign_in(*people[0]), jwt.encode({"sub": people[0][0], "username": "ada"}, floors.SECRET)
    with bench.service() as service, bench.floor("with_select") as select, bench.floor("bare") as bare:
        runs = _alternate(
            effort,
            profile=lambda: load.throughput(f"{service}/api/profile", token, effort.seconds),
            check=lambda: load.throughput(f"{service}/auth/check", token, effort.seconds),
            select=lambda: load.throughput(f"{select}/api/profile", by_hand, effort.seconds),
            bare=lambda: load.throughput(f"{bare}/api/profile", by_hand, effort.seconds),
        )
        yield _ratio(f"`GET /api/profile`, {name}", runs, "profile", "select", 0.85)
        yield _ratio(f"`GET /auth/check`, {name}", runs, "check", "select", 0.85)
        yield _memory(service, name)
    if name == "SQLite":
        yield _guard(bench, token, by_hand, effort)
    with bench.service() as service:
        yield from _verify(bench, service, name, effort)
        yield from _storm(bench, service, token, statistics.median(runs["profile"]), name, effort)


def _alternate(effort: Effort, **measures: Callable[[], float]) -> dict[str, list[float]]:
    """Each measure in turn, round after round, so that whatever else the machine does hits all of them."""
    runs: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(effort.rounds):
        for name, measure in measures.items():
            runs[name].append(measure())
    return runs


def _ratio(what: str, runs: dict[str, list[float]], ours: str, floor: str, goal: float) -> Figure:
    ratio = statistics.median(runs[ours]) / statistics.median(runs[floor])
    detail = f"{_spread(runs[ours])} /s against {_spread(runs[floor])} /s"
    return Figure(what, f"≥ {goal} × `{floor}`", f"{ratio:.2f} × `{floor}`", ratio >= goal, detail)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _guard(bench: Bench, token: str, by_hand: str, effort: Effort) -> Figure:
    with bench.service(), bench.floor("by_jwks") as guarded, bench.floor("by_hand") as floor:
        runs = _alternate(
            effort,
            guard=lambda: load.throughput(f"{guarded}/orders", token, effort.seconds),
            by_hand=lambda: load.throughput(f"{floor}/orders", by_hand, effort.seconds),
        )
    return _ratio("a view under `require_mfa` by JWKS", runs, "guard", "by_hand", 0.90)


def _memory(service: str, name: str) -> Figure:
    workers = memory_of(service)[:WORKERS]
    told = ", ".join(f"{each:.0f}" for each in workers)
    return Figure(f"memory of a worker, {name}", "≤ 90 MiB", f"{max(workers):.0f} MiB", max(workers) <= 90, told)


def _verify(bench: Bench, service: str, name: str, effort: Effort) -> Iterator[Figure]:
    people = bench.add_people(3 * int(effort.rounds * 200))
    third = len(people) // 3
    fast = load.each(service, bench.verify_bodies(people[:third]), "/auth/verify-mfa", None)
    rate = fast.rate(200)
    yield Figure(
        f"`POST /auth/verify-mfa`, {name}", "≥ 200/s", f"{rate:,.0f}/s", rate >= 200, f"statuses {dict(fast.statuses)}"
    )
    half = load.each(service, bench.verify_bodies(people[third : 2 * third]), "/auth/verify-mfa", 100)
    slowest = half.percentile(0.99) * 1000
    told = f"p50 {half.percentile(0.5) * 1000:.1f} ms, statuses {dict(half.statuses)}"
    yield Figure(f"the same at 100/s, p99, {name}", "< 25 ms", f"{slowest:.1f} ms", slowest < 25, told)


def _storm(bench: Bench, service: str, token: str, idle: float, name: str, effort: Effort) -> Iterator[Figure]:
    people = [(name, PASSWORD) for name in bench.names[:STORM]]
    floor = floors.hashes_a_second(effort.storm_seconds / 2)
    saturated = load.logins(service, people, effort.storm_seconds, STORM)
    share = saturated.rate(200) / floor
    told = f"{saturated.rate(200):.1f}/s against {floor:.1f} hashes/s; {saturated.statuses[503]} refused"
    yield Figure(f"logins under saturation, {name}", "≥ 0.95 × `bcrypt`", f"{share:.2f}", share >= 0.95, told)
    rate = idle / 4
    alone = load.at_rate(service, "/api/profile", token, rate, effort.storm_seconds)
    with _Beside(bench, people, effort) as storm:
        kept = load.at_rate(service, "/api/profile", token, rate, effort.storm_seconds)
    yield from _storm_figures(name, rate, alone, kept, storm.result, floor)


class _Beside:
    """Logins in another process, so that their clients share no interpreter with those of the profile."""

    result: load.Answers

    def __init__(self, bench: Bench, people: list[tuple[str, str]], effort: Effort) -> None:
        self._arguments = [bench.address, str(effort.storm_seconds), *(username for username, _ in people)]

    def __enter__(self) -> "_Beside":
        command = [sys.executable, "-m", "bench.storm", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        told, _ = self._process.communicate(timeout=120)
        good, refused, lasted = (float(number) for number in told.split())
        self.result = load.Answers(lasted=lasted)
        self.result.statuses.update({200: int(good), 503: int(refused)})


def _storm_figures(
    name: str, rate: float, alone: load.Answers, kept: load.Answers, storm: load.Answers, floor: float
) -> Iterator[Figure]:
    share = kept.rate(200) / rate
    yield Figure(f"profile at {rate:,.0f}/s beside a login storm, {name}", "≥ 0.99", f"{share:.2f}", share >= 0.99, "")
    times = kept.percentile(0.99) / max(alone.percentile(0.99), 1e-9)
    told = f"p99 {alone.percentile(0.99) * 1000:.1f} ms alone, {kept.percentile(0.99) * 1000:.1f} ms beside it"
    yield Figure(f"its p99 against the same rate alone, {name}", "≤ 2.5 ×", f"{times:.1f} ×", times <= 2.5, told)
    logins = storm.rate(200) / floor
    told = f"{storm.rate(200):.1f}/s, {storm.statuses[503]} refused"
    yield Figure(f"logins of the storm, {name}", "≥ 0.80 × `bcrypt`", f"{logins:.2f}", logins >= 0.80, told)


def _report(figures: list[Figure], effort: Effort) -> str:
    met = sum(figure.is_met for figure in figures)
    quick = " ARGS=--quick" if effort.rounds < QUICK_BELOW else ""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    served = f"gunicorn {version('gunicorn')}, {WORKERS} workers of {THREADS} threads, {load.CONNECTIONS} connections"
    rounds = f"Medians of {effort.rounds} alternating rounds of {effort.seconds:.0f} s, made by `make bench{quick}`."
    lines = [
        "# What was measured",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}; {served}; metrics and access log on.",
        f"{rounds} Figures are ratios to floors (`bench/floors.py`) of the same run.",
        "",
        f"{met} of {len(figures)} goals are met.",
        "",
        "| what | goal | measured | met | figures |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {it.what} | {it.goal} | {it.measured} | {'yes' if it.is_met else '**no**'} | {it.detail or '–'} |"
        for it in figures
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
