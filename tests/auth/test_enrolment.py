"""Enrolment: what the phone scans is what the service expects, and it is shown once."""

import base64
import binascii
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.app import create_app
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from tests.conftest import Clock, program
from tests.factories import PASSWORD, Person, log_in, register, sign_in, totp
from tests.services import Rows

AWKWARD_NAMES = ["ada", "a+b@x.io", "ü", "%41", "a/b", "a?b&secret=AAAA", '"><svg>', "山田太郎", "#", "a;b", "o'brien"]

# ── what is scanned ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("username", AWKWARD_NAMES)
def test_the_scanned_address_names_account_issuer_and_secret_and_nothing_else(
    client: FlaskClient, tmp_path: Path, username: str
) -> None:
    answer = registered(client, username)
    account, issuer, parameters = parsed(scanned(answer.json["qrCode"], tmp_path))
    assert (account, issuer) == (username, "MFA Service")
    assert parameters == [
        ("secret", answer.json["manualEntryKey"]),
        ("issuer", "MFA Service"),
        ("algorithm", "SHA1"),
        ("digits", "6"),
        ("period", "30"),
    ]


@pytest.mark.parametrize("issuer", ["Acme", "Acme & Söhne", "a+b c", "100%", "x?secret=AAAA#", "日本"])
def test_the_issuer_is_the_configured_one_in_both_places(
    make_app: Callable[..., Flask], tmp_path: Path, issuer: str
) -> None:
    client = make_app(MFA_TOTP_ISSUER=issuer).test_client()
    address = scanned(registered(client, "ada").json["qrCode"], tmp_path)
    _account, in_label, parameters = parsed(address)
    assert in_label == dict(parameters)["issuer"] == issuer
    assert "+" not in address
    assert address.isascii()


def test_the_longest_name_still_scans(client: FlaskClient, tmp_path: Path) -> None:
    username = "𠀀" * 64
    account, _issuer, _parameters = parsed(scanned(registered(client, username).json["qrCode"], tmp_path))
    assert account == username


def test_the_picture_has_the_size_of_a_phones_screen_and_a_quiet_zone(client: FlaskClient) -> None:
    png = image(registered(client, "ada").json["qrCode"])
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width == height
    assert 200 <= width <= 400


@pytest.mark.parametrize("username", ["ada", "ａdmin", "Ünal"])
def test_the_key_for_typing_is_the_one_that_is_scanned(client: FlaskClient, tmp_path: Path, username: str) -> None:
    answer = registered(client, username)
    secret = dict(parsed(scanned(answer.json["qrCode"], tmp_path))[2])["secret"]
    assert secret == answer.json["manualEntryKey"]
    assert "=" not in secret
    assert len(base64.b32decode(secret)) == 20


# ── what the phone makes of it ───────────────────────────────────────────────────────────────────


def test_a_code_that_another_program_makes_from_the_qr_code_signs_in_at_this_very_hour(
    config: dict[str, object], tmp_path: Path
) -> None:
    app = create_app(config)
    client = app.test_client()
    secret = dict(parsed(scanned(registered(client, "ada").json["qrCode"], tmp_path))[2])["secret"]
    code = oathtool("--totp", "--base32", secret)
    ada = Person("ada", PASSWORD, "ada@example.com", secret)
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": code})
    assert answer.status_code == 200, (answer.json, time.time())
    app.extensions["mfa_service"].services.close()


