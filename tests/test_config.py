"""Settings: each with its default, its type and its check; everything wrong is said at once and stops the start."""

import base64
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from mfa_service.config import Settings, env_name, from_environment, weakness_of_secret
from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.errors import ConfigurationError
from tests.conftest import ROOT

GOOD_SECRET = "uH3kX0pQ9vB7nW2mZ5cL8dR4tY6jF1sA+/eG"

DEFAULTS: Mapping[str, object] = {
    "MFA_INSTANCE": Path("instance"),
    "MFA_DATABASE_URL": "",
    "MFA_KEYRING": None,
    "MFA_KEYS": None,
    "MFA_SIGNING_KEYS": None,
    "MFA_KEY_REREAD_SECONDS": 30,
    "MFA_SEAL_KEYS": None,
    "MFA_SEAL_SECONDS": 300,
    "MFA_SEALS_OUTPUT": "-",
    "MFA_ADMIN_RATE_LIMIT": "300 per minute",
    "JWT_SECRET": None,
    "MFA_PUBLIC_URL": "http://127.0.0.1:8000",
    "MFA_AUDIENCES": (),
    "MFA_ALLOWED_HOSTS": (),
    "MFA_CORS_ORIGINS": (),
    "MFA_TRUSTED_PROXIES": 0,
    "MFA_METRICS": (),
    "MFA_ACCESS_LOG": False,
    "MFA_TRACING": False,
    "MFA_REDIS_URL": None,
    "MFA_AUTH_RATE_LIMIT": "5 per 15 minutes",
    "MFA_SESSION_RATE_LIMIT": "60 per minute",
    "MFA_REGISTRATION_RATE_LIMIT": "300 per hour",
    "MFA_REGISTRATION_OPEN": True,
    "MFA_TOKEN_LOCATIONS": ("header",),
    "MFA_AUTH_PREFIX": "/auth",
    "MFA_API_PREFIX": "/api",
    "MFA_BLUEPRINT_PREFIX": "mfa_",
    "MFA_TOTP_ISSUER": "MFA Service",
    "MFA_TOTP_WINDOW": 2,
    "MFA_BCRYPT_COST": 12,
    "MFA_PASSWORD_MIN_LENGTH": 8,
    "MFA_SESSION_IDLE_SECONDS": 86400,
    "MFA_SESSION_SECONDS": 2592000,
    "MFA_DEVICE_SECONDS": 2592000,
    "MFA_HASHING_THREADS": 1,
    "MFA_HASHING_QUEUE": 6,
    "TESTING": False,
}


# ── defaults and types ───────────────────────────────────────────────────────────────────────────


def test_every_setting_has_the_default_that_is_promised() -> None:
    assert {env_name(spec): spec.default for spec in dataclasses.fields(Settings)} == DEFAULTS


