"""What an operator sees: the suite as a command, against an address, and its report; and its own phone."""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import groupby
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
import segno

from tests.attacks import jws, qr
from tests.attacks.broken.test_broken import GUNICORN, THREADS, Inside, Start, started
from tests.attacks.case import CASES
from tests.attacks.conftest import verdict_of
from tests.attacks.report import BROKEN, HELD, NOT_RUN, Result, durations, evidence_of, short, shown, too_long
from tests.attacks.target import Answer, Call, CouldNotTry, Target, redacted
from tests.attacks.test_inside import CONTROLS, codes_in, found_in, numbers_in
from tests.attacks.totp import decoded, totp
from tests.conftest import ROOT, program

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    with started([*GUNICORN, *THREADS]) as made:
        yield made


@pytest.fixture
def broken(start: Start) -> Target:
    """A server that takes a code twice."""
    return start("codes_again")


def attack(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/attacks",
        "-m",
        "attacks",
        *arguments,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"CI": ""} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_report_says_what_held_what_broke_and_what_was_not_run(broken: Target, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    run = attack("--target", broken.url, "--report", str(path), "-k", "test_codes or test_inside")
    assert run.returncode == 1
    assert "8 not run" in run.stdout
    text = path.read_text()
    assert f"| {broken.url} |" in text
    assert "| T23 | a code is accepted once, in another login or worker either | **broken** |" in text
    assert "| T25 | after a code of one step no code of that or an older step is accepted | **broken** |" in text
    assert "| F15 | no value stands for a right code | held | default and bypass codes of other products |" in text
    assert f"| target | {broken.url} |" in text
    assert "| O3 | target | needs the logs: only on a stack of the suite's own |" in text
    assert "Left behind: attack-" in text, "nobody is there to delete them"
    cases = ElementTree.parse(path.with_suffix(".xml")).getroot()
    assert len(cases) == int(cases.attrib["tests"]) > 15
    assert len(cases.findall("testcase/failure")) == int(cases.attrib["failures"]) > 1


def test_its_head_says_when_what_and_how(broken: Target, tmp_path: Path) -> None:
    path, token = tmp_path / "report.md", administrator(broken)["ATTACK_ADMIN_TOKEN"]
    told = ("--target", broken.url, "--report", str(path), "-k", "test_there_is_no_bypass", "--admin-token", token)
    run = attack(*told)
    text = path.read_text()
    for said in (r"when \| \d{4}-\d\d-\d\d \d\d:\d\d UTC", r"suite \| 1 cases(, commit \S+)?", "how .*--target http"):
        assert re.search(rf"\| {said}", text), said
    assert re.search(r"\| how long \| target \d+ s; slowest: F15 on target [\d.]+ s; over 10 s: none \|", text)
    assert token not in text + run.stdout
    assert "1 cases on target: 1 held" in run.stdout
    assert "slowest: F15 on target" in run.stdout


def administrator(target: Target) -> dict[str, str]:
    """Variables of one on the broken server, who has another name than those whom the suite makes."""
    person = target.newcomer(username="root")
    person.sign_in()
    assert isinstance(target.inside, Inside)
    target.inside.ask(admin="root")
    return {
        "ATTACK_ADMIN_TOKEN": person.access,
        "ATTACK_ADMIN_USERNAME": "root",
        "ATTACK_ADMIN_PASSWORD": person.password,
        "ATTACK_ADMIN_KEY": person.secret,
    }


@pytest.mark.parametrize("names", ["TOKEN", "USERNAME PASSWORD KEY"])
def test_an_administrator_sees_to_it_that_nothing_is_left(start: Start, tmp_path: Path, names: str) -> None:
    target, path = start(""), tmp_path / "report.md"
    all_of_them = administrator(target)
    given = {name: all_of_them[name] for name in (f"ATTACK_ADMIN_{each}" for each in names.split())}
    run = attack("--target", target.url, "--report", str(path), "-k", "test_recovery or P9 or registered_once", **given)
    assert run.returncode == 0, run.stdout
    assert "Left behind: nothing." in path.read_text()
    assert target.inside.dump().split() == ["root"]  # type: ignore[union-attr]
    assert len(target.get("/api/sessions", all_of_them["ATTACK_ADMIN_TOKEN"]).json["items"]) == 1, "the one from before"
    for value in {*given.values()} - {"root"}:
        assert value not in path.read_text() + path.with_suffix(".xml").read_text() + run.stdout + run.stderr


def test_a_run_that_leaves_something_fails(start: Start, tmp_path: Path) -> None:
    target, path = start(""), tmp_path / "report.md"
    (tmp_path / "late.py").write_text(
        "import urllib.request\n"
        "def pytest_runtest_teardown():\n"
        f"    told = ('{target.url}/__control', b'{{\"offset\": 400}}', {{'Content-Type': 'application/json'}})\n"
        "    urllib.request.urlopen(urllib.request.Request(*told)).close()\n"
    )
    told = ("--target", target.url, "--report", str(path), "-p", "late", "-k", "test_there_is_no_bypass")
    given = {"ATTACK_ADMIN_TOKEN": administrator(target)["ATTACK_ADMIN_TOKEN"]}
    run = attack(*told, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", **given)
    assert "1 held" in run.stdout
    assert run.returncode == 1, "a token that is older than five minutes deletes nobody"
    assert "left behind: attack-" in run.stdout
    assert "Left behind: attack-" in path.read_text()


def test_an_administrator_shows_the_phone_again_when_asked(start: Start) -> None:
    known = start("")
    given = administrator(known)
    target = Target(known.url, "target", known.connect_to, offers=frozenset({"admin", "addresses"}))
    target.hire_administrator(*(given[f"ATTACK_ADMIN_{name}"] for name in ("USERNAME", "PASSWORD", "KEY")))
    first = target.admin()
    known.move(400)
    target.offset = 400
    person = target.newcomer()
    assert target.id_of(person), "the token was too old, and was not renewed"
    assert target.admin() != first
    assert not any("root" in call.content.decode() for call, _ in target.exchanges if isinstance(call, Call))
    known.move(0)


class Stub(BaseHTTPRequestHandler):
    """Something else than this service, or this one in no state to be attacked."""

    document: ClassVar[dict[str, object]] = {}
    status, seconds = 500, 0

    def do_GET(self) -> None:
        self.answer(200, self.document)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.status, {})

    def answer(self, status: int, body: dict[str, object]) -> None:
        self.send_response(status)
        self.send_header("Retry-After", str(self.seconds))
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


OPEN = {"openapi": "3.1.0", "paths": {"/auth/register": {}}}
Serve = Callable[..., str]


@pytest.fixture
def serve_stub() -> Iterator[Serve]:
    with ExitStack() as ending:

        def serve(**members: object) -> str:
            server = ending.enter_context(HTTPServer(("127.0.0.1", 0), type("Own", (Stub,), members)))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            ending.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("staging.example", "is no address: it has to be like https://staging.example"),
        ("ftp://127.0.0.1", "is no address"),
        ("http://127.0.0.1:x", "is no address"),
        ("http://127.0.0.1/auth", "has a path"),
        ("http://127.0.0.1:9", "can't be reached at 127.0.0.1:9"),
    ],
)
def test_what_can_not_be_attacked_is_said_in_one_sentence(address: str, told: str) -> None:
    run = attack("--target", address)
    assert (run.returncode, run.stdout) == (4, "")
    assert told in run.stderr
    assert run.stderr.strip().count("\n") == 0


