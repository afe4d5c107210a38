"""Every command of `flask mfa`, as an operator types it: what it does, what it prints, and how it says no.

One instance with an administrator is made for all of these tests; each works on a copy of it.
"""

import csv
import getpass
import io
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from mfa_service.config import Settings
from mfa_service.services import Services
from mfa_service.services.login import MFAPending
from tests.factories import PASSWORD, Person
from tests.services import CLIENT, identity_of, register, sign_in, totp, trust_device
from tests.shell import Done, flask_mfa

Run = Callable[..., Done]

ACTOR = f"cli:{getpass.getuser()}"
GROUP = (
    "after-restore", "audit", "compliance", "create-admin", "delete", "disable", "doctor", "enable", "end-sessions",
    "init", "list", "new-signing-key", "policy", "prune", "require-mfa", "reset-mfa", "retire-key", "revoke-all",
    "rotate-keys", "set-role", "show", "unlock", "upgrade",
)  # fmt: skip
PARTS = {"policy": ("enforce", "preview", "set", "show"), "audit": ("export", "prune", "seal", "search", "verify")}

# ── help ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_help_lists_every_command_with_what_it_is_for(flask: Run) -> None:
    assert set(GROUP) <= explained(flask("--help").stdout)


@pytest.mark.parametrize("group", PARTS)
def test_the_help_of_a_group_lists_its_commands_with_what_they_are_for(flask: Run, group: str) -> None:
    assert set(PARTS[group]) <= explained(flask(group, "--help").stdout)


# ── administrators ───────────────────────────────────────────────────────────────────────────────


def test_create_admin_shows_a_code_to_scan_and_a_key_to_type_that_let_in(
    flask: Run, services: Services, log: "Log"
) -> None:
    said = flask("create-admin", "grace", "--email", "grace@example.com", "--password-stdin", typed=PASSWORD).stdout
    assert "▀" in said or "█" in said
    key = re.search(r"key for typing: ([A-Z2-7 ]+)", said)
    assert key
    sign_in(services, Person("grace", PASSWORD, "grace@example.com", key[1].replace(" ", "")))
    assert look(services, "grace")["is_administrator"]
    assert {"user.registered", "roles.changed"} <= log.events_by_us
    assert PASSWORD not in said


def test_create_admin_asks_for_what_was_not_said(flask: Run) -> None:
    said = flask("create-admin", "grace", typed=f"grace@example.com\n{PASSWORD}\n{PASSWORD}")
    assert "grace is an administrator" in said.stdout
    assert PASSWORD not in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("name", "email", "password", "said"),
    [
        ("grace", "grace@example.com", "password1", "error: "),
        ("grace", "nobody", PASSWORD, "email is not an e-mail address"),
        ("root", "grace@example.com", PASSWORD, "error: "),
    ],
    ids=["weak", "no address", "name taken"],
)
def test_create_admin_says_in_a_line_what_will_not_do(
    flask: Run, name: str, email: str, password: str, said: str
) -> None:
    answer = flask("create-admin", name, "--email", email, "--password-stdin", typed=password, code=1)
    assert said in only_line(answer)
    assert password not in answer.stdout + answer.stderr


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_accounts_as_a_table_and_as_json(flask: Run, ada: Person) -> None:
    assert re.search(r"│ ada +│ someone@example\.com", flask("list").stdout)
    listed = json.loads(flask("list", "--json").stdout)
    assert {row["username"] for row in listed} == {"root", "ada"}
    assert {row["username"]: row["roles"] for row in listed} == {"root": ["admin"], "ada": []}


@pytest.mark.parametrize("name", ["[/x]", "[conceal]ada"])
def test_a_name_is_shown_as_it_stands(flask: Run, services: Services, name: str) -> None:
    register(services, name)
    for words in (["list"], ["show", name], ["compliance"]):
        assert f" {name} " in flask(*words).stdout


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--begins-with", "AD"], ["ada"]),
        (["--role", "admin"], ["root"]),
        (["--mfa", "enabled"], ["ada"]),
        (["--mfa", "none"], ["root"]),
        (["--seen-before", "2020-01-01"], []),
        (["--limit", "1"], ["ada"]),
    ],
)
def test_list_shows_only_what_was_asked_for(flask: Run, ada: Person, words: list[str], names: list[str]) -> None:
    assert [row["username"] for row in json.loads(flask("list", "--json", *words).stdout)] == names