def test_every_setting_says_why_it_exists() -> None:
    assert [spec.name for spec in dataclasses.fields(Settings) if not spec.metadata["why"]] == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MFA_INSTANCE", "/srv/mfa", Path("/srv/mfa")),
        ("MFA_KEYRING", "/run/secrets/keyring", Path("/run/secrets/keyring")),
        ("MFA_SIGNING_KEYS", "/run/secrets/keys", Path("/run/secrets/keys")),
        ("MFA_DATABASE_URL", "postgresql://db/mfa", "postgresql://db/mfa"),
        ("MFA_KEYS", '{"keys": []}', '{"keys": []}'),
        ("JWT_SECRET", GOOD_SECRET, GOOD_SECRET),
        ("MFA_PUBLIC_URL", "https://auth.example/mfa", "https://auth.example/mfa"),
        ("MFA_AUDIENCES", "shop, forum ,,", ("shop", "forum")),
        ("MFA_AUDIENCES", ("shop", "forum"), ("shop", "forum")),
        ("MFA_ALLOWED_HOSTS", "auth.example,auth2.example", ("auth.example", "auth2.example")),
        ("MFA_ALLOWED_HOSTS", "2001:db8:0:1:2:3:4:5,::1", ("2001:db8:0:1:2:3:4:5", "::1")),
        ("MFA_CORS_ORIGINS", "https://a.example,http://b.example:81", ("https://a.example", "http://b.example:81")),
        ("MFA_TRUSTED_PROXIES", "2", 2),
        *(
            ("MFA_REDIS_URL", url, url)
            for url in (
                "redis://cache/0",
                "rediss://mfa:hunter2@cache:6380/0",
                "redis+unix:///run/redis.sock",
                "redis+cluster://a.example:6379,b.example:6379,[::1]:6379",
                "redis+cluster://mfa:p%40ss@a.example:6379",
                "rediss+cluster://a.example:6379",
                "rediss+sentinel://a.example:26379/mymaster",
                "redis+sentinel://:hunter2@a.example:26379,b.example:26379/mymaster",
            )
        ),
        ("MFA_AUTH_RATE_LIMIT", "10/minute", "10/minute"),
        ("MFA_SESSION_RATE_LIMIT", "100/minute", "100/minute"),
        ("MFA_REGISTRATION_RATE_LIMIT", "1 per 1 day", "1 per 1 day"),
        ("MFA_TOTP_ISSUER", "Ünïcödé & Söhne", "Ünïcödé & Söhne"),
        ("MFA_TOTP_WINDOW", "0", 0),
        ("MFA_TOTP_WINDOW", 1, 1),
        ("MFA_BCRYPT_COST", "14", 14),
        ("MFA_PASSWORD_MIN_LENGTH", "15", 15),
        ("MFA_SESSION_IDLE_SECONDS", "3600", 3600),
        ("MFA_SESSION_SECONDS", "31536000", 31536000),
        ("MFA_DEVICE_SECONDS", "0", 0),
        ("MFA_HASHING_THREADS", "64", 64),
        ("MFA_HASHING_QUEUE", "0", 0),
        *(("MFA_REGISTRATION_OPEN", text, True) for text in ("1", "true", "TRUE", "yes", "on", " true ", True)),
        *(("MFA_REGISTRATION_OPEN", text, False) for text in ("0", "false", "False", "no", "off", False)),
    ],
)
def test_a_setting_is_read_as_its_type(name: str, text: object, value: object) -> None:
    settings = Settings.load({name: text}, needs_keys=False)
    read = {env_name(spec): getattr(settings, spec.name) for spec in dataclasses.fields(Settings)}
    assert read == {**DEFAULTS, name: value}
    assert type(read[name]) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_setting_is_none(name: str, empty: object) -> None:
    assert Settings.load({name: empty}, needs_keys=False) == Settings()


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "MFA_TRUSTED_PROXIES": ["-1", "11", "one", "1.0", "1e1", "٢", "0x1", " 1", True],
        "MFA_TOTP_WINDOW": ["-1", "3", "two"],
        "MFA_BCRYPT_COST": ["9", "4", "17", "31", "0", "-12", "twelve", "12.5"],
        "MFA_PASSWORD_MIN_LENGTH": ["7", "0", "65"],
        "MFA_SESSION_IDLE_SECONDS": ["0", "3599", "31536001", "-86400", "a day", "3600.5"],
        "MFA_SESSION_SECONDS": ["0", "3599", "31536001", "30 days"],
        "MFA_DEVICE_SECONDS": ["-1", "2592001", "never"],
        "MFA_HASHING_THREADS": ["0", "65", "-1", "99999999999999999999"],
        "MFA_HASHING_QUEUE": ["-1", "101"],
        "MFA_REGISTRATION_OPEN": ["maybe", "2", "-", "truefalse", "None"],
        "MFA_AUTH_RATE_LIMIT": ["5", "0 per minute", "often", "5 per", "-5 per minute", "5 per minute; 9 per day"],
        "MFA_SESSION_RATE_LIMIT": ["60", "0 per minute", "often"],
        "MFA_REGISTRATION_RATE_LIMIT": ["", "1 per fortnight", "٣ per hour", "5 per\nminute", "5 per 0 minutes"],
        "MFA_TOTP_ISSUER": ["My: Company", ":", "   "],
        "MFA_PUBLIC_URL": [
            "auth.example",
            "//auth.example",
            "ftp://auth.example",
            "javascript:alert(1)",
            "https://",
            "https://auth.example/",
            "https://auth.example?x=1",
            "https://auth.example#x",
            "https://[auth",
        ],
        "MFA_CORS_ORIGINS": [
            "*",
            "null",
            "shop.example",
            "https://shop.example/",
            "https://shop.example/path",
            "https://shop.example,*",
            "https://[shop",
        ],
        "MFA_DATABASE_URL": ["mfa.db", "mysql://db/mfa", "postgresql", "postgresql://db:port/mfa", "sqlite"],
        "MFA_REDIS_URL": [
            "cache",
            "http://cache",
            "redis",
            "redis://cache:port",
            "redis://a:6379,b:6379",
            "memory://",
            "redis+cluster://",
            "redis+cluster://a.example",
            "redis+cluster://a.example:6379,b.example",
            "redis+cluster://a.example:6379/1",
            "redis+cluster://:p@ss@a.example:6379",
            "redis+cluster://a.example:6379?ssl=true",
            "redis+sentinel://a.example:26379",
            "redis+sentinel://a.example:26379/",
            "redis+sentinel://a.example/mymaster",
            "redis+sentinel://a.example:26379/mymaster/0",
        ],
        "JWT_SECRET": ["changeme", "changeme" * 4, "A" * 32, "short", "x" * 31],
    }.items(),
)
def test_a_value_that_does_not_do_is_refused_by_name(name: str, values: list[object]) -> None:
    for value in filter(None, values):
        with pytest.raises(ConfigurationError) as refusal:
            Settings.load({name: value}, needs_keys=False)
        assert [problem.split()[0] for problem in refusal.value.problems if problem.split()[0] != name] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MFA_AUTH_RATE_LIMIT", rate) for rate in ("5 per 15 minutes", "5/15minutes", "100 per 1 second", "1/day")),
        *(("MFA_PUBLIC_URL", url) for url in ("https://auth.example", "http://[::1]:8000", "https://a.example/x/y")),
        *(("MFA_BCRYPT_COST", cost) for cost in (10, 12, 16)),
        *(("MFA_TOTP_WINDOW", window) for window in (0, 1, 2)),
        *(("MFA_PASSWORD_MIN_LENGTH", length) for length in (8, 15, 64)),
        *(("MFA_SESSION_IDLE_SECONDS", seconds) for seconds in (3600, 86400, 31536000)),
        *(("MFA_SESSION_SECONDS", seconds) for seconds in (3600, 2592000, 31536000)),
        *(("MFA_DEVICE_SECONDS", seconds) for seconds in (0, 1, 2592000)),
    ],
)
def test_a_value_within_its_bounds_is_taken(name: str, value: object) -> None:
    assert Settings.load({name: value}, needs_keys=False)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "MFA_TOTP_WINDOW": "3",
        "MFA_BCRYPT_COST": "twelve",
        "MFA_HASHING_QUEUE": "many",
        "MFA_PUBLIC_URL": "auth.example",
        "JWT_SECRET": "changeme",
        "MFA_REGISTRATION_OPEN": "maybe",
        "MFA_INSTANCE": "/nonexistent",
    }
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load(wrong)
    problems = refusal.value.problems
    for name in set(wrong) - {"MFA_INSTANCE"}:
        assert sum(problem.startswith(name) for problem in problems) == 1, (name, problems)
    assert any("no keyring" in problem for problem in problems)
    assert len(problems) == 7


