"""bench/REPORT.md and its plots."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from bench import load
from bench.figures import QUICK, Effort, Figure, Plots, Pool
from bench.servers import THREADS, WORKERS

FOLDER = Path(__file__).parent
REPORT, PLOTS = FOLDER / "REPORT.md", FOLDER / "plots"


def write(figures: list[Figure], plots: Plots, effort: Effort, *, is_whole: bool) -> None:
    """Write the report, with goals that were missed as missed, and also of a run that came to no end."""
    PLOTS.mkdir(exist_ok=True)
    _draw_storm(plots)
    _draw_growth(plots)
    _draw_hashing(plots)
    REPORT.write_text(_text(figures, plots, effort, is_whole=is_whole))


def _pools(pools: list[Pool], effort: Effort) -> list[str]:
    """Why the pool for hashes is as it is."""
    title = "hashing threads and places to wait of each process, SQLite"
    lines = [
        f"Of the storm with other pools, {effort.storm_seconds / 2:.0f} s each; the first is what is shipped:",
        "",
        f"| {title} | logins, of `bcrypt` | refused | p99 of the profile beside it |",
        "|---|---|---|---|",
    ]
    return lines + [
        f"| {it.threads} and {it.queue} | {it.logins:.2f} | {it.refused} | {it.slowest * 1000:.1f} ms |" for it in pools
    ]


def _text(figures: list[Figure], plots: Plots, effort: Effort, *, is_whole: bool) -> str:
    met = sum(figure.is_met for figure in figures)
    quick = " ARGS=--quick" if effort is QUICK else ""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    served = f"gunicorn {version('gunicorn')}, {WORKERS} workers of {THREADS} threads, {load.CONNECTIONS} connections"
    rounds = f"Medians of {effort.rounds} alternating rounds of {effort.seconds:.0f} s, made by `make bench{quick}`."
    lines = [
        "# What was measured",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}; {served}; metrics and access log on.",
        f"{rounds} Figures are ratios to floors (`bench/floors.py`) of the same run.",
        f"The login storm: {effort.storms} rounds of {effort.storm_seconds:.0f} s, each beside floors of its own.",
        "Codes, both saturated and memory are looked at once for each database, and for longer.",
        "`bcrypt` is the package; the service hashes by the machine's libcrypt, where it can, which is a fifth faster.",
        "",
        f"{met} of {len(figures)} goals are met."
        + ("" if is_whole else " **This run ended early: others are missing.**"),
        "",
        "| what | goal | measured | met | figures |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {it.what} | {it.goal} | {it.measured} | {'yes' if it.is_met else '**no**'} | {it.detail or '–'} |"
        for it in figures
    ]
    lines += ["", *_pools(plots.pools, effort)]
    for name, what in (
        ("storm", "The profile route at a fixed rate, alone and beside twenty connections that do nothing but log in"),
        ("growth", "Medians of one request after another, as users and audit events grow"),
        ("hashing", "Logins a second by how many log in at once, and what the package bcrypt reaches alone"),
    ):
        lines += ["", f"![{what}](plots/{name}.svg)", "", f"*{what}.*"]
    return "\n".join(lines) + "\n"


def _draw_storm(plots: Plots) -> None:
    canvas = Canvas(figsize=(8, 3.2), layout="constrained")
    for place, (name, (alone, beside)) in enumerate(plots.storm.items(), 1):
        axes = canvas.add_subplot(1, len(plots.storm), place, title=name, ylabel="ms", xlabel="share of requests, %")
        for label, answers in (("alone", alone), ("beside the storm", beside)):
            shares = [each / 10 for each in range(1000)]
            values = [answers.percentile(share / 100) * 1000 for share in shares]
            axes.plot(shares, values, label=f"{label}, {answers.rate(200):,.0f}/s")
        axes.set_yscale("log")
        axes.legend()
    canvas.savefig(PLOTS / "storm.svg")


def _draw_growth(plots: Plots) -> None:
    canvas = Canvas(figsize=(8, 3.2), layout="constrained")
    for place, (name, sizes) in enumerate(plots.growth.items(), 1):
        axes = canvas.add_subplot(1, len(plots.growth), place, title=name, ylabel="p50, ms", xlabel="users")
        for what in sizes[0].took:
            axes.plot([size.users for size in sizes], [size.took[what] * 1000 for size in sizes], "o-", label=what)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize="small")
    canvas.savefig(PLOTS / "growth.svg")


def _draw_hashing(plots: Plots) -> None:
    canvas = Canvas(figsize=(5, 3.2), layout="constrained")
    axes = canvas.add_subplot(ylabel="a second", xlabel="connections that log in")
    for name, (floor, by_step) in plots.hashing.items():
        [line] = axes.plot(list(by_step), list(by_step.values()), "o-", label=f"logins, {name}")
        axes.axhline(floor, color=line.get_color(), linestyle=":", label="bcrypt alone, then")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    canvas.savefig(PLOTS / "hashing.svg")
