"""What an operator sees: the suite as a command, against an address, and its report; and its own phone."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import segno

from tests.attacks import jws, qr
from tests.attacks.broken.test_broken import GUNICORN, THREADS, started
from tests.attacks.case import CASES
from tests.attacks.report import Result, durations, short, shown, too_long
from tests.attacks.target import Answer, Call, Target, redacted
from tests.attacks.totp import decoded, totp
from tests.conftest import ROOT, program

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def broken() -> Iterator[Target]:
    """A server that takes a code twice."""
    with started([*GUNICORN, *THREADS]) as start:
        yield start("codes_again")


def attack(*arguments: str) -> "subprocess.CompletedProcess[str]":
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
        command, cwd=ROOT, env=environment | {"CI": ""}, capture_output=True, text=True, timeout=120, check=False
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
    path, secret = tmp_path / "report.md", "a-token-of-nobody"
    told = ("--target", broken.url, "--report", str(path), "-k", "test_there_is_no_bypass", "--admin-token", secret)
    run = attack(*told)
    text = path.read_text()
    for said in (r"when \| \d{4}-\d\d-\d\d \d\d:\d\d UTC", r"suite \| 1 cases(, commit \S+)?", "how .*--target http"):
        assert re.search(rf"\| {said}", text), said
    assert re.search(r"\| how long \| \d+ s in all; slowest: F15 on target [\d.]+ s; over 10 s: none \|", text)
    assert secret not in text + run.stdout
    assert "1 cases on target: 1 held" in run.stdout
    assert "Left behind: attack-" in text, "the token is nobody's, so who was made stays, by name"
    assert "slowest: F15 on target" in run.stdout


def test_what_takes_too_long_is_told_and_in_the_end_fails() -> None:
    def taken(*seconds: float) -> list[Result]:
        return [Result("target", case, "held", "", each) for case, each in zip(CASES.values(), seconds, strict=False)]

    first, second = [*CASES][:2]
    assert (
        durations(taken(3, 12))
        == f"15 s in all; slowest: {second} on target 12.0 s; over 10 s: {second} on target 12.0 s"
    )
    assert too_long(taken(3, 12)) == []
    assert too_long(taken(31, 12)) == [f"{first} on target took 31 s"]
    assert " (more than 600 s); slowest" in durations(taken(*[9] * 70))
    assert too_long(taken(*[29] * 63)) == ["all together took 1827 s"]


def test_limits_that_were_raised_are_not_attacked(broken: Target) -> None:
    run = attack("--target", broken.url, "--raised-limits", "-k", "test_registering_has_a_limit or no_bypass")
    assert run.returncode == 0
    assert "2 cases on target: 1 held, 0 broken, 1 not run" in run.stdout


def test_nothing_in_the_report_can_be_used(broken: Target, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    attack("--target", broken.url, "--report", str(path), "-k", "test_states or test_recovery")
    text = path.read_text() + path.with_suffix(".xml").read_text()
    assert "tempToken" in text
    for secret in ("eyJ", *broken.inside.dump().split()):  # type: ignore[union-attr]
        assert secret not in text.replace("eyJ…", "") or secret.startswith("attack-")


def test_what_is_not_this_machine_is_not_attacked_unasked() -> None:
    run = attack("--target", "https://staging.example")
    assert run.returncode == 4
    assert "--i-own-this" in run.stderr


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


def test_requests_keep_to_the_rate(broken: Target) -> None:
    slow = Target(broken.url, "slow", broken.connect_to, rate=20)
    slow.together([Call("GET", "/healthz")] * 10)
    before = slow._free_at
    slow.get("/healthz")
    assert slow._free_at - before == pytest.approx(0.05, abs=0.04)
    assert slow.exchanges[-1][1].status == 200


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
    assert serialization.load_pem_public_key(jws.pem(public)) == key.public_key()
    raw = jws.ecdsa(b"message", number)
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.public_key().verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    assert jws.private_number(key.private_bytes(serialization.Encoding.PEM, form, plain).decode()) == number
