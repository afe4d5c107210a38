"""What only the database and the logs show: secrets that were kept, and lines that were forged."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.attacks.case import case
from tests.attacks.target import Person, Target
from tests.attacks.totp import decoded


@case(
    "O3",
    holds="no password, code, key or token is in any log",
    stems_from="ASVS 16.2.5, CVE-2026-40166",
    broken_by="logs_secrets",
    needs=("logs",),
)
def test_no_secret_is_logged(target: Target) -> None:
    assert target.inside
    person = target.person(device=True)
    person.login(password=person.password + "-mistyped")
    person.verify(person.pending(), person.wrong())
    person.recover(person.pending(), person.tokens["recoveryCodes"][0])
    person.refresh()
    person.step_up(person.code())
    target.get(f"/api/profile?access_token={person.access}", person.access)
    log = target.inside.log()
    long = {secret for secret in target.secrets if len(secret) > 9}
    assert len(long) > 20
    for secret in long:
        for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")):
            assert form not in log, f"a secret of {len(secret)} characters is in a log"
    assert "otpauth" not in log


@case(
    "L1",
    holds="no authenticator's key or password stands in the database",
    stems_from="ASVS 11.3, 13.3",
    broken_by="plain_secrets",
    needs=("database",),
)
def test_no_key_is_kept_in_the_clear(target: Target) -> None:
    assert target.inside
    person = target.person(device=True)
    key, kept = decoded(person.secret), target.inside.dump()
    assert person.name in kept
    forms = [person.secret, key.decode("latin-1"), key.hex(), base64.b64encode(key).decode(), person.password]
    forms += [person.tokens["deviceToken"], person.tokens["refreshToken"], "$2b$", "$2a$"]
    for form in forms:
        assert form not in kept, "a secret is kept in the clear"


@case(
    "P13",
    holds="while keys are rotated everybody signs in, and what was sealed before it or meanwhile opens after it",
    stems_from="ASVS 11.2.2, 13.3.4",
    broken_by="key_dropped_first rotation_misses",
    needs=("operator",),
)
def test_rotating_keys_stops_nobody(target: Target) -> None:
    assert target.inside
    before = [target.newcomer() for _ in range(3)]
    meanwhile: list[Person] = []
    with ThreadPoolExecutor(1) as pool:
        rotation = pool.submit(target.inside.rotate_keys)
        for person in before:
            person.gets_in()
        while not rotation.done() and len(meanwhile) < 4:
            meanwhile.append(target.newcomer())
            time.sleep(0.3)
        rotation.result(30)
    for person in (*before, *meanwhile):
        person.gets_in()
        assert person.profile().status == 200


@case(
    "O5",
    holds="nothing that a client sends forges a line of a log",
    stems_from="ASVS 16.4.1",
    broken_by="log_lines",
    needs=("logs",),
)
def test_no_line_is_forged(target: Target) -> None:
    assert target.inside
    forged = f'{{"event":"login.completed","user":"root-{target.run}"}}'
    for text in (
        f"x\r\n{forged}",
        f"x\n{forged}\n",
        f"\u2028{forged}",
        f'x"}}\n{forged}',
        f"\x1b[2J{forged}",
        f"\x85{forged}",
    ):
        target.post("/auth/login", {"username": text, "password": text})
        target.get("/api/profile", headers={"User-Agent": text.replace("\r", " ").replace("\n", " ")})
        target.get("/api/" + quote(text))
    lines = target.inside.log().splitlines()
    assert forged not in lines
    assert not any(line.strip().startswith(forged[:40]) for line in lines)
    assert all(isinstance(json.loads(line), dict) for line in lines if line.startswith("{"))
