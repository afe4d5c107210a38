"""A suite that can't fail shows nothing: every case holds on a right service, and says broken without one check."""

import ast
import importlib
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.case import CASES, NEEDS
from tests.attacks.target import Target, has_ipv6
from tests.attacks.test_framing import line_feeds, refused, requests
from tests.conftest import ROOT, free_port, running

ATTACKS = Path(__file__).parents[1]
for _file in sorted(ATTACKS.glob("test_*.py")):
    importlib.import_module(f"tests.attacks.{_file.stem}")

pytestmark = pytest.mark.services
#: All but what this machine has no network for.
NUMBERS = [number for number, case in CASES.items() if "ipv6" not in case.needs or has_ipv6()]

GUNICORN = ["-m", "gunicorn", "tests.attacks.broken.server:app", "--log-level", "critical", "--no-control-socket"]
THREADS = ["--worker-class", "gthread", "--threads", "80", "--keep-alive", "5"]
#: Weaknesses of what stands around an app: another server, or another way to run it.
OTHER_SERVERS = {
    "one_thread": [*GUNICORN, "--worker-class", "sync", "--timeout", "60"],
    "huge_headers": [*GUNICORN, *THREADS, "--limit-request-line", "0", "--limit-request-field_size", "0"],
    "sloppy_framing": ["-m", "tests.attacks.broken.server", "Sloppy"],
    "reads_by_length": ["-m", "tests.attacks.broken.server", "ByLength"],
}
OTHER_SERVERS["huge_headers"] += ["--limit-request-fields", "32768"]


class Inside:
    """The inside of the broken server, as that of a stack."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, **members: Any) -> dict[str, Any]:
        content = json.dumps(members).encode()
        asked = urllib.request.Request(f"{self._address}/__control", content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return dict(json.load(answer))

    def move(self, seconds: float) -> None:
        self.ask(offset=seconds)

    def failures(self, username: str, subject: str = "totp") -> int:
        return sum(number for *of, number in self.ask()["locks"] if of == [username, subject])

    def set_failures(self, username: str, number: int, subject: str = "totp") -> None:
        self.ask(failures=[username, number, subject])

    def locks(self) -> str:
        return str(self.ask()["locks"])

    def rotate_keys(self) -> None:
        self.ask(rotate=True)

    def sessions(self, username: str) -> int:
        return int(self.ask()["sessions"].get(username, 0))

    def dump(self) -> str:
        return str(self.ask()["dump"])

    def log(self) -> str:
        return str(self.ask()["log"])

    @property
    def key(self) -> tuple[str, int]:
        kid, number = self.ask()["key"]
        return kid, int(number)


Start = Callable[[str], Target]


@contextmanager
def started(arguments: list[str]) -> Iterator[Start]:
    """A server; what it yields takes one check out of it, and gives a target with an administrator."""
    port, direct = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"PORT": str(port), "DIRECT_PORT": str(direct)}
    command = [sys.executable, *arguments]
    if "gunicorn" in arguments:
        command += ["-c", "/dev/null", "-b", f"127.0.0.1:{port}", "-b", f"127.0.0.1:{direct}"]
        command += ["-b", f"[::1]:{port}"] if has_ipv6() else []
    ready = lambda: urllib.request.urlopen(f"{address}/healthz", timeout=2).close()  # noqa: E731

    def with_weakness(name: str) -> Target:
        inside = Inside(address)
        inside.ask(weakness=name)
        past = Target(f"http://127.0.0.1:{direct}", "past", ("127.0.0.1", direct), offers=frozenset({"addresses"}))
        where = ("127.0.0.1", port)
        target = Target(address, "broken", where, timeout=8, offers=frozenset(NEEDS), inside=inside, direct=past)
        target.over_ipv6 = Target(address, "over IPv6", ("::1", port))
        return target

    with running(command, ready=ready, env=environment, cwd=ROOT):
        yield with_weakness


@pytest.fixture(scope="module")
def server() -> Iterator[Start]:
    with started([*GUNICORN, *THREADS]) as start:
        yield start


def verdict(target: Target, number: str) -> str:
    """What a case says; an administrator is there for those that need one."""
    if "admin" in CASES[number].needs:
        person = target.newcomer()
        assert isinstance(target.inside, Inside)
        target.inside.ask(admin=person.name)
        person.sign_in()
        target.give_administrator(person)
    try:
        CASES[number].run(target)
    except AssertionError as error:
        return f"broken: {type(error).__name__} {error}"
    return "held"


@pytest.mark.parametrize("number", NUMBERS)
def test_without_a_weakness_the_case_holds(server: Start, number: str) -> None:
    assert verdict(server(""), number) == "held"


@pytest.mark.parametrize(("number", "name"), [(number, name) for number in NUMBERS for name in CASES[number].broken_by])
def test_with_each_weakness_of_its_own_the_case_says_broken(server: Start, number: str, name: str) -> None:
    if name not in OTHER_SERVERS:
        assert verdict(server(name), number).startswith("broken")
        return
    with started(OTHER_SERVERS[name]) as start:
        target = start("")
        if name in ("sloppy_framing", "reads_by_length"):
            target.direct = target
        assert verdict(target, number).startswith("broken")


@pytest.fixture(scope="module", params=["sloppy_framing", "reads_by_length"])
def sloppy(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Servers that read requests as they like."""
    with started(OTHER_SERVERS[request.param]) as start:
        yield start("")


@pytest.mark.parametrize("what", [*requests(b"x")])
def test_each_way_to_frame_a_request_is_seen_where_it_is_taken(sloppy: Target, what: str) -> None:
    with pytest.raises(AssertionError):
        refused(sloppy, what, requests(sloppy.host.encode())[what])


@pytest.mark.parametrize("sloppy", ["sloppy_framing"], indirect=True)
@pytest.mark.parametrize("what", [*line_feeds(b"x")])
def test_each_way_to_end_a_line_is_seen_where_it_is_taken(sloppy: Target, what: str) -> None:
    with pytest.raises(AssertionError):
        refused(sloppy, what, line_feeds(sloppy.host.encode())[what])


def test_there_is_a_case_for_each_known_failure() -> None:
    assert {f"T{number}" for number in range(1, 51)} <= set(CASES)
    assert len(CASES) > 215


def test_every_test_of_the_suite_is_a_case() -> None:
    for path in sorted(ATTACKS.glob("test_*.py")):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        tests = [function for function in functions if function.name.startswith("test_")]
        for test in tests:
            assert any(ast.unparse(each).startswith("case(") for each in test.decorator_list), (path.name, test.name)


def test_every_weakness_is_one_of_a_case() -> None:
    named = set(re.findall(r'weak\("(\w+)"\)', (ATTACKS / "broken/server.py").read_text()))
    assert named | set(OTHER_SERVERS) == {name for case in CASES.values() for name in case.broken_by}


def test_the_attacks_know_nothing_of_the_service() -> None:
    allowed = set(sys.stdlib_module_names) | {"pytest", "tests"}
    for path in [*ATTACKS.glob("*.py")]:
        names = {name.split(".")[0] for name in imported(path)}
        assert "mfa_service" not in names, path.name
        if path.name != "stacks.py":
            assert names <= allowed, (path.name, names - allowed)
            assert all(name.startswith("tests.attacks") for name in imported(path) if name.startswith("tests")), (
                path.name
            )


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
