"""`flask mfa …` as an operator types it: in a process of its own, with nothing but the environment."""

import contextlib
import json
import os
import re
import secrets
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mfa_service.crypto.chain import new_seal_key_pem
from mfa_service.crypto.keyring import new_keyring_text, with_new_key
from mfa_service.crypto.signing import file_name
from tests.shell import Done, flask_mfa

Run = Callable[..., Done]
STRONG = "Zk3v9Qp1Lr7Xw5Tb8Nc2Hs6Jd4Gf0MyAeUi"


def test_init_makes_keys_that_only_their_owner_can_read(flask: Run, instance_folder: Path) -> None:
    flask("init")
    made = [path for path in instance_folder.rglob("*") if path.is_file()]
    assert len(made) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert stat.S_IMODE(instance_folder.stat().st_mode) == 0o700


def test_init_never_overwrites(flask: Run, instance_folder: Path) -> None:
    flask("init")
    before = {path: path.read_bytes() for path in instance_folder.rglob("*") if path.is_file()}
    assert "kept" in flask("init").stdout
    assert {path: path.read_bytes() for path in instance_folder.rglob("*") if path.is_file()} == before


def test_init_makes_the_folders_that_settings_name(flask: Run, tmp_path: Path) -> None:
    flask("init", MFA_KEYRING=str(tmp_path / "far" / "away" / "ring.json"))
    assert json.loads((tmp_path / "far" / "away" / "ring.json").read_text())["keys"]


def test_init_makes_no_signing_key_beside_a_shared_secret(flask: Run, instance_folder: Path) -> None:
    flask("init", JWT_SECRET=STRONG)
    assert not (instance_folder / "signing-keys").exists()


def test_upgrade_needs_no_keys_and_keeps_the_database_private(flask: Run, instance_folder: Path) -> None:
    instance_folder.mkdir()
    assert "revision 0004" in flask("upgrade").stdout
    assert stat.S_IMODE((instance_folder / "mfa.db").stat().st_mode) == 0o600


def test_upgrade_says_in_a_line_that_the_database_is_not_there(flask: Run) -> None:
    answer = flask("upgrade", code=1, MFA_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert answer.stderr.startswith("error: the database can't be reached")
    assert len(answer.stderr.splitlines()) == 1


def test_prune_says_in_a_line_that_there_is_nothing_to_prune_in(flask: Run, instance_folder: Path) -> None:
    flask("init")
    answer = flask("prune", code=1)
    assert answer.stderr.splitlines()[-1].startswith("error: the database is locked, full, read-only or not migrated")
    assert stat.S_IMODE((instance_folder / "mfa.db").stat().st_mode) == 0o600


def test_a_doctor_is_content_with_what_init_and_upgrade_made(flask: Run) -> None:
    flask("init")
    flask("upgrade")
    report = flask("doctor").stdout
    assert "database: sqlite at revision 0004" in report
    assert "error" not in report


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"JWT_SECRET": "changeme" * 8}, "JWT_SECRET repeats itself"),
        ({"MFA_BCRYPT_COST": "9"}, "MFA_BCRYPT_COST must be between 10 and 16"),
        ({"MFA_PUBLIC_URL": "http://auth.example"}, "MFA_PUBLIC_URL is http"),
        ({"WEB_CONCURRENCY": "4"}, "counts in memory"),
        ({"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY must be a whole number between 1 and 1000"),
        ({"PORT": "99999"}, "PORT must be a whole number between 1 and 65535"),
        ({"GUNICORN_MAX_REQUESTS": "-1"}, "GUNICORN_MAX_REQUESTS must be a whole number"),
        ({"MFA_METRICS": "::1", "PROMETHEUS_MULTIPROC_DIR": "/nowhere"}, "is no folder that can be written to"),
        ({"MFA_REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis counts nothing: Error 111 connecting"),
        ({"MFA_REDIS_URL": "http://127.0.0.1"}, "MFA_REDIS_URL must be an address such as"),
        ({"MFA_DATABASE_URL": "mysql://root:hunter2@db/x"}, "MFA_DATABASE_URL must be an address such as"),
        ({"MFA_DATABASE_URL": "postgresql://nobody:hunter2@127.0.0.1:1/none"}, "database: can't be reached"),
    ],
)  # fmt: skip
def test_a_doctor_finds_what_would_go_wrong(flask: Run, settings: dict[str, str], said: str) -> None:
    flask("init")
    flask("upgrade")
    report = flask("doctor", code=1, **settings).stdout
    assert any(line.startswith("error") and said in line for line in report.splitlines()), report
    assert "hunter2" not in report


