"""`flask mfa import-users` and `export-users`, as an operator types them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from werkzeug.security import generate_password_hash

from mfa_service.config import Settings
from mfa_service.errors import InvalidCredentials
from mfa_service.services import Services
from mfa_service.services.factors import Proof
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import ROOT
from tests.crypto.test_foreign import HASHES
from tests.crypto.test_foreign import PASSWORD as THEIRS
from tests.factories import totp
from tests.services import CLIENT
from tests.shell import Done, flask_mfa

Run = Callable[..., Done]
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
CHEAP = generate_password_hash("swordfish-1843", "pbkdf2:sha256:1")


def test_people_of_every_kind_log_in_with_what_they_had_and_are_hashed_anew(
    flask: Run, services: Services, people: Path
) -> None:
    write(people, [row(f"user{number}", hashed) for number, hashed in enumerate(HASHES.values())])
    assert "15 accounts brought" in flask("import-users", str(people), "--yes").stderr
    for number in range(len(HASHES)):
        before = stored(services, f"user{number}")
        assert isinstance(services.login.begin(f"user{number}", THEIRS, CLIENT), MFAPending)
        assert stored(services, f"user{number}") != before
        assert isinstance(services.login.begin(f"user{number}", THEIRS, CLIENT), MFAPending)
    assert count(services, "mfa_events WHERE event = 'password.rehashed'") == len(HASHES)


def test_the_second_factor_comes_along(flask: Run, services: Services, people: Path) -> None:
    write(people, [row("ada", CHEAP, totp_secret=SECRET.lower(), roles="staff admin")])
    flask("import-users", str(people), "--yes")
    pending = services.login.begin("ada", "swordfish-1843", CLIENT)
    assert isinstance(pending, MFAPending)
    assert pending.methods == ("totp",)
    code = totp(SECRET, int(services.clock()) // 30)
    assert isinstance(services.login.complete(pending.token, Proof("totp", code), CLIENT), SignedIn)
    assert services.directory.show(services.directory.find_id("ada") or "").entry.roles == ("admin", "staff")


def test_a_dry_run_names_what_is_wrong_and_brings_nobody(flask: Run, services: Services, people: Path) -> None:
    rows = [
        row("good", CHEAP),
        row("good", CHEAP),
        row("no hash", CHEAP),
        row("weak", "5f4dcc3b5aa765d61d8327deb882cf99"),
        row("odd", CHEAP, totp_secret="1"),
        row("short", CHEAP, totp_secret="JBSWY3DP"),
        row("mail", CHEAP, email="nowhere"),
        row("role", CHEAP, roles="Admin!"),
        {"username": "number", "email": 1, "password_hash": CHEAP},
    ]
    write(people, rows)
    with people.open("a") as file:
        file.write("[1]\n{broken\n")
    report = people.with_name("report")
    answer = flask("import-users", str(people), "--dry-run", "--report", str(report), code=1)
    assert "1 rows do, 10 are refused" in answer.stderr
    refused = {line["line"]: line["reason"] for line in map(json.loads, report.read_text().splitlines())}
    assert refused[2] == "username stands twice in the file"
    assert refused[4] == "password_hash is of no kind that can be verified here, or damaged"
    assert refused[5].startswith("totp_secret")
    assert refused[7].startswith("email")
    assert refused[10] == "is not a JSON object"
    assert CHEAP not in report.read_text() + answer.stderr
    assert count(services, "mfa_users") == 0


def test_csv_is_taken_as_well(flask: Run, services: Services, people: Path) -> None:
    with people.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["username", "email", "password_hash", "totp_secret"])
        writer.writeheader()
        writer.writerows(
            {"username": f"u{number}", "email": "u@example.com", "password_hash": CHEAP} for number in range(3)
        )
    flask("import-users", str(people), "--yes")
    assert isinstance(services.login.begin("u2", "swordfish-1843", CLIENT), MFAPending)


def test_who_is_there_already_is_left_alone(flask: Run, services: Services, people: Path) -> None:
    write(people, [row("ada", CHEAP)])
    flask("import-users", str(people), "--yes")
    before = stored(services, "ada")
    write(people, [row("ADA", HASHES["bcrypt"]), row("bob", CHEAP)])
    assert "1 accounts brought, 1 were there already" in flask("import-users", str(people), "--yes").stderr
    assert stored(services, "ada") == before


@pytest.mark.services
def test_a_hundred_thousand_are_brought_though_it_is_killed_on_the_way(
    flask: Run, services: Services, people: Path, environment: dict[str, str]
) -> None:
    kinds = [CHEAP, HASHES["bcrypt"], HASHES["django pbkdf2"], HASHES["argon2"], HASHES["sha512_crypt"]]
    write(people, [row(f"user{number}", kinds[number % len(kinds)], totp_secret=SECRET) for number in range(100_000)])
    command = [sys.executable, "-m", "flask", "mfa", "import-users", str(people), "--yes"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while count(services, "mfa_users") < 10_000:
            time.sleep(0.2)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    half = count(services, "mfa_users")
    assert 10_000 <= half < 100_000
    assert (
        f"{100_000 - half} accounts brought, {half} were there already"
        in flask("import-users", str(people), "--yes").stderr
    )
    assert count(services, "mfa_users") == count(services, "mfa_secrets") == 100_000
    assert isinstance(services.login.begin("user99999", THEIRS, CLIENT), MFAPending)


def test_what_was_exported_can_be_brought_back(flask: Run, services: Services, people: Path, tmp_path: Path) -> None:
    write(people, [row("ada", CHEAP, totp_secret=SECRET, roles="staff"), row("bob", HASHES["argon2"])])
    flask("import-users", str(people), "--yes")
    bare = flask("export-users").stdout
    assert CHEAP not in bare
    assert SECRET not in bare
    whole = flask("export-users", "--with-secrets", "--yes").stdout
    assert SECRET in whole
    assert count(services, "mfa_events WHERE event = 'users.exported'") == 2
    for table in ("mfa_secrets", "mfa_user_roles", "mfa_users"):
        services.unit.run(lambda it=table: services.session.execute(text(f"DELETE FROM {it}")), writes=True)
    people.write_text(whole)
    flask("import-users", str(people), "--yes")
    assert flask("export-users", "--with-secrets", "--yes").stdout.count(SECRET) == 1
    assert isinstance(services.login.begin("ada", "swordfish-1843", CLIENT), MFAPending)


def test_who_was_disabled_comes_back_disabled(flask: Run, services: Services, people: Path) -> None:
    write(people, [row("ada", CHEAP, disabled="yes"), row("bob", CHEAP), of_host("7", "eve", disabled="yes")])
    flask("import-users", str(people), "--yes")
    assert count(services, "mfa_users WHERE disabled_at IS NOT NULL") == 2
    with pytest.raises(InvalidCredentials):
        services.login.begin("ada", "swordfish-1843", CLIENT)
    with pytest.raises(InvalidCredentials):
        services.login.continue_for("7", username="eve", client=CLIENT)
    assert isinstance(services.login.begin("bob", "swordfish-1843", CLIENT), MFAPending)


@pytest.mark.parametrize(("column", "value"), [("disabled", "no"), ("external_id", 0), ("external_id", False)])
def test_a_value_that_could_mean_anything_is_refused(
    flask: Run, services: Services, people: Path, column: str, value: object
) -> None:
    people.write_text(json.dumps(row("ada", CHEAP) | {column: value}) + "\n")
    assert column in flask("import-users", str(people), "--yes", code=1).stderr
    assert count(services, "mfa_users") == 0


def test_secrets_are_given_out_only_after_two_questions(flask: Run, services: Services) -> None:
    assert "Aborted" in flask("export-users", "--with-secrets", code=1, typed="y\nn\n").stderr
    assert count(services, "mfa_events WHERE event = 'users.exported'") == 0


# ── users of a host ──────────────────────────────────────────────────────────────────────────────


def test_users_of_a_host_come_with_their_id_and_their_authenticator(
    flask: Run, services: Services, people: Path
) -> None:
    write(people, [of_host("7", "ada", totp_secret=SECRET, roles="staff"), of_host("8", "ada"), row("ada", CHEAP)])
    assert "3 accounts brought" in flask("import-users", str(people), "--yes").stderr
    pending = services.login.continue_for("7", username="ada", client=CLIENT)
    assert isinstance(pending, MFAPending)
    assert pending.methods == ("totp",)
    code = totp(SECRET, int(services.clock()) // 30)
    assert isinstance(services.login.complete(pending.token, Proof("totp", code), CLIENT), SignedIn)
    other = services.login.continue_for("8", username="ada", client=CLIENT)
    assert isinstance(other, MFAPending)
    assert other.methods == ()
    assert count(services, "mfa_users") == 3
    assert count(services, "mfa_events WHERE event = 'user.imported'") == 3
    assert count(services, "mfa_events WHERE event = 'user.linked'") == 0


def test_an_id_is_brought_once_whatever_the_name(flask: Run, services: Services, people: Path) -> None:
    write(people, [of_host("7", "ada", totp_secret=SECRET)])
    flask("import-users", str(people), "--yes")
    services.login.continue_for("8", username="bob", client=CLIENT)
    write(people, [of_host("7", "countess"), of_host("8", "bob"), of_host("9", "ada")])
    assert "1 accounts brought, 2 were there already" in flask("import-users", str(people), "--yes").stderr
    assert count(services, "mfa_users WHERE username = 'countess'") == 0
    assert count(services, "mfa_secrets") == 1


def test_a_row_of_a_host_that_does_not_do_is_refused_with_its_reason(
    flask: Run, services: Services, people: Path
) -> None:
    rows = [
        of_host("7", "ada"),
        of_host("7", "another name"),
        of_host("8", "ada", password_hash=CHEAP),
        {"external_id": 9, "username": "ada", "email": ""},
        of_host("a\nb", "ada"),
        of_host("x" * 256, "ada"),
        of_host("10", ""),
        of_host("11", "ada", totp_secret="1"),
        of_host("12", "ada", roles="Staff!"),
    ]
    write(people, rows)
    report = people.with_name("report")
    answer = flask("import-users", str(people), "--dry-run", "--report", str(report), code=1)
    assert "1 rows do, 8 are refused" in answer.stderr
    refused = {line["line"]: line["reason"] for line in map(json.loads, report.read_text().splitlines())}
    assert refused[2] == "external_id stands twice in the file"
    assert refused[3] == "password_hash must be empty where the user is a host's"
    assert refused[4] == "external_id must be text"
    assert all(refused[line].startswith("external_id is none") for line in (5, 6))
    assert refused[7].startswith("username")
    assert refused[8].startswith("totp_secret")
    assert count(services, "mfa_users") == 0


def test_names_of_a_host_may_be_what_no_account_of_ours_could_be_called(
    flask: Run, services: Services, people: Path
) -> None:
    write(people, [of_host("7", "Ada Lovelace: Countess"), of_host("8", "ada@example.com", email="nowhere")])
    flask("import-users", str(people), "--yes")
    assert count(services, "mfa_users WHERE external_id IS NOT NULL AND sealed_password IS NULL") == 2


def test_a_table_may_hold_both_kinds(flask: Run, services: Services, people: Path) -> None:
    with people.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["external_id", "username", "email", "password_hash"])
        writer.writeheader()
        writer.writerow({"external_id": "7", "username": "ada", "email": "", "password_hash": ""})
        writer.writerow({"external_id": "", "username": "ada", "email": "a@example.com", "password_hash": CHEAP})
    assert "2 accounts brought" in flask("import-users", str(people), "--yes").stderr
    assert isinstance(services.login.begin("ada", "swordfish-1843", CLIENT), MFAPending)


def test_users_of_a_host_that_were_exported_can_be_brought_back(flask: Run, services: Services, people: Path) -> None:
    write(people, [of_host("7", "ada", totp_secret=SECRET, roles="staff"), of_host("8", "ada"), row("ada", CHEAP)])
    flask("import-users", str(people), "--yes")
    exported = [json.loads(line) for line in flask("export-users").stdout.splitlines()]
    assert sorted(each["external_id"] for each in exported) == ["", "7", "8"]
    whole = flask("export-users", "--with-secrets", "--yes").stdout
    for table in ("mfa_secrets", "mfa_user_roles", "mfa_users"):
        services.unit.run(lambda it=table: services.session.execute(text(f"DELETE FROM {it}")), writes=True)
    people.write_text(whole)
    assert "3 accounts brought" in flask("import-users", str(people), "--yes").stderr
    again = flask("export-users", "--with-secrets", "--yes").stdout
    assert contents(again) == contents(whole)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def row(username: str, password_hash: str, **more: Any) -> dict[str, Any]:
    return {"username": username, "email": "someone@example.com", "password_hash": password_hash} | more


def of_host(external_id: str, username: str, **more: Any) -> dict[str, Any]:
    return {"external_id": external_id, "username": username, "email": "someone@example.com"} | more


def contents(export: str) -> list[dict[str, Any]]:
    """What an export holds, but for when it came here."""
    rows = [json.loads(line) for line in export.splitlines()]
    return sorted(({**each, "created_at": ""} for each in rows), key=lambda each: str(each["external_id"]))


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))


def stored(services: Services, username: str) -> bytes:
    found: bytes = services.unit.run(
        lambda: services.session.scalar(
            text("SELECT sealed_password FROM mfa_users WHERE username = :name"), {"name": username}
        ),
        writes=False,
    )
    return found


def count(services: Services, what: str) -> int:
    return int(
        services.unit.run(lambda: services.session.scalar(text(f"SELECT count(*) FROM {what}")), writes=False) or 0
    )


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return tmp_path / "people"


@pytest.fixture
def environment(instance: Path, _migrated_sqlite: Path, tmp_path: Path) -> dict[str, str]:
    import shutil

    shutil.copy(_migrated_sqlite, tmp_path / "mfa.db")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
    own = {
        "MFA_INSTANCE": str(instance),
        "MFA_DATABASE_URL": f"sqlite:///{tmp_path / 'mfa.db'}",
        "MFA_BCRYPT_COST": "10",
    }
    return kept | own | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def flask(environment: dict[str, str]) -> Run:
    def run(*arguments: str, code: int = 0, typed: str = "") -> Done:
        done = flask_mfa(*arguments, environment=environment, typed=typed)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def services(environment: dict[str, str]) -> Any:
    settings = Settings.load({**environment, "TESTING": True, "MFA_BCRYPT_COST": 4, "MFA_SEALS_OUTPUT": "none"})
    made = Services(settings, create_engine(settings.database), time.time)
    yield made
    made.close()
