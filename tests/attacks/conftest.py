"""The attack suite's options, its targets and its report. With `--target` it attacks that, else stacks of its own."""

import contextlib
import importlib
import os
import shlex
import socket
import subprocess
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.attacks import preflight, report
from tests.attacks.case import CASES
from tests.attacks.report import BROKEN, HELD, NOT_RUN, UNTRIED, Result
from tests.attacks.target import Target

ROOT = Path(__file__).parents[2]
OWN = ("stack", "serve")
TARGET = pytest.StashKey[Target]()
RESULTS = pytest.StashKey[list[Result]]()
LEFT = pytest.StashKey[list[str]]()
SOFTWARE = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attacks", "an attack on a running deployment")
    group.addoption("--target", help="its address; without it the suite starts stacks of its own")
    group.addoption("--i-own-this", action="store_true", help="allows a target that is not on loopback")
    group.addoption("--connect", help="host:port to connect to, where that is not in the address")
    group.addoption("--ca", default="", help="a file of certificates to trust")
    group.addoption("--admin-token", default=os.environ.get("ATTACK_ADMIN_TOKEN", ""), help="or ATTACK_ADMIN_TOKEN")
    group.addoption("--rate", type=float, help="requests a second, at most (20; on loopback 1000)")
    group.addoption("--raised-limits", action="store_true", help="the target's limits are not the default ones")
    group.addoption("--window", type=int, default=2, help="the target's MFA_TOTP_WINDOW")
    group.addoption("--listen", help="host:port of this machine at which the target may reach it; to bind")
    group.addoption("--report", help="write the report here as Markdown, and beside it as JUnit XML")


def names(config: pytest.Config) -> list[str]:
    return ["target"] if is_given(config) else [*OWN]


def is_given(config: pytest.Config) -> bool:
    """Whether there is an address; nothing of the service is imported then."""
    return bool(config.getoption("--target", default=None))


def stacks() -> ModuleType:
    """What starts stacks of the suite's own, by the means of the project."""
    return importlib.import_module("tests.attacks.stacks")


def title(config: pytest.Config, name: str) -> str:
    return str(config.getoption("--target") if is_given(config) else stacks().TITLES[name])


def offers(config: pytest.Config, name: str) -> frozenset[str]:
    if not is_given(config):
        found: frozenset[str] = stacks().OFFERS[name]
        return found
    return config.stash[TARGET].offers


def offers_of_target(config: pytest.Config) -> frozenset[str]:
    found = {"pages"}  # or none, which shows when one is asked for
    found |= {"admin"} if config.getoption("--admin-token") or preflight.has_administrator() else set()
    found |= {"listener"} if config.getoption("--listen") or not strangers(config) else set()
    found |= {"tries"} if config.getoption("--raised-limits") else {"limits"}
    is_many = not strangers(config) and has_addresses(connect_to(config))
    return frozenset(found | ({"addresses", "tries"} if is_many else set()))


def connect_to(config: pytest.Config) -> tuple[str, int]:
    url = urlsplit(config.getoption("--target"))
    given = urlsplit(f"//{config.getoption('--connect') or url.netloc}")
    return given.hostname or "", given.port or (443 if url.scheme == "https" else 80)


def strangers(config: pytest.Config) -> list[str]:
    """What of the target is not this machine: a tunnel begins here, and ends where the address says."""
    hosts = dict.fromkeys((urlsplit(config.getoption("--target")).hostname or "", connect_to(config)[0]))
    return [host for host in hosts if not is_loopback(host)]


def is_loopback(host: str) -> bool:
    try:
        return all(str(found[4][0]).startswith("127.") or found[4][0] == "::1" for found in socket.getaddrinfo(host, 0))
    except OSError:
        return False


def has_addresses(where: tuple[str, int]) -> bool:
    """Whether this machine can come to it from more than one address."""
    if not where[0].startswith("127.") and where[0] != "localhost":
        return False
    try:
        socket.create_connection(where, 5, ("127.77.0.1", 0)).close()
    except OSError:
        return False
    return True


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS], config.stash[LEFT], config.stash[SOFTWARE] = [], [], []
    if is_given(config):
        preflight.ensure_address(config.getoption("--target"))
        preflight.ensure_rate(config.getoption("--rate"))
        if not config.getoption("--i-own-this") and (others := strangers(config)):
            raise pytest.UsageError(f"{others[0]} is not this machine: --i-own-this says that you may attack it")