def test_another_program_agrees_with_the_codes_of_these_tests(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    for now in (59, 1111111109, clock(), 20_000_000_000):
        made = oathtool("--totp", "--base32", f"--now=@{int(now)}", ada.secret)
        assert made == totp(ada.secret, int(now) // 30)


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_secrets_are_unique_and_of_twenty_random_bytes(services: Services, client: FlaskClient) -> None:
    token = log_in(client, register(client, "ada"))

    def enrol_often() -> set[bytes]:
        return {base64.b32decode(services.login.enrol(token, ClientInfo()).secret) for _ in range(1000)}

    secrets = services.unit.run(enrol_often, writes=True)
    assert len(secrets) == 1000
    assert {len(secret) for secret in secrets} == {20}
    ones = sum(int.from_bytes(secret).bit_count() for secret in secrets)
    assert abs(ones - 80_000) < 1000, "a fair coin strays so far once in 10**6 runs"


def test_two_people_and_two_enrolments_have_different_secrets(client: FlaskClient) -> None:
    ada, bob = register(client, "ada"), register(client, "bob")
    again = enrol(client, log_in(client, ada)).json["manualEntryKey"]
    assert len({ada.secret, bob.secret, again}) == 3


# ── shown once ───────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_code_a_lost_qr_code_is_replaced(client: FlaskClient, clock: Clock) -> None:
    lost = register(client, "ada")
    answer = enrol(client, log_in(client, lost))
    assert answer.status_code == 200
    assert set(answer.json) == {"message", "qrCode", "manualEntryKey", "expiresIn"}
    assert answer.json["expiresIn"] == 600
    found = Person("ada", lost.password, lost.email, answer.json["manualEntryKey"])
    body = {"tempToken": log_in(client, found), "totpCode": lost.code(clock())}
    assert client.post("/auth/verify-mfa", json=body).status_code == 401
    assert sign_in(client, found, clock())


def test_after_the_first_code_it_is_403_and_the_authenticator_stays(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    early = log_in(client, ada)
    sign_in(client, ada, clock())
    for token in (early, log_in(client, ada)):
        answer = enrol(client, token)
        assert (answer.status_code, answer.json["code"]) == (403, "factor_exists")
    assert sign_in(client, ada, clock(), steps=1)


def test_login_says_whether_there_is_still_something_to_enrol(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    body = {"username": "ada", "password": ada.password}
    before = client.post("/auth/login", json=body).json
    sign_in(client, ada, clock())
    after = client.post("/auth/login", json=body).json
    assert (before["enrolmentRequired"], before["methods"]) == (True, [])
    assert (after["enrolmentRequired"], after["methods"]) == (False, ["totp", "recovery_code"])


def test_the_secret_is_in_no_answer_after_the_one_that_shows_it(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    login = client.post("/auth/login", json={"username": "ada", "password": ada.password})
    body = {"tempToken": login.json["tempToken"], "totpCode": ada.code(clock())}
    verified = client.post("/auth/verify-mfa", json=body)
    profile = client.get("/api/profile", headers={"Authorization": f"Bearer {verified.json['accessToken']}"})
    refused = [enrol(client, log_in(client, ada)), client.post("/auth/register", json=body_for("ada"))]
    for answer in (login, verified, profile, *refused):
        assert ada.secret not in answer.text
        assert "otpauth" not in answer.text
        assert "data:image" not in answer.text


def test_a_secret_is_asked_for_by_post_and_never_kept_by_a_cache(client: FlaskClient) -> None:
    token = log_in(client, register(client, "ada"))
    assert client.get("/auth/enrol", query_string={"tempToken": token}).status_code == 405
    assert client.get("/auth/register").status_code == 405
    for answer in (enrol(client, token), registered(client, "bob")):
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("token", ["", "x", None, 1, []])
def test_nobody_enrols_without_the_password(client: FlaskClient, token: object) -> None:
    register(client, "ada")
    assert enrol(client, token).status_code in (400, 401)


def test_an_access_token_enrols_nothing(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    answer = enrol(client, sign_in(client, ada, clock()))
    assert (answer.status_code, answer.json["error"]) == (401, "Invalid token")


# ── unconfirmed ──────────────────────────────────────────────────────────────────────────────────


def test_until_the_first_code_a_factor_is_none_and_its_account_is_open_to_enrol(
    client: FlaskClient, rows: Rows
) -> None:
    ada = register(client, "ada")
    for _ in range(3):
        token = log_in(client, ada)
        assert enrol(client, token).status_code == 200
    assert rows("SELECT count(*) AS secrets, count(confirmed_at) AS confirmed FROM mfa_secrets") == [
        {"secrets": 1, "confirmed": 0}
    ]


def test_the_code_that_confirms_is_used_up(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    code = ada.code(clock())
    sign_in(client, ada, clock())
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": code})
    assert (answer.status_code, answer.json["error"]) == (401, "Invalid TOTP code")


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────


def body_for(username: str) -> dict[str, str]:
    return {"username": username, "password": PASSWORD, "email": "ada@example.com"}


def registered(client: FlaskClient, username: str) -> TestResponse:
    answer = client.post("/auth/register", json=body_for(username))
    assert answer.status_code == 200, answer.text
    return answer


def enrol(client: FlaskClient, token: object) -> TestResponse:
    return client.post("/auth/enrol", json={"tempToken": token})


def image(data_uri: str) -> bytes:
    kind, _, content = data_uri.partition(",")
    assert kind == "data:image/png;base64"
    return binascii.a2b_base64(content, strict_mode=True)


def scanned(data_uri: str, folder: Path) -> str:
    """What a barcode reader that is not ours sees in the picture."""
    (folder / "qr.png").write_bytes(image(data_uri))
    command = [program("zbarimg"), "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", str(folder / "qr.png")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n")


def oathtool(*arguments: str) -> str:
    return subprocess.run([program("oathtool"), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def parsed(address: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Account, issuer of the label, and parameters, as urllib reads an otpauth address."""
    url = urlsplit(address)
    assert (url.scheme, url.netloc, url.fragment) == ("otpauth", "totp", "")
    issuer, account = url.path.removeprefix("/").split(":")
    return unquote(account), unquote(issuer), parse_qsl(url.query, keep_blank_values=True, strict_parsing=True)