def test_show_takes_a_name_or_an_id_and_shows_nobodys_secret(flask: Run, ada: Person) -> None:
    shown = show(flask, "ada")
    assert show(flask, shown["id"]) == shown == show(flask, "ADA")
    assert (shown["username"], shown["mfa"], shown["recovery_codes_left"], shown["sessions"]) == (
        "ada",
        "enabled",
        10,
        1,
    )
    said = flask("show", "ada").stdout
    assert "recovery codes left" in said
    assert ada.secret not in said + json.dumps(shown)


@pytest.mark.parametrize(
    "words",
    [
        ["show"], ["unlock"], ["reset-mfa", "--reason", "x", "--yes"], ["disable", "--yes"], ["enable"],
        ["delete", "--yes"], ["end-sessions"], ["require-mfa"], ["set-role", "support"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_somebody_who_is_not_there_is_named_in_a_line(flask: Run, words: list[str], log: "Log") -> None:
    command, *rest = words
    assert "no user 'nobody'" in only_line(flask(command, "nobody", *rest, code=1))
    assert log.by_us == []


# ── changing accounts ────────────────────────────────────────────────────────────────────────────


def test_set_role_gives_a_role_and_takes_it_away(flask: Run, services: Services, ada: Person, log: "Log") -> None:
    flask("set-role", "ada", "support", "--reason", "new job")
    assert look(services, "ada")["roles"] == ("support",)
    flask("set-role", "ada", "support", "--remove")
    assert look(services, "ada")["roles"] == ()
    assert [(it["event"], it["detail"]["reason"]) for it in log.by_us] == [
        ("roles.changed", "new job"),
        ("roles.changed", ""),
    ]


@pytest.mark.parametrize(
    "words", [["set-role", "root", "admin", "--remove"], ["disable", "root", "--yes"], ["delete", "root", "--yes"]]
)
def test_the_last_administrator_stays(flask: Run, services: Services, words: list[str], log: "Log") -> None:
    assert "administrator" in only_line(flask(*words, code=1))
    assert look(services, "root")["is_administrator"]
    assert log.by_us == []


def test_unlock_forgets_failures(flask: Run, ada: Person, services: Services, log: "Log") -> None:
    for _ in range(5):
        with pytest.raises(Exception, match="Invalid"):
            services.login.begin("ada", "wrong", CLIENT)
    assert look(services, "ada")["counters"]
    flask("unlock", "ada", "--reason", "she called")
    assert look(services, "ada")["counters"] == ()
    assert log.events_by_us == {"user.unlocked"}


def test_reset_mfa_prints_a_ticket_that_enrols(flask: Run, ada: Person, services: Services, log: "Log") -> None:
    said = flask("reset-mfa", "ada", "--reason", "lost phone", typed="y").stdout
    ticket = re.search(r"^  (\S{43})$", said, re.MULTILINE)
    assert ticket
    pending = services.login.begin("ada", PASSWORD, CLIENT)
    assert isinstance(pending, MFAPending)
    phone = Person("ada", PASSWORD, ada.email, services.login.enrol(pending.token, CLIENT, ticket[1]).secret)
    services.login.complete(pending.token, totp(phone.code(time.time())), CLIENT)
    assert log.by_us[0]["event"] == "factor.removed"
    assert log.by_us[0]["detail"]["reason"] == "lost phone"
    assert ticket[1] not in json.dumps(log.by_us)


def test_reset_mfa_gives_the_ticket_to_a_script(flask: Run, ada: Person) -> None:
    given = json.loads(flask("reset-mfa", "ada", "--reason", "x", "--yes", "--json").stdout)
    assert set(given) == {"enrolmentTicket", "expiresIn"}
    assert given["expiresIn"] == 86400


def test_reset_mfa_wants_a_reason(flask: Run, ada: Person) -> None:
    assert "--reason" in flask("reset-mfa", "ada", "--yes", code=2).stderr


def test_disable_and_enable(flask: Run, ada: Person, services: Services, log: "Log") -> None:
    flask("disable", "ada", typed="y")
    assert look(services, "ada")["disabled_at"]
    assert look(services, "ada")["sessions"] == 0
    flask("enable", "ada")
    assert look(services, "ada")["disabled_at"] is None
    assert isinstance(services.login.begin("ada", PASSWORD, CLIENT), MFAPending)
    assert log.events_by_us == {"user.disabled", "user.enabled"}


def test_delete_removes_the_account_and_keeps_what_happened(flask: Run, ada: Person, log: "Log") -> None:
    flask("delete", "ada", typed="y")
    flask("show", "ada", code=1)
    assert log.events_by_us == {"user.deleted"}


@pytest.mark.parametrize(
    "words",
    [
        ["delete", "ada"], ["disable", "ada"], ["reset-mfa", "ada", "--reason", "x"], ["revoke-all", "--reason", "x"],
        ["after-restore"], ["policy", "enforce", "admin"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_whoever_does_not_say_yes_has_changed_nothing(flask: Run, ada: Person, words: list[str], folder: Path) -> None:
    before = everything_in(folder)
    flask(*words, typed="n", code=1)
    assert everything_in(folder) == before


def test_whoever_says_nothing_has_not_said_yes(flask: Run, ada: Person, folder: Path) -> None:
    before = everything_in(folder)
    flask("delete", "ada", code=1)
    assert everything_in(folder) == before


def test_end_sessions(flask: Run, ada: Person, services: Services, log: "Log") -> None:
    trust_device(services, ada, steps=1)
    assert (look(services, "ada")["sessions"], look(services, "ada")["devices"]) == (2, 1)
    flask("end-sessions", "ada")
    assert (look(services, "ada")["sessions"], look(services, "ada")["devices"]) == (0, 0)
    assert log.events_by_us == {"sessions.ended"}


def test_require_mfa_by_a_date_by_days_at_once_and_no_longer(
    flask: Run, services: Services, ada: Person, log: "Log"
) -> None:
    flask("policy", "set", "optional")
    flask("require-mfa", "ada", "--at", "2031-05-01")
    assert look(services, "ada")["deadline"] == datetime(2031, 5, 1, tzinfo=UTC)
    for words in (["--days", "14"], []):
        flask("require-mfa", "ada", *words)
        assert look(services, "ada")["own_rule"]
    flask("require-mfa", "ada", "--off")
    assert not look(services, "ada")["own_rule"]
    assert [it["event"] for it in log.by_us].count("requirement.changed") == 4


@pytest.mark.parametrize("words", [["require-mfa", "ada"], ["policy", "set", "required"], ["policy", "enforce", "x"]])
def test_a_date_and_days_at_once_are_a_slip_of_the_fingers(flask: Run, ada: Person, words: list[str]) -> None:
    answer = flask(*words, "--at", "2031-05-01", "--days", "3", code=2)
    assert "choose one" in answer.stderr


# ── policy ───────────────────────────────────────────────────────────────────────────────────────


def test_policy_shows_what_was_set(flask: Run, log: "Log") -> None:
    assert json.loads(flask("policy", "show", "--json").stdout)["mode"] == "required"
    flask("policy", "set", "optional", "--reason", "pilot")
    flask("policy", "enforce", "support", "--days", "7")
    shown = json.loads(flask("policy", "show", "--json").stdout)
    assert shown["mode"] == "optional"
    assert set(shown["roles"]) == {"support"}
    assert "support" in flask("policy", "show").stdout
    flask("policy", "enforce", "support", "--off")
    assert json.loads(flask("policy", "show", "--json").stdout)["roles"] == {}
    assert [it["event"] for it in log.by_us] == ["policy.changed"] * 3


def test_policy_set_says_beforehand_whom_it_concerns(flask: Run) -> None:
    flask("policy", "set", "optional")
    said = flask("policy", "set", "required", typed="y").stdout
    assert "1 accounts without a second factor must enrol, 1 of them at once" in said


def test_policy_preview_counts_and_changes_nothing(flask: Run, ada: Person, log: "Log") -> None:
    counted = json.loads(flask("policy", "preview", "required", "--json").stdout)
    assert (counted["required"], counted["late"]) == (1, 1)
    assert log.by_us == []


def test_compliance_as_a_table_as_json_and_as_csv(flask: Run, ada: Person) -> None:
    assert "enrolled" in flask("compliance").stdout
    numbers = json.loads(flask("compliance", "--json").stdout)
    assert (numbers["users"], numbers["enrolled"], numbers["late"]) == (2, 1, 1)
    rows = list(csv.DictReader(io.StringIO(flask("compliance", "--csv").stdout)))
    assert {row["username"] for row in rows} == {"root", "ada"}
    late = json.loads(flask("compliance", "--json", "--standing", "late").stdout)["items"]
    assert [row["username"] for row in late] == ["root"]


# ── bad days ─────────────────────────────────────────────────────────────────────────────────────


def test_revoke_all_ends_everything_and_counts_it(flask: Run, ada: Person, services: Services, log: "Log") -> None:
    trust_device(services, ada, steps=1)
    ended = json.loads(flask("revoke-all", "--reason", "stolen key", "--yes", "--json").stdout)
    assert ended == {"sessions": 2, "devices": 1, "challenges": 0, "tickets": 0}
    assert [(it["event"], it["detail"]["reason"]) for it in log.by_us] == [("trust.revoked", "stolen key")]
    assert "--reason" in flask("revoke-all", "--yes", code=2).stderr


def test_after_restore_uses_up_steps_and_codes_if_asked(
    flask: Run, services: Services, ada: Person, log: "Log"
) -> None:
    ended = json.loads(flask("after-restore", "--yes", "--json").stdout)
    assert (ended["sessions"], ended["authenticators"]) == (1, 2)
    assert "recovery_codes" not in ended
    assert "10" in flask("after-restore", "--burn-recovery-codes", typed="y").stdout
    assert look(services, "ada")["recovery_codes_left"] == 0
    assert log.events_by_us == {"backup.restored"}


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_rotate_keys_and_then_retire_the_old_one(flask: Run, ada: Person, folder: Path, log: "Log") -> None:
    (old,) = key_ids(folder)
    answer = flask("rotate-keys")
    new, kept = key_ids(folder)
    assert kept == old
    assert f"everything is sealed under {new}" in answer.stdout
    assert re.search(r"values sealed anew: 5 in [0-9.]+ s, [0-9]+/s", answer.stderr)
    time.sleep(1)
    assert "is needed by 1 sessions" in only_line(flask("retire-key", old, "--yes", code=1))
    flask("end-sessions", "ada")
    assert "lost" in flask("retire-key", old, typed="n", code=1).stdout
    assert key_ids(folder) == [new, old]
    flask("retire-key", old, typed="y")
    assert key_ids(folder) == [new]
    assert {"keys.rotated", "key.retired"} <= log.events_by_us


def test_rotate_keys_waits_until_a_replica_that_looked_a_moment_too_early_has_looked_again(
    flask: Run, ada: Person, folder: Path, log: "Log"
) -> None:
    interval = 2
    flask("rotate-keys", MFA_KEY_REREAD_SECONDS=str(interval))
    active_from = datetime.fromisoformat(json.loads((folder / "keyring.json").read_text())["keys"][0]["activeFrom"])
    (rotated,) = (datetime.fromisoformat(it["at"]) for it in log.by_us if it["event"] == "keys.rotated")
    assert rotated.replace(tzinfo=UTC) >= active_from + timedelta(seconds=interval)


def test_a_key_that_is_needed_newest_or_unknown_is_not_retired(flask: Run, ada: Person, folder: Path) -> None:
    (only,) = key_ids(folder)
    assert f"{only} is the newest key" in only_line(flask("retire-key", only, "--yes", code=1))
    assert "there is no key nonsense" in only_line(flask("retire-key", "nonsense", "--yes", code=1))
    assert key_ids(folder) == [only]


def test_a_new_signing_key_is_one_more_file_of_its_owners_alone(flask: Run, folder: Path) -> None:
    before = set((folder / "signing-keys").iterdir())
    time.sleep(1)  # names have seconds
    assert "signs in 2 s" in flask("new-signing-key").stdout
    (made,) = set((folder / "signing-keys").iterdir()) - before
    assert made.stat().st_mode & 0o777 == 0o600
    assert made.name > max(path.name for path in before)


def test_keys_that_are_no_files_are_not_changed_by_commands(flask: Run, folder: Path) -> None:
    ring = (folder / "keyring.json").read_text()
    for words in (["rotate-keys"], ["retire-key", "k1", "--yes"]):
        assert "MFA_KEYS" in only_line(flask(*words, code=1, MFA_KEYS=ring))
    assert "JWT_SECRET" in only_line(flask("new-signing-key", code=1, JWT_SECRET="Zk3v9Qp1Lr7Xw5Tb8Nc2Hs6Jd4Gf0MyAeUi"))


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Log:
    """The audit log as it stands in the database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = len(self._all())

    @property
    def by_us(self) -> list[dict[str, Any]]:
        """What was done from the terminal since the test began."""
        return [it for it in self._all()[self._begun :] if it["actor"] == ACTOR]

    @property
    def events_by_us(self) -> set[str]:
        return {it["event"] for it in self.by_us}

    def _all(self) -> list[dict[str, Any]]:
        connection = sqlite3.connect(self._path)
        rows = connection.execute("SELECT event, at, actor, detail FROM mfa_events ORDER BY id").fetchall()
        connection.close()
        names = ("event", "at", "actor", "detail")
        return [dict(zip(names, row, strict=True)) | {"detail": json.loads(row[-1])} for row in rows]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance with one administrator, `root`, who has not signed in yet."""
    folder = tmp_path_factory.mktemp("commands") / "instance"
    for words in (["init"], ["upgrade"]):
        assert type_in(folder, words).returncode == 0
    words = ["create-admin", "root", "--email", "root@example.com", "--password-stdin"]
    assert type_in(folder, words, typed=PASSWORD).returncode == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "instance"))


@pytest.fixture
def flask(folder: Path) -> Run:
    """Run `flask mfa <words>`, type what is `typed`, and expect this exit code; never a traceback."""

    def run(*words: str, typed: str = "", code: int = 0, **settings: str) -> Done:
        answer = type_in(folder, list(words), typed, settings)
        assert answer.returncode == code, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stdout + answer.stderr
        return answer

    return run


@pytest.fixture
def services(folder: Path) -> Iterator[Services]:
    """The service itself, on the same instance."""
    source = {"TESTING": True, "MFA_INSTANCE": str(folder), "MFA_BCRYPT_COST": 4, "MFA_SEALS_OUTPUT": "none"}
    settings = Settings.load(source)
    made = Services(settings, create_engine(settings.database), time.time)
    yield made
    made.close()


@pytest.fixture
def ada(services: Services) -> Person:
    """Somebody who has signed in once, with the code of two steps ago."""
    person = register(services)
    assert identity_of(services, sign_in(services, person, steps=-2))
    return person


@pytest.fixture
def log(folder: Path, request: pytest.FixtureRequest) -> Log:
    if "ada" in request.fixturenames:
        request.getfixturevalue("ada")
    return Log(folder / "mfa.db")


def type_in(folder: Path, words: list[str], typed: str = "", settings: dict[str, str] | None = None) -> Done:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder.parent),
        "MFA_INSTANCE": str(folder),
        "MFA_BCRYPT_COST": "10",
        "MFA_KEY_REREAD_SECONDS": "1",
    }
    return flask_mfa(
        *words,
        environment=environment | (settings or {}),
        folder=folder.parent,
        typed=f"{typed}\n" if typed else "",
    )


def explained(text: str) -> set[str]:
    """The commands that a help text lists together with a sentence."""
    return set(re.findall(r"^  ([a-z-]+) {2,}\S.*$", text.partition("Commands:")[2], re.MULTILINE))


def look(services: Services, user: str) -> dict[str, Any]:
    """An account as it is now, without asking a command."""
    user_id = services.directory.find_id(user)
    assert user_id
    profile = services.directory.show(user_id)
    return vars(profile) | {
        "is_administrator": "admin" in profile.entry.roles,
        "roles": profile.entry.roles,
        "disabled_at": profile.entry.user.disabled_at,
    }


def everything_in(folder: Path) -> list[str]:
    """All rows of all tables."""
    connection = sqlite3.connect(folder / "mfa.db")
    lines = list(connection.iterdump())
    connection.close()
    return lines


def show(flask: Run, user: str) -> dict[str, Any]:
    return dict(json.loads(flask("show", user, "--json").stdout))


def only_line(answer: Done) -> str:
    """What was said on standard error, all of it in one line that calls itself an error."""
    (line,) = answer.stderr.splitlines()
    assert line.lower().startswith("error: ")
    return line


def key_ids(folder: Path) -> list[str]:
    return [key["id"] for key in json.loads((folder / "keyring.json").read_text())["keys"]]
