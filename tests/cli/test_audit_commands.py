"""`flask mfa audit …` as an operator types it: in a process of its own, with nothing but the environment."""

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shell import Done, flask_mfa

Run = Callable[..., Done]
Database = sqlite3.Connection

TAMPERED = "tampered: events 1 to 5 (seal 1): changed, exchanged or reordered\n"

#: The id of an account that is gone.
GONE = "g" * 22


# ── seal and verify ──────────────────────────────────────────────────────────────────────────────


def test_sealing_says_how_much_it_sealed(flask: Run, log: Database) -> None:
    assert "0 seals over 0 events" in flask("seal").stderr
    write(log, 5)
    assert "1 seals over 5 events" in flask("seal").stderr
    assert "0 seals over 0 events" in flask("seal").stderr
    assert log.execute("SELECT number, first_id, last_id, count FROM mfa_seals").fetchall() == [(1, 1, 5, 5)]


def test_seals_go_where_the_setting_says(flask: Run, log: Database, tmp_path: Path) -> None:
    write(log, 1)
    assert json.loads(flask("seal", MFA_SEALS_OUTPUT="-").stdout)["number"] == 1
    write(log, 1)
    flask("seal", MFA_SEALS_OUTPUT=str(tmp_path / "seals.ndjson"))
    assert json.loads((tmp_path / "seals.ndjson").read_text())["number"] == 2


def test_without_a_key_the_command_says_what_to_do(flask: Run, log: Database, instance: Path) -> None:
    write(log, 1)
    shutil.rmtree(instance / "seal-keys")
    answer = flask("seal", code=1)
    assert answer.stderr.splitlines()[-1] == "error: there is no seal key: run `flask mfa init`"


def test_a_sound_log_is_called_sound(flask: Run, log: Database) -> None:
    write(log, 5)
    flask("seal")
    answer = flask("verify")
    assert answer.stdout == "sound: 5 sealed events are what was written\n"
    assert re.search(r"events verified: 5 in [0-9.]+ s, [0-9]+/s", answer.stderr)


def test_tampering_is_named_and_ends_with_1(flask: Run, log: Database) -> None:
    write(log, 5)
    flask("seal")
    log.execute("UPDATE mfa_events SET event = 'login.completed' WHERE id = 3")
    answer = flask("verify", code=1)
    assert answer.stdout == TAMPERED
    assert "sound" not in answer.stdout


def test_each_tampering_is_a_line(flask: Run, log: Database) -> None:
    for _ in range(2):
        write(log, 5)
        flask("seal")
    log.execute("UPDATE mfa_events SET event = 'login.completed' WHERE id = 3")
    log.execute("DELETE FROM mfa_events WHERE id = 6")
    said = flask("verify", code=1).stdout
    assert said == TAMPERED + "tampered: events 6 to 10 (seal 2): 5 were sealed, 4 are there\n"


def test_what_was_shipped_shows_that_the_end_was_cut_off(flask: Run, log: Database, tmp_path: Path) -> None:
    path = str(tmp_path / "seals.ndjson")
    for _ in range(2):
        write(log, 5)
        flask("seal", MFA_SEALS_OUTPUT=path)
    answer = flask("verify", "--seals", path)
    assert answer.stdout == "sound: 10 sealed events are what was written, 2 shipped seals among them\n"
    log.execute("DELETE FROM mfa_events WHERE id > 5")
    log.execute("DELETE FROM mfa_seals WHERE number = 2")
    assert flask("verify").stdout == "sound: 5 sealed events are what was written\n"
    answer = flask("verify", "--seals", path, code=1)
    assert answer.stdout == "tampered: seal 2 was shipped, and is missing here or another one\n"