@pytest.mark.parametrize(
    ("first", "second"), [("MFA_KEYS", "MFA_KEYRING"), ("JWT_SECRET", "MFA_SIGNING_KEYS")], ids=["keyring", "signing"]
)
def test_two_sources_of_one_key_contradict_each_other(first: str, second: str) -> None:
    source = {first: GOOD_SECRET, second: "/run/secrets/x"}
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load(source, needs_keys=False)
    [problem] = refusal.value.problems
    assert first in problem
    assert second in problem


# ── weak keys ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "changeme",
        "x" * 31,
        "A" * 32,
        "A" * 1000,
        "0" * 64,
        "\0" * 32,
        "changeme" * 4,
        "changeme" * 40,
        "changeme-changeme-changeme-changeme",
        "ChangeMe-SECRET-Password-Example!",
        "secretsecretsecretsecretsecretsecret",
        "passwordpasswordpasswordpassword",
        "0123456789abcdef" * 2,
        "0123456789" * 4,
        "01234567890123456789012345678901",
        "abcdefghijklmabcdefghijklmabcdefghijklm",
        "abcdefghijklmabcdefghijklmabcdefg",
        "your-256-bit-secret-your-256-bit-secret",
        "a-string-secret-at-least-256-bits-long",
    ],
    ids=lambda secret: ascii(secret)[:40],
)
def test_short_repeated_and_example_secrets_are_weak(secret: str) -> None:
    assert weakness_of_secret(secret)
    assert weakness_of_secret(secret.encode())


