"""The attack suite's options, its targets and its report. With `--target` it attacks that, else stacks of its own."""

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.attacks import report
from tests.attacks.report import BROKEN, HELD, NOT_RUN, Result
from tests.attacks.stacks import OFFERS, TITLES, serve, whole
from tests.attacks.target import Target
from tests.conftest import ROOT

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
    group.addoption("--report", help="write the report here as Markdown, and beside it as JUnit XML")


def names(config: pytest.Config) -> list[str]:
    return ["target"] if config.getoption("--target", default=None) else list(OFFERS)


def offers(config: pytest.Config, name: str) -> frozenset[str]:
    if name in OFFERS:
        return OFFERS[name]
    found = {"admin"} if config.getoption("--admin-token") else set()
    found |= {"tries"} if config.getoption("--raised-limits") else {"limits"}
    return frozenset(found | ({"addresses", "tries"} if has_addresses(connect_to(config)) else set()))


def connect_to(config: pytest.Config) -> tuple[str, int]:
    url = urlsplit(config.getoption("--target"))
    given = urlsplit(f"//{config.getoption('--connect') or url.netloc}")
    return given.hostname or "", given.port or (443 if url.scheme == "https" else 80)


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
    if config.getoption("--target", default=None):
        host = connect_to(config)[0]
        if not is_loopback(host) and not config.getoption("--i-own-this"):
            raise pytest.UsageError(f"{host} is not this machine: --i-own-this says that you may attack it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("deployment", names(metafunc.config), indirect=True, scope="package")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a target can't show is not run, and the report says so; what spends the limit of all is last."""
    out = []
    for item in items:
        name, case = deployment_of(item), getattr(getattr(item, "function", None), "case", None)
        if name and case and (why := report.unmet(case, offers(config, name))):
            config.stash[RESULTS].append(Result(name, case, NOT_RUN, why))
            out.append(item)
    config.hook.pytest_deselected(items=out)
    items[:] = sorted((item for item in items if item not in set(out)), key=lambda item: spends(config, item))


def spends(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a case uses up a limit that all cases share, since there is one address for all."""
    name, case = deployment_of(item), getattr(getattr(item, "function", None), "case", None)
    return bool(name and case and "limits" in case.needs and "addresses" not in offers(config, name))


def deployment_of(item: pytest.Item) -> str:
    spec: Any = getattr(item, "callspec", None)
    return str(spec.params.get("deployment", "")) if spec else ""


@pytest.fixture(scope="package")
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """What is attacked."""
    config, folder = request.config, tmp_path_factory.mktemp(request.param)
    if request.param == "stack":
        made = whole(folder, request.getfixturevalue("postgresql"), request.getfixturevalue("redis"))
    else:
        made = serve(folder) if request.param == "serve" else contextlib.nullcontext(target_of(config))
    with made as target:
        config.stash[SOFTWARE] += target.software
        yield target
        config.stash[LEFT] += target.clean_up()


def target_of(config: pytest.Config) -> Target:
    url, where = config.getoption("--target").rstrip("/"), connect_to(config)
    rate = config.getoption("--rate") or (1000 if is_loopback(where[0]) else 20)
    options = {"ca": config.getoption("--ca"), "window": config.getoption("--window")}
    target = Target(url, "target", where, rate, offers=offers(config, "target"), **options)
    target.admin_token = config.getoption("--admin-token")
    said = target.get("/openapi.json").json.get("info", {})
    target.software = [f"{said.get('title', 'a service')} {said.get('version', '')}".strip()]
    return target


@pytest.fixture
def target(deployment: Target) -> Iterator[Target]:
    deployment.exchanges.clear()
    deployment.waited = 0.0
    yield deployment
    if deployment.offset:
        deployment.move(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    made = yield
    case, name = getattr(getattr(item, "function", None), "case", None), deployment_of(item)
    if case and name and (call.when == "call" or not made.passed):
        verdict = HELD if made.passed else NOT_RUN if made.skipped else BROKEN
        why = "" if call.excinfo is None else str(call.excinfo.value).splitlines()[0]
        target: Target | None = getattr(item, "funcargs", {}).get("target")
        last = target.exchanges[-1] if target and target.exchanges else None
        own = max(0.0, call.duration - (target.waited if target else 0.0))
        result = Result(name, case, verdict, why, own, report.shown(last))
        item.config.stash[RESULTS].append(result)
    return made


def pytest_sessionfinish(session: pytest.Session) -> None:
    results, path = session.config.stash[RESULTS], session.config.getoption("--report", default=None)
    if path and results:
        titles = TITLES | {"target": str(session.config.getoption("--target"))}
        written = report.markdown(results, head(session.config), titles, session.config.stash[LEFT])
        Path(path).write_text(written)
        report.write_junit(results, Path(path).with_suffix(".xml"))
    if report.too_long(results) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def head(config: pytest.Config) -> dict[str, str]:
    """When, what and how: what a reviewer has to know before the first verdict."""
    results = config.stash[RESULTS]
    titles = [TITLES.get(name) or str(config.getoption("--target")) for name in names(config)]
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
    if any(each.verdict != NOT_RUN for each in results):
        cases = len({result.case.number for result in results})
        counts = [f"{sum(each.verdict == kind for each in results)} {kind}" for kind in (HELD, BROKEN, NOT_RUN)]
        terminalreporter.section("attacks")
        terminalreporter.line(f"{cases} cases on {', '.join(names(config))}: {', '.join(counts)}")
        terminalreporter.line(report.durations(results))
        for text in report.too_long(results):
            terminalreporter.line(f"too long: {text}", red=True)