@pytest.mark.parametrize(
    "content",
    [b"seals\n", b"{}\n", b"[]\n", b"\xff\xfe\x00\x01", b"\x00", b"[" * 100_000],
    ids=["text", "object", "list", "bytes", "nul", "nested"],
)
def test_a_file_that_holds_no_seals_is_a_clear_error(flask: Run, log: Database, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kept").write_bytes(content)
    answer = flask("verify", "--seals", str(tmp_path / "kept"), code=1)
    assert answer.stderr.splitlines()[-1] == "Error: line 1 of the shipped seals is none"
    assert answer.stdout == ""


def test_a_file_that_holds_nothing_proves_nothing(flask: Run, log: Database, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    answer = flask("verify", "--seals", str(tmp_path / "kept"), code=1)
    assert answer.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    "member", [{"key_id": []}, {"signature": 5}, {"sealed_at": "0001-01-01T00:00:00+14:00"}], ids=str
)
def test_a_shipped_seal_of_odd_members_is_not_ours_or_none(
    flask: Run, log: Database, tmp_path: Path, member: dict[str, Any]
) -> None:
    write(log, 1)
    seal = json.loads(flask("seal", MFA_SEALS_OUTPUT="-").stdout)
    (tmp_path / "kept").write_text(json.dumps(seal | member) + "\n")
    answer = flask("verify", "--seals", str(tmp_path / "kept"), code=1)
    named = "tampered: shipped seal 1 is not signed by a key of ours", "Error: line 1 of the shipped seals is none"
    assert (answer.stdout + answer.stderr).splitlines()[-1] in named or answer.stdout.strip() in named


def test_the_line_that_is_no_seal_is_numbered(flask: Run, log: Database, tmp_path: Path) -> None:
    write(log, 1)
    seal = flask("seal", MFA_SEALS_OUTPUT="-").stdout
    (tmp_path / "kept").write_text(seal + "x\n")
    answer = flask("verify", "--seals", str(tmp_path / "kept"), code=1)
    assert answer.stderr.splitlines()[-1] == "Error: line 2 of the shipped seals is none"


def test_a_file_that_is_not_there_is_a_usage_error(flask: Run, log: Database) -> None:
    assert "No such file" in flask("verify", "--seals", "nowhere", code=2).stderr


@pytest.mark.services
def test_two_hundred_thousand_events_are_sealed_and_verified(flask: Run, log: Database) -> None:
    write(log, 200_000)
    assert "20 seals over 200000 events" in flask("seal").stderr
    began = time.monotonic()
    answer = flask("verify")
    assert time.monotonic() - began < 60
    assert answer.stdout == "sound: 200000 sealed events are what was written\n"
    said = re.search(r"events verified: 200000 in ([0-9.]+) s, ([0-9]+)/s", answer.stderr)
    assert said, answer.stderr
    assert int(said[2]) > 5000, answer.stderr


# ── prune ────────────────────────────────────────────────────────────────────────────────────────


def test_pruning_asks_back_and_no_changes_nothing(flask: Run, sealed: Database) -> None:
    before = everything(sealed)
    for answer in ("n\n", "\n", ""):
        said = flask("prune", "--older-than", "30d", code=1, typed=answer)
        assert "Remove audit events older than 30d for ever?" in said.stdout
    assert everything(sealed) == before


@pytest.mark.parametrize(("options", "answer"), [(["--yes"], ""), ([], "y\n")])
def test_pruning_removes_what_is_older_and_verify_accepts_it(
    flask: Run, sealed: Database, options: list[str], answer: str
) -> None:
    said = flask("prune", "--older-than", "30d", *options, typed=answer)
    assert "events removed: 5 in" in said.stderr
    assert [row[0] for row in sealed.execute("SELECT id FROM mfa_events ORDER BY id")] == [6, 7, 8, 9, 10, 11]
    assert flask("verify").stdout == "sound: 10 sealed events are what was written\n"
    [(event, actor)] = sealed.execute("SELECT event, actor FROM mfa_events WHERE id = 11").fetchall()
    assert (event, actor[:4]) == ("audit.pruned", "cli:")


@pytest.mark.parametrize("age", ["5w", "900h"])
def test_an_age_is_days_hours_or_weeks(flask: Run, sealed: Database, age: str) -> None:
    flask("prune", "--older-than", age, "--yes")
    assert sealed.execute("SELECT count(*) FROM mfa_events WHERE id <= 5").fetchone() == (0,)


@pytest.mark.parametrize("age", ["60d", "99999w"])
def test_what_is_younger_stays(flask: Run, sealed: Database, age: str) -> None:
    before = everything(sealed)
    assert "events removed: 0 in" in flask("prune", "--older-than", age, "--yes").stderr
    assert everything(sealed) == before


@pytest.mark.parametrize("age", ["", "30", "-30d", "30m", "٣d", "999999d"])
def test_an_age_that_is_none_is_a_usage_error(flask: Run, sealed: Database, age: str) -> None:
    before = everything(sealed)
    said = flask("prune", f"--older-than={age}", "--yes", code=2)
    assert "--older-than must read like 365d, 52w or 48h" in said.stderr
    assert everything(sealed) == before


def test_an_age_is_asked_for(flask: Run, log: Database) -> None:
    assert "Missing option '--older-than'" in flask("prune", "--yes", code=2).stderr


def test_what_was_tampered_with_is_not_pruned(flask: Run, sealed: Database) -> None:
    sealed.execute("UPDATE mfa_events SET event = 'login.completed' WHERE id = 3")
    before = everything(sealed)
    said = flask("prune", "--older-than", "30d", "--yes", code=1)
    assert said.stderr.splitlines()[-1] == (
        "error: nothing is pruned: events 1 to 5 (seal 1): changed, exchanged or reordered"
    )
    assert everything(sealed) == before


# ── search and export ────────────────────────────────────────────────────────────────────────────


def test_a_search_is_a_table_newest_first(flask: Run, log: Database) -> None:
    write(log, 3)
    said = flask("search").stdout
    assert re.findall(r"request-[0-9]", said) == ["request-3", "request-2", "request-1"]
    assert "nothing" in flask("search", "--event", "user.deleted").stdout


@pytest.mark.parametrize("agent", ["[/x]", "[conceal]hidden[/]", "[link=https://evil.example]a", ":smiley:"])
def test_what_a_client_calls_itself_is_shown_as_it_stands(flask: Run, log: Database, agent: str) -> None:
    write(log, 1, agent=agent)
    assert f" {agent} " in flask("search").stdout


def test_a_search_may_be_json(flask: Run, log: Database) -> None:
    write(log, 3)
    found = json.loads(flask("search", "--json").stdout)
    assert [event["id"] for event in found] == [3, 2, 1]
    assert set(found[0]) == {
        "id", "at", "event", "user_id", "actor", "address", "user_agent", "request_id", "detail"
    }  # fmt: skip
    assert found[0]["detail"] == {"n": 3}
    assert json.loads(flask("search", "--json", "--event", "user.deleted").stdout) == []


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--limit", "2"], [4, 3]),
        (["--event", "user.disabled"], [4]),
        (["--user", GONE], [4, 3]),
        (["--actor", "cli:ops"], [4]),
        (["--from", "2020-01-02"], [4, 3, 2]),
        (["--to", "2020-01-03"], [2, 1]),
        (["--from", "2020-01-02 00:00:00", "--to", "2020-01-02T00:00:01"], [2]),
        (["--user", GONE, "--event", "login.completed"], [3]),
    ],
)
def test_a_search_and_an_export_take_the_same_options(
    flask: Run, log: Database, options: list[str], ids: list[int]
) -> None:
    for day, (event, user, actor) in enumerate(
        [
            ("user.registered", "u", None),
            ("login.completed", "u", None),
            ("login.completed", GONE, None),
            ("user.disabled", GONE, "cli:ops"),
        ],
        1,
    ):
        write(log, 1, at=f"2020-01-0{day} 00:00:00.000000", event=event, user_id=user, actor=actor)
    assert [it["id"] for it in json.loads(flask("search", "--json", *options).stdout)] == ids
    if "--limit" not in options:
        exported = [json.loads(line) for line in flask("export", *options).stdout.splitlines()]
        assert [it["id"] for it in exported if it["event"] != "audit.exported"] == ids