def test_random_secrets_are_not_weak() -> None:
    for _ in range(1000):
        assert weakness_of_secret(secrets.token_bytes(32)) is None
        assert weakness_of_secret(secrets.token_hex(32)) is None
        assert weakness_of_secret(secrets.token_urlsafe(32)) is None


@pytest.mark.parametrize(
    "redis", ["memcached://hunter2@cache", "redis+cluster://:hunter2@cache", "redis+sentinel://:hunter2@cache:1"]
)
def test_the_reason_never_quotes_the_secret(redis: str) -> None:
    for secret in ("hunter2", "hunter2" * 5, "changeme" * 4):
        assert secret not in (weakness_of_secret(secret) or "")
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load(
            {
                "JWT_SECRET": "hunter2",
                "MFA_KEYS": "hunter2",
                "MFA_DATABASE_URL": "mysql://hunter2@db/mfa",
                "MFA_REDIS_URL": redis,
            },
            needs_keys=False,
        )
    assert "hunter2" not in str(refusal.value)


def test_the_end_of_the_line_that_a_file_leaves_is_no_part_of_a_value() -> None:
    source = {"MFA_DATABASE_URL": "postgresql://mfa@db/mfa\n", "MFA_TOTP_ISSUER": "Us\r\n", "MFA_REDIS_URL": "\n"}
    loaded = Settings.load(source, needs_keys=False)
    assert (loaded.database_url, loaded.totp_issuer, loaded.redis_url) == ("postgresql://mfa@db/mfa", "Us", None)


# ── keys and start ───────────────────────────────────────────────────────────────────────────────


def test_without_keys_nothing_starts_and_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Settings.load({"MFA_INSTANCE": str(tmp_path)})
    assert len(refusal.value.problems) == 2
    assert all("flask mfa init" in problem for problem in refusal.value.problems)
    assert Settings.load({"MFA_INSTANCE": str(tmp_path)}, needs_keys=False)


def test_keys_may_come_by_the_environment_alone(tmp_path: Path) -> None:
    source = {"MFA_INSTANCE": str(tmp_path), "MFA_KEYS": new_keyring_text(), "JWT_SECRET": GOOD_SECRET}
    assert Settings.load(source)


@pytest.mark.parametrize("key", [b"A" * 32, b"changeme" * 4, bytes(32), b"short"])
def test_a_weak_key_in_the_keyring_stops_the_start(make_app: Callable[..., Flask], key: bytes) -> None:
    text = json.dumps({"keys": [{"id": "k1", "key": base64.urlsafe_b64encode(key).decode()}]})
    with pytest.raises(ConfigurationError, match="k1"):
        make_app(MFA_KEYS=text)


def test_another_keyring_than_the_one_of_the_database_stops_the_start(
    make_app: Callable[..., Flask], config: dict[str, Any]
) -> None:
    make_app()  # the first start leaves the canary
    assert started(config | {"MFA_BCRYPT_COST": 10}) == (0, "")
    status, said = started(config | {"MFA_BCRYPT_COST": 10, "MFA_KEYS": new_keyring_text()})
    assert status == 4
    assert "the keyring is not the one this database was sealed with" in said


def test_a_process_that_can_not_start_says_all_that_is_wrong_and_no_traceback(config: dict[str, Any]) -> None:
    status, said = started(config | {"MFA_TOTP_WINDOW": "3", "MFA_BCRYPT_COST": "9"})
    assert status == 4
    assert "MFA_TOTP_WINDOW" in said
    assert "MFA_BCRYPT_COST" in said
    assert "Traceback" not in said


def test_a_cost_under_ten_is_for_tests_alone(make_app: Callable[..., Flask]) -> None:
    make_app(MFA_BCRYPT_COST=4, TESTING=True)
    make_app(MFA_BCRYPT_COST=10, TESTING=False)
    with pytest.raises(ConfigurationError, match="MFA_BCRYPT_COST must be between 10 and 16"):
        make_app(MFA_BCRYPT_COST=9, TESTING=False)