def test_a_host_that_is_not_known_there_is_named(broken: Target) -> None:
    port = broken.connect_to[1]
    run = attack("--target", "http://staging.example", "--connect", f"127.0.0.1:{port}", "--i-own-this")
    assert run.returncode == 4
    assert "does not know the host staging.example (MFA_ALLOWED_HOSTS)" in run.stderr


def test_what_is_another_service_or_closed_is_not_attacked(serve_stub: Serve) -> None:
    run = attack("--target", serve_stub())
    assert run.returncode == 4
    assert "no OpenAPI document" in run.stderr
    run = attack("--target", serve_stub(document=OPEN | {"paths": {}}))
    assert run.returncode == 4
    assert "open it for the attack (MFA_REGISTRATION_OPEN)" in run.stderr


def test_an_administrator_who_is_none_is_told_at_once(broken: Target) -> None:
    run = attack("--target", broken.url, "--admin-token", "a-token-of-nobody")
    assert run.returncode == 4
    assert "the administrator is not taken for one (it answered 401" in run.stderr
    assert "a-token-of-nobody" not in run.stdout + run.stderr
    run = attack("--target", broken.url, ATTACK_ADMIN_USERNAME="root")
    assert "belong together" in run.stderr
    wrong = {"ATTACK_ADMIN_USERNAME": "root", "ATTACK_ADMIN_PASSWORD": "wrong-password-1", "ATTACK_ADMIN_KEY": "A" * 32}
    run = attack("--target", broken.url, **wrong)
    assert run.returncode == 4
    assert "the administrator can't sign in: a right password answered 401" in run.stderr