def pytest_sessionstart(session: pytest.Session) -> None:
    if is_given(session.config):
        session.config.stash[TARGET] = target = target_of(session.config)
        if not session.config.option.collectonly:
            preflight.ensure_ready(target)
            preflight.hire(target)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With an address, the broken server is not there."""
    return True if is_given(config) and collection_path.name == "broken" else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        # Each deployment by one process, if there are several of them (pytest-xdist).
        made = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names(metafunc.config)]
        metafunc.parametrize("deployment", made, indirect=True, scope="package")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a target can't show is not run, and the report says so; on each deployment some are last."""
    out = []
    for item in items:
        name, case = deployment_of(item), getattr(getattr(item, "function", None), "case", None)
        if name and case and (why := report.unmet(case, offers(config, name))):
            config.stash[RESULTS].append(Result(name, case, NOT_RUN, why))
            out.append(item)
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]
    for name in names(config):
        # Only among the items of one deployment: it ends, and would have to start again, where another's come between.
        places = [place for place, item in enumerate(items) if deployment_of(item) == name]
        mine = sorted((items[place] for place in places), key=lambda item: (spends(config, item), looks_back(item)))
        for place, item in zip(places, mine, strict=True):
            items[place] = item


def spends(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a case uses up a limit that all cases share: there is one address for all, or the limit has none."""
    name, case = deployment_of(item), getattr(getattr(item, "function", None), "case", None)
    if not name or not case:
        return False
    return "registrations" in case.needs or ("limits" in case.needs and "addresses" not in offers(config, name))


def looks_back(item: pytest.Item) -> bool:
    """Whether a case is about what all others left behind."""
    case = getattr(getattr(item, "function", None), "case", None)
    return bool(case and case.is_last)


def deployment_of(item: pytest.Item) -> str:
    spec: Any = getattr(item, "callspec", None)
    return str(spec.params.get("deployment", "")) if spec else ""


@pytest.fixture(scope="package")
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """What is attacked."""
    config, folder = request.config, tmp_path_factory.mktemp(request.param)
    if request.param == "stack":
        made = stacks().whole(folder, request.getfixturevalue("postgresql"), request.getfixturevalue("redis"))
    else:
        given = contextlib.nullcontext(config.stash.get(TARGET, None))
        made = stacks().serve(folder) if request.param == "serve" else given
    with made as target:
        config.stash[SOFTWARE] += target.software
        yield target
        config.stash[LEFT] += target.clean_up()


def target_of(config: pytest.Config) -> Target:
    url, where = config.getoption("--target").rstrip("/"), connect_to(config)
    rate = config.getoption("--rate") or (20 if strangers(config) else 1000)
    options = {"ca": config.getoption("--ca"), "window": config.getoption("--window")}
    target = Target(url, "target", where, rate, offers=offers_of_target(config), **options)
    target.admin_token = config.getoption("--admin-token")
    listen = urlsplit(f"//{config.getoption('--listen') or '127.0.0.1:0'}")
    target.listen = listen.hostname or "", listen.port or 0
    return target


@pytest.fixture
def target(deployment: Target) -> Iterator[Target]:
    deployment.begin()
    yield deployment
    if deployment.offset:
        deployment.move(0)
    if "admin" in deployment.offers:
        deployment.clean_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    made = yield
    case, name = getattr(getattr(item, "function", None), "case", None), deployment_of(item)
    if case and name and (call.when == "call" or (call.when == "setup" and call.excinfo)):
        verdict, why = verdict_of(call)
        target: Target | None = getattr(item, "funcargs", {}).get("target")
        own = max(0.0, call.duration - (target.waited if target else 0.0))
        evidence = report.evidence_of(target, verdict) if target else ""
        item.config.stash[RESULTS].append(Result(name, case, verdict, why, own, evidence))
        if is_given(item.config) and is_skipped(call):
            made.outcome = "skipped"  # what can't be tried somewhere else is no failure, in CI neither
    return made


def is_skipped(call: pytest.CallInfo[None]) -> bool:
    return call.excinfo is not None and isinstance(call.excinfo.value, pytest.skip.Exception)


def verdict_of(call: pytest.CallInfo[None]) -> tuple[str, str]:
    """Broken is what a case found out to be so; a target that is away, or a case that ends otherwise, shows nothing."""
    if call.excinfo is None:
        return HELD, ""
    error = call.excinfo.value
    told = next(iter(str(error).splitlines()), "")
    if is_skipped(call):
        return NOT_RUN, told
    if call.when == "call" and isinstance(error, AssertionError):
        return BROKEN, told
    return NOT_RUN, f"{UNTRIED}: {type(error).__name__} {told}".strip()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process has found; what is not run, each of them has said."""
    stash, found = node.config.stash, getattr(node, "workeroutput", {}).get("attacks", {})
    for file in sorted(Path(__file__).parent.glob("test_*.py")) if found.get("results") else ():
        importlib.import_module(f"tests.attacks.{file.stem}")  # which knows the cases
    results = [Result(target, CASES[number], *rest) for target, number, *rest in found.get("results", [])]
    stash[RESULTS] += [result for result in results if result not in stash[RESULTS]]
    stash[LEFT] += found.get("left", [])
    stash[SOFTWARE] += found.get("software", [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if target := session.config.stash.get(TARGET, None):
        session.config.stash[LEFT] += target.dismiss()
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        stash = session.config.stash
        results = [(it.target, it.case.number, it.verdict, it.why, it.seconds, it.shown) for it in stash[RESULTS]]
        output["attacks"] = {"results": results, "left": stash[LEFT], "software": stash[SOFTWARE]}
        return
    results, path = session.config.stash[RESULTS], session.config.getoption("--report", default=None)
    if path and results:
        titles = {name: title(session.config, name) for name in names(session.config)}
        written = report.markdown(results, head(session.config), titles, session.config.stash[LEFT])
        Path(path).write_text(written)
        report.write_junit(results, Path(path).with_suffix(".xml"))
    failed = report.too_long(results) or is_left(session.config)
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def is_left(config: pytest.Config) -> bool:
    """Whether something is still there that an administrator could have taken away."""
    target = config.stash.get(TARGET, None)
    return bool(config.stash[LEFT]) and (target is None or "admin" in target.offers)


def head(config: pytest.Config) -> dict[str, str]:
    """When, what and how: what a reviewer has to know before the first verdict."""
    results = config.stash[RESULTS]
    titles = [title(config, name) for name in names(config)]
    return {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "suite": f"{len({result.case.number for result in results})} cases{commit()}",
        "target": "; ".join(titles),
        "what runs there": ", ".join(dict.fromkeys(config.stash[SOFTWARE])),
        "how": f"`pytest {shlex.join(arguments(config))}`",
    }


def commit() -> str:
    """Which state of this repository it is; nothing where it is none."""
    command = ["git", "describe", "--always", "--tags", "--dirty"]
    with contextlib.suppress(OSError):
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        return f", commit {said}" if said else ""
    return ""


def arguments(config: pytest.Config) -> list[str]:
    """As it was called, without the token."""
    token = config.getoption("--admin-token")
    given = [str(each) for each in config.invocation_params.args]
    return [each.replace(token, "…") if token else each for each in given]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if is_given(config) or any(each.verdict != NOT_RUN for each in results):
        cases = len({result.case.number for result in results})
        counts = [f"{sum(each.verdict == kind for each in results)} {kind}" for kind in (HELD, BROKEN, NOT_RUN)]
        terminalreporter.section("attacks")
        terminalreporter.line(f"{cases} cases on {', '.join(names(config))}: {', '.join(counts)}")
        terminalreporter.line(report.durations(results))
        for text in report.too_long(results):
            terminalreporter.line(f"too long: {text}", red=True)
        if is_left(config):
            terminalreporter.line(f"left behind: {', '.join(config.stash[LEFT])}", red=True)