def test_an_export_is_a_json_object_a_line_and_an_event_itself(flask: Run, log: Database) -> None:
    write(log, 1500)
    lines = flask("export").stdout.splitlines()
    exported = [json.loads(line) for line in lines]
    assert [it["id"] for it in exported] == list(range(1501, 0, -1))
    assert exported[0]["event"] == "audit.exported"
    assert exported[0]["actor"].startswith("cli:")
    assert exported[1]["at"].endswith("+00:00")
    assert log.execute("SELECT count(*) FROM mfa_events WHERE event = 'audit.exported'").fetchone() == (1,)


def test_a_search_is_no_event(flask: Run, log: Database) -> None:
    flask("search")
    assert log.execute("SELECT count(*) FROM mfa_events").fetchone() == (0,)


@pytest.mark.parametrize("options", [["--from", "yesterday"], ["--to", "2020-13-01"], ["--limit", "x"], ["--nonsense"]])
def test_options_that_can_not_be_read_are_usage_errors(flask: Run, log: Database, options: list[str]) -> None:
    flask("search", *options, code=2)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance folder with keys and a migrated database."""
    folder = tmp_path_factory.mktemp("audit") / "instance"
    for command in ("init", "upgrade"):
        run([command], {"MFA_INSTANCE": str(folder)}, folder.parent)
    return folder


@pytest.fixture
def instance(_prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_prepared, tmp_path / "instance"))


@pytest.fixture
def flask(instance: Path, tmp_path: Path) -> Run:
    """Run `flask mfa audit <command>` and expect this exit code."""

    def audit(*command: str, code: int = 0, typed: str = "", **settings: str) -> Done:
        environment = {"MFA_INSTANCE": str(instance), "MFA_SEALS_OUTPUT": "none"} | settings
        return run(["audit", *command], environment, tmp_path, code=code, typed=typed)

    return audit


def run(command: list[str], settings: dict[str, str], folder: Path, *, code: int = 0, typed: str = "") -> Done:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | settings
    answer = flask_mfa(*command, environment=environment, folder=folder, typed=typed)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return answer


@pytest.fixture
def log(instance: Path) -> Iterator[Database]:
    """The database behind the service's back."""
    connection = sqlite3.connect(instance / "mfa.db", isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def sealed(flask: Run, log: Database) -> Database:
    """Five events of forty days ago under one seal, five of yesterday under another."""
    for days in (40, 1):
        write(log, 5, at=time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime(time.time() - days * 86_400)))
        flask("seal")
    return log


def write(
    log: Database,
    count: int,
    *,
    at: str = "",
    event: str = "session.refreshed",
    user_id: str = "u",
    actor: str | None = None,
    agent: str = "tests",
) -> None:
    """So many events, numbered; two minutes old if nothing else is said."""
    at = at or time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime(time.time() - 120))
    log.execute(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
        " INSERT INTO mfa_events (at, event, user_id, actor, address, user_agent, request_id, detail)"
        " SELECT ?, ?, ?, ?, '192.0.2.1', ?, 'request-' || n, '{\"n\": ' || n || '}' FROM numbers",
        (count, at, event, user_id, actor, agent),
    )


def everything(log: Database) -> list[list[Any]]:
    return [log.execute(f"SELECT * FROM mfa_{table} ORDER BY 1").fetchall() for table in ("events", "seals")]