def test_what_can_not_be_tried_is_not_broken(serve_stub: Serve, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    told = ("--report", str(path), "-k", "test_there_is_no_bypass")
    run = attack("--target", serve_stub(document=OPEN), *told)
    assert run.returncode == 1, "nothing was shown, and nobody may take that for a success"
    assert "1 cases on target: 0 held, 0 broken, 1 not run" in run.stdout
    assert "| F15 | target | could not be tried: CouldNotTry registering answered 500" in path.read_text()
    assert kinds_of(path.with_suffix(".xml")) == ("1", "0", ["error"])
    run = attack("--target", serve_stub(document=OPEN, status=429, seconds=900), *told, CI="true")
    assert run.returncode == 0, "in CI neither"
    assert "| F15 | target | not run: the target's limit is used up for 900 s" in path.read_text()
    assert kinds_of(path.with_suffix(".xml")) == ("0", "1", ["skipped"])


def kinds_of(path: Path) -> tuple[str, str, list[str]]:
    """Errors and skipped ones as JUnit counts them, and what the one case of a report is called."""
    suite = ElementTree.parse(path).getroot()
    return suite.attrib["errors"], suite.attrib["skipped"], [each.tag for each in suite[0] if each.tag != "system-out"]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, HELD),
        (AssertionError("it opens"), BROKEN),
        (AssertionError(), BROKEN),
        (ConnectionRefusedError("away"), NOT_RUN),
        (TimeoutError(), NOT_RUN),
        (CouldNotTry("registering answered 500"), NOT_RUN),
        (KeyError("tempToken"), NOT_RUN),
    ],
)
def test_broken_is_what_a_case_found_out(error: Exception | None, verdict: str) -> None:
    def run() -> None:
        if error:
            raise error

    assert verdict_of(pytest.CallInfo.from_call(run, "call"))[0] == verdict
    assert verdict_of(pytest.CallInfo.from_call(run, "setup"))[0] in (HELD, NOT_RUN)


def test_what_a_case_begins_with_is_no_finding(start: Start) -> None:
    person = start("").newcomer()
    person.password = "wrong-password-1"
    for beginning in (person.pending, person.sign_in):
        with pytest.raises(CouldNotTry, match="a right password answered 401"):
            beginning()
    with pytest.raises(AssertionError, match="a right password answered 401"):
        person.gets_in()


def test_the_listener_is_where_it_is_said_to_be(start: Start) -> None:
    with HTTPServer(("127.0.0.1", 0), Stub) as free:
        port = free.server_port
    told = ("-k", "test_no_address_in_a_token_is_followed", "--listen", f"127.0.0.1:{port}")
    assert "1 held" in attack("--target", start("").url, *told).stdout
    assert "1 broken" in attack("--target", start("fetches_jku").url, *told).stdout