@pytest.mark.services
def test_a_doctor_says_what_redis_says_against_it(flask: Run, redis: str) -> None:
    flask("init")
    flask("upgrade")
    address = redis.replace("//", "//:hunter2@").replace("/0", "/99")
    report = flask("doctor", code=1, MFA_REDIS_URL=address).stdout
    assert re.search("^error +limiter: Redis counts nothing: .*DB index is out of range", report, re.M), report
    assert "hunter2" not in report


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "MFA_TOTP_WINDOW is 2"),
        ({"JWT_SECRET": STRONG}, "HS256"),
        ({"MFA_TOTP_WINDW": "1"}, "MFA_TOTP_WINDW is not a setting; did you mean MFA_TOTP_WINDOW?"),
        ({"MFA_PUBLIC_URL": "https://auth.example"}, "MFA_TRUSTED_PROXIES is 0"),
    ],
)
def test_a_doctor_says_what_deviates_from_the_stricter_standards(
    flask: Run, settings: dict[str, str], said: str
) -> None:
    flask("init")
    flask("upgrade")
    report = flask("doctor", **settings).stdout
    assert any(line.startswith("warning") and said in line for line in report.splitlines()), report


def test_a_doctor_reminds_of_keys_that_are_due(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    keyring = instance_folder / "keyring.json"
    [signing], [seal] = ((instance_folder / name).glob("*.pem") for name in ("signing-keys", "seal-keys"))
    day = 86400
    for path, years in ((keyring, 1), (seal, 3)):
        os.utime(path, (time.time() - years * 365 * day + 3600,) * 2)
    signing = signing.rename(signing.with_name(file_name(time.time() - 365 * day + 3600)))
    assert "has been in use" not in flask("doctor").stdout
    for path, years in ((keyring, 1), (seal, 3)):
        os.utime(path, (time.time() - years * 365 * day - 3600,) * 2)
    signing.rename(signing.with_name(file_name(time.time() - 400 * day)))
    report = flask("doctor").stdout
    assert "warning keys: the keyring key has been in use for 365 days: run `flask mfa rotate-keys`" in report
    assert "warning keys: the signing key has been in use for 400 days: run `flask mfa new-signing-key`" in report
    assert "warning keys: the seal key has been in use for 1095 days: put a new one in, and restart" in report


def test_a_doctor_is_content_when_they_were_changed_and_old_ones_are_still_there(
    flask: Run, instance_folder: Path
) -> None:
    flask("init")
    flask("upgrade")
    old = time.time() - 2000 * 86400
    for path in instance_folder.rglob("*.pem"):
        os.utime(path, (old, old))
    [signing] = (instance_folder / "signing-keys").glob("*.pem")
    signing.rename(signing.with_name(file_name(old)))
    flask("new-signing-key")
    (instance_folder / "seal-keys" / "ed25519-2.pem").write_bytes(new_seal_key_pem())
    (instance_folder / "seal-keys" / "ed25519-2.pem").chmod(0o600)
    keyring = instance_folder / "keyring.json"
    keyring.write_text(with_new_key(keyring.read_text(), active_from=time.time() - 60))
    os.utime(keyring, (old, old))
    assert "has been in use" not in flask("doctor").stdout
    keyring.write_text(with_new_key(keyring.read_text(), active_from=old))
    assert "the keyring key has been in use for 2000 days" in flask("doctor").stdout


def test_a_doctor_does_not_guess_the_age_of_what_stands_in_the_environment(flask: Run) -> None:
    keys = new_keyring_text()
    environment = {"MFA_KEYS": keys, "JWT_SECRET": secrets.token_urlsafe(48)}
    flask("init", **environment)
    flask("upgrade", **environment)
    assert "has been in use" not in flask("doctor", **environment).stdout
    dated = with_new_key(keys, active_from=time.time() - 366 * 86400)
    assert "the keyring key has been in use for 366 days" in flask("doctor", **environment | {"MFA_KEYS": dated}).stdout


def test_a_doctor_notices_a_database_that_is_not_migrated(flask: Run) -> None:
    flask("init")
    assert "is at revision None, not 0004: run `flask mfa upgrade`" in flask("doctor", code=1).stdout


def test_a_doctor_notices_another_keyring(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    assert "not yet sealed by any keyring" in flask("doctor").stdout  # and a look does not seal it
    assert "not yet sealed by any keyring" in flask("doctor").stdout
    start = [sys.executable, "-c", "from mfa_service import create_app; create_app()"]
    subprocess.run(start, env={"PATH": os.environ["PATH"], "MFA_INSTANCE": str(instance_folder)}, check=True)
    assert "opened by this keyring" in flask("doctor").stdout
    (instance_folder / "keyring.json").unlink()
    flask("init")
    assert "the keyring is not the one this database was sealed with" in flask("doctor", code=1).stdout


def test_a_doctor_notices_keys_that_others_can_read(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    (instance_folder / "keyring.json").chmod(0o644)
    assert "can be read by others" in flask("doctor", code=1).stdout
    (instance_folder / "keyring.json").chmod(0o440)
    report = flask("doctor").stdout
    assert re.search("^warning +keys: .*keyring.json can be read by this service's group", report, re.M), report


def test_a_doctor_can_be_strict_for_a_scheduler(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    choices = {
        "MFA_PUBLIC_URL": "https://auth.example",
        "MFA_SEAL_SECONDS": "0",
        "MFA_TOKEN_LOCATIONS": "header,cookie",
    }
    report = flask("doctor", "--strict", **choices).stdout
    for subject in ("standards", "proxy", "seals", "registration"):
        assert re.search(f"^warning +{subject}: ", report, re.M), "a choice is none of a scheduler's business"
    (instance_folder / "keyring.json").chmod(0o440)
    assert "warning keys" in flask("doctor", "--strict", code=1).stdout


def test_an_older_version_gets_on_with_a_newer_schema(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    with contextlib.closing(sqlite3.connect(instance_folder / "mfa.db")) as database, database:
        database.execute("UPDATE mfa_alembic_version SET version_num = '9999'")
    assert "is at revision 9999, of a newer version: left as it is" in flask("upgrade").stdout
    report = flask("doctor").stdout
    assert re.search("^warning +database: is at revision 9999, of a newer version than this one$", report, re.M), report
    assert re.search("^ok +database: ", report, re.M), "and it is looked at all the same"


def test_keys_that_can_not_be_written_are_a_line_and_no_traceback(flask: Run, instance_folder: Path) -> None:
    flask("init")
    flask("upgrade")
    draft = instance_folder / ".keyring.json.new"
    draft.mkdir()  # root, too, writes no file there
    assert f"error: {draft}: Is a directory" in flask("rotate-keys", code=1).stderr


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def instance_folder(tmp_path: Path) -> Path:
    return tmp_path / "instance"


@pytest.fixture
def flask(instance_folder: Path, tmp_path: Path) -> Run:
    """Run `flask mfa <command>` with these settings and expect this exit code."""

    def run(*words: str, code: int = 0, **settings: str) -> Done:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "MFA_INSTANCE": str(instance_folder),
        } | settings
        answer = flask_mfa(*words, environment=environment, folder=tmp_path)
        assert answer.returncode == code, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
        return answer

    return run