@pytest.mark.parametrize("name", ["TESTING", "MFA_TESTING"])
def test_the_environment_makes_no_test_of_a_service(
    make_app: Callable[..., Flask], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    config.pop("TESTING")
    with pytest.raises(ConfigurationError, match="MFA_BCRYPT_COST"):
        make_app(MFA_BCRYPT_COST=9)


def test_of_the_environment_only_our_names_are_read() -> None:
    environment = {
        "MFA_TOTP_WINDOW": "1",
        "JWT_SECRET": "s",
        "TESTING": "1",
        "PATH": "/",
        "XMFA_KEYS": "x",
        "mfa_x": "",
    }
    assert from_environment(environment) == {"MFA_TOTP_WINDOW": "1", "JWT_SECRET": "s"}


def test_code_wins_over_the_environment(make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFA_TOTP_WINDOW", "1")
    monkeypatch.setenv("MFA_TOTP_ISSUER", "Environment")
    settings = make_app(MFA_TOTP_ISSUER="Code").extensions["mfa_service"].services.settings
    assert (settings.totp_window, settings.totp_issuer) == (1, "Code")


# ── what follows from them ───────────────────────────────────────────────────────────────────────


def test_a_printed_configuration_shows_no_secret() -> None:
    hidden = {
        "MFA_KEYS": "hunter2-keys",
        "JWT_SECRET": GOOD_SECRET,
        "MFA_DATABASE_URL": "postgresql://mfa:hunter2-database@db/mfa",
        "MFA_REDIS_URL": "redis://:hunter2-redis@cache/0",
    }
    settings = Settings.load(hidden, needs_keys=False)
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert "hunter2" not in shown
        assert GOOD_SECRET not in shown
        assert "totp_window=2" in shown


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().totp_window = 0  # type: ignore[misc]


def test_files_are_looked_for_in_the_instance_folder_unless_they_are_named(tmp_path: Path) -> None:
    plain = Settings(instance=tmp_path)
    assert plain.keyring_file == tmp_path / "keyring.json"
    assert plain.signing_folder == tmp_path / "signing-keys"
    assert plain.database == f"sqlite:///{tmp_path / 'mfa.db'}"
    named = Settings(instance=tmp_path, keyring=Path("/k.json"), signing_keys=Path("/keys"))
    assert (named.keyring_file, named.signing_folder) == (Path("/k.json"), Path("/keys"))


def test_the_instance_folder_is_absolute_wherever_the_process_goes() -> None:
    assert Settings(instance=Path("instance")).folder == Path.cwd() / "instance"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_reached_by_psycopg_3(scheme: str) -> None:
    assert Settings(database_url=f"{scheme}://u:p@db/mfa").database == "postgresql+psycopg://u:p@db/mfa"


def test_other_databases_are_left_as_they_are() -> None:
    assert Settings(database_url="sqlite:////srv/mfa.db").database == "sqlite:////srv/mfa.db"


def test_a_database_in_memory_stops_the_start(make_app: Callable[..., Flask]) -> None:
    for address in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigurationError, match="MFA_DATABASE_URL"):
            make_app(MFA_DATABASE_URL=address)


def test_the_hosts_that_are_answered_are_the_public_one_loopback_and_those_named() -> None:
    loopback = {"localhost", "127.0.0.1"}
    assert set(Settings(public_url="https://auth.example:8443/x").hosts) >= {"auth.example"} | loopback
    assert set(Settings(allowed_hosts=("a.example",)).hosts) >= {"a.example"} | loopback
    assert "b.example" not in Settings(allowed_hosts=("a.example",)).hosts


def started(config: Mapping[str, Any]) -> tuple[int, str]:
    """Load the service as gunicorn does, in a process of its own; its exit code and what it said."""
    ours = {name: str(value) for name, value in config.items() if name != "TESTING"}
    rest = {name: value for name, value in os.environ.items() if not name.startswith("MFA_") and name != "JWT_SECRET"}
    finished = subprocess.run(
        [sys.executable, "-c", "import wsgi"], cwd=ROOT, env=rest | ours, capture_output=True, text=True, check=False
    )
    return finished.returncode, finished.stderr