def test_with_an_address_nothing_of_the_service_is_imported(broken: Target, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(
        "import sys\n"
        "def pytest_unconfigure(config):\n"
        "    names = {name.split('.')[0] for name in sys.modules}\n"
        "    print('of the service:', sorted(names & {'mfa_service', 'flask', 'sqlalchemy'}))\n"
    )
    told = ("--confcutdir=tests/attacks", "-p", "probe", "-k", "test_there_is_no_bypass")
    run = attack("--target", broken.url, *told, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert "1 held" in run.stdout, run.stderr
    assert "of the service: []" in run.stdout
    assert "--confcutdir=tests/attacks --target" in (ROOT / "Makefile").read_text()


def test_what_takes_too_long_is_told_and_in_the_end_fails() -> None:
    def taken(*seconds: float) -> list[Result]:
        return [Result("target", case, "held", "", each) for case, each in zip(CASES.values(), seconds, strict=False)]

    first, second = [*CASES][:2]
    assert (
        durations(taken(3, 12))
        == f"target 15 s; slowest: {second} on target 12.0 s; over 10 s: {second} on target 12.0 s"
    )
    assert too_long(taken(3, 12)) == []
    assert too_long(taken(31, 12)) == [f"{first} on target took 31 s"]
    assert " (more than 600 s); slowest" in durations(taken(*[9] * 70))
    assert too_long(taken(*[29] * 63)) == ["all on target took 1827 s"]


def test_limits_that_were_raised_are_not_attacked(broken: Target) -> None:
    run = attack("--target", broken.url, "--raised-limits", "-k", "test_registering_has_a_limit or no_bypass")
    assert run.returncode == 0
    assert "3 cases on target: 1 held, 0 broken, 2 not run" in run.stdout


def test_nothing_in_the_report_can_be_used(broken: Target, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    attack("--target", broken.url, "--report", str(path), "-k", "test_states or test_recovery")
    text = path.read_text() + path.with_suffix(".xml").read_text()
    assert "tempToken" in text
    for secret in ("eyJ", *broken.inside.dump().split()):  # type: ignore[union-attr]
        assert secret not in text.replace("eyJ…", "") or secret.startswith("attack-")


def test_what_looks_back_at_all_cases_is_the_last_on_each_deployment() -> None:
    found = re.findall(r"::(\w+)\[(stack|serve)\]", attack("--collect-only").stdout)
    runs = {name: [test for test, _ in mine] for name, mine in groupby(found, key=lambda each: each[1])}
    assert len(list(groupby(name for _, name in found))) == len(runs) == 2, "a deployment is started twice"
    assert runs["stack"][-1] == runs["serve"][-2] == "test_no_secret_is_logged"
    assert runs["serve"][-1] == "test_registering_has_a_limit_for_all_together", "nobody else could come after it"
    assert min(map(len, runs.values())) > 150


def test_a_secret_is_found_in_a_log_however_it_is_spelled() -> None:
    secret = "Zm9v+YmFy/x:71"
    log = "a line\nand {} the end"
    for form in (secret, "Zm9v%2BYmFy%2Fx%3A71", "Wm05ditZbUZ5L3g6NzE", "5a6d39762b596d46792f783a3731"):
        assert found_in(log.format(form), {secret, "another-secret"}) == {secret}
        assert found_in(log.format(form[1:]), {secret, "another-secret"}) == set()
    assert found_in(secret, {secret}) == {secret}


@pytest.mark.parametrize(
    "line",
    [
        '{"totpCode": "123456"}',
        "POST /auth/verify-mfa?totpCode=123456",
        '{"body": "{\\"totpCode\\": \\"123456\\"}"}',
        "refused OTP: 123456, of ada",
        "{'value': '123456'}",
    ],
)
def test_a_code_is_found_in_a_log(line: str) -> None:
    assert codes_in(line) == numbers_in(line) == {"123456"}


@pytest.mark.parametrize(
    "line", ["12:00:01.123456Z", '{"code": 1234567}', "id a123456b", '"1234567"', "0.123456 s", '"bytes": 123456.5e']
)
def test_what_is_no_code_is_not_taken_for_one(line: str) -> None:
    assert codes_in(line) == set()


def test_no_terminal_obeys_a_log_unseen() -> None:
    for each in ("\x00", "\x08", "\r", "\x1b[2J", "\x7f", "\x85", "\x9b2J", "\u2028", "\u2029"):
        assert CONTROLS.search(f"a{each}b"), each
    assert not CONTROLS.search("one line, two\n\tand é, ⌁ of a third")


@pytest.mark.parametrize(
    "where",
    [
        ("https://staging.example",),
        ("https://staging.example", "--connect", "127.0.0.1:8443"),  # a tunnel begins here and ends there
        ("http://127.0.0.1", "--connect", "staging.example:443"),
    ],
)
def test_what_is_not_this_machine_is_not_attacked_unasked(where: tuple[str, ...]) -> None:
    run = attack("--target", *where)
    assert run.returncode == 4
    assert "staging.example is not this machine: --i-own-this says that you may attack it" in run.stderr


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan"])
def test_a_rate_that_is_none_is_refused(broken: Target, rate: str) -> None:
    run = attack("--target", broken.url, f"--rate={rate}")
    assert run.returncode == 4
    assert f"--rate {rate} is no pace: it has to be a number above 0" in run.stderr


def test_an_exchange_is_shown_short_and_without_secrets() -> None:
    token = jws.unsigned({"alg": "ES256"}, {"sub": "ada"}) + "c2lnbmF0dXJl"
    call = Call("POST", "/auth/verify-mfa", {"tempToken": token, "totpCode": "123456", "x": "y\u202e" * 400}, token)
    answer = Answer(200, (("a", "b"),), b'{"recoveryCodes": ["A", "B"], "refreshToken":"R", "user": 1}')
    text = shown((call, answer))
    assert token not in text
    assert "123456" not in text
    assert '{"recoveryCodes": "…", "refreshToken":"…", "user": 1}' in text
    assert len(text) < 700
    assert short("a\u202e\nb") == "a\\u202e b"
    assert redacted(f"said {token}") == "said eyJ…"
    listed = Answer(200, (("a", "b"),), b'{"items": [{"username": "ada"}]}')
    assert "ada" not in shown((Call("GET", "/api/admin/users"), listed)), "who else is there is nobody's business"


def test_a_case_says_what_shows_it(broken: Target) -> None:
    target = Target(broken.url, "target", broken.connect_to)
    target.shows(target.get("/nothing"), "nothing is there")
    target.get("/healthz")
    assert evidence_of(target, HELD).startswith("GET /nothing\n→ 404")
    assert evidence_of(target, HELD).endswith("\nnothing is there")
    assert "/healthz" not in evidence_of(target, HELD)
    assert "/healthz" in evidence_of(target, BROKEN), "where it broke the last one may be the reason"
    target.begin()
    assert evidence_of(target, HELD) == ""
    target.together([Call("GET", "/healthz")] * 10)
    target.get("/nothing")
    assert evidence_of(target, HELD).startswith("GET /nothing\n→ 404")
    assert evidence_of(target, HELD).endswith("\nof 11 answers: 10 × 200, 1 × 404")
    target.raw(b"GET / HTTP/1.1\r\n\r\n")
    assert target.shows().status == 400


def test_requests_keep_to_the_rate(broken: Target) -> None:
    slow = Target(broken.url, "slow", broken.connect_to, rate=20)
    slow.together([Call("GET", "/healthz")] * 10)
    before = slow._free_at
    slow.get("/healthz")
    assert slow._free_at - before == pytest.approx(0.05, abs=0.04)
    assert slow.exchanges[-1][1].status == 200
    before = slow._free_at
    one = f"GET /healthz HTTP/1.1\r\nHost: {slow.host}\r\n\r\n".encode()
    slow.raw(one * 7 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert slow._free_at - before == pytest.approx(0.4, abs=0.04), "pipelined requests count one by one"


# ── the phone and the keys of the suite ──────────────────────────────────────────────────────────

KEYS = {"sha1": b"12345678901234567890", "sha256": b"12345678901234567890123456789012"}
KEYS["sha512"] = (b"1234567890" * 7)[:64]
RFC_6238 = """
59 94287082 46119246 90693936
1111111109 07081804 68084774 25091201
1111111111 14050471 67062674 99943326
1234567890 89005924 91819424 93441116
2000000000 69279037 90698825 38618901
20000000000 65353130 77737706 47863826
"""
RFC_4226 = "755224 287082 359152 969429 338314 254676 287922 162583 399871 520489"


@pytest.mark.parametrize("line", RFC_6238.strip().splitlines())
def test_the_phone_reads_rfc_6238(line: str) -> None:
    time, *codes = line.split()
    assert [totp(key, int(time) // 30, 8, digest) for digest, key in KEYS.items()] == codes


def test_the_phone_reads_rfc_4226() -> None:
    assert [totp(KEYS["sha1"], counter) for counter in range(10)] == RFC_4226.split()


def test_the_phone_shows_what_oathtool_shows() -> None:
    secret = jws.base64.b32encode(secrets.token_bytes(20)).decode()
    for now in (0, 29, 1_700_000_000, 2**32 + 59):
        command = [program("oathtool"), "--totp", "-b", f"--now=@{now}", secret]
        assert subprocess.check_output(command, text=True).strip() == totp(decoded(secret), now // 30)


@pytest.mark.parametrize("level", "lmqh")
def test_it_reads_the_pictures_of_everybody(level: str) -> None:
    for version in (1, 2, 6, 7, 9, 10, 13, 14, 20):
        for mask in (version % 8, (version + 3) % 8):
            text = "otpauth://totp/é?%&="[: 6 if version < 3 else 20] * (1 if version < 13 else 4)
            made = segno.make_qr(text, level, version, mode="byte", mask=mask, encoding="utf-8", boost_error=False)
            assert qr.read(made.png_data_uri(scale=3 + mask, border=4)) == text


def test_its_keys_are_those_of_everybody() -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    key = ec.generate_private_key(ec.SECP256R1())
    number = key.private_numbers().private_value
    public = jws.jwk(number)
    assert serialization.load_pem_public_key(jws.pem(jws.der(public))) == key.public_key()
    raw = jws.ecdsa(b"message", number)
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.public_key().verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    assert jws.private_number(key.private_bytes(serialization.Encoding.PEM, form, plain).decode()) == number


@pytest.mark.parametrize("key", [7, 2**255 - 19, jws.ORDER - 1])
def test_its_certificates_are_those_of_everybody(key: int) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    raw = jws.certificate(key)
    found = x509.load_der_x509_certificate(raw)
    found.verify_directly_issued_by(found)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    assert found.public_key().public_bytes(*form) == jws.der(jws.jwk(key))
    assert x509.load_pem_x509_certificate(jws.pem(raw, "CERTIFICATE")) == found


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_its_hmacs_are_those_of_everybody(alg: str) -> None:
    import jwt

    key = b"k" * 64
    assert jwt.decode(jws.with_hmac({"alg": alg}, {"sub": "ada"}, key, alg), key, [alg]) == {"sub": "ada"}


def test_a_member_given_twice_is_read_as_the_last_by_the_standard_library() -> None:
    text = jws.twice({"a": 1, "b": 2}, "a", 3, 4)
    assert jws.json.loads(text, object_pairs_hook=list) == [("a", 3), ("b", 2), ("a", 4)]
