"""What only the database and the logs show: secrets that were kept, and lines that were forged."""

import base64
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.attacks.case import case
from tests.attacks.target import Call, Person, Target
from tests.attacks.totp import decoded

#: Fewer characters, or fewer different ones, may stand in a log by chance.
LONG, DIFFERENT = 10, 6
#: What stands in no line: nobody's terminal obeys it, and nobody's eyes miss the end of a line.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def spellings(secret: str) -> tuple[str, ...]:
    raw = secret.encode(errors="surrogatepass")
    return secret, quote(raw, safe=""), base64.b64encode(raw).decode().rstrip("="), raw.hex()


def found_in(log: str, secrets: Iterable[str]) -> set[str]:
    """Secrets that stand in a log; looked for by their ends, since a log is long and they are thousands."""
    ends: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for secret in secrets:
        for form in spellings(secret):
            ends[form[-LONG:]].append((form, secret))
    found = set()
    for place in range(LONG, len(log) + 1):
        for form, secret in ends.get(log[place - LONG : place], ()):
            found |= {secret} if log.endswith(form, 0, place) else set()
    return found


def codes_in(log: str) -> set[str]:
    """Codes in a log where six digits are no chance: in quotes of their own, or after the name of one."""
    named = re.findall(r"""(?i)(?:code|otp|pin)\W{1,8}(\d{6})(?!\d)""", log)
    return {*named, *re.findall(r"""["'](\d{6})["'\\]""", log)}


def numbers_in(lines: str) -> set[str]:
    """All that could be a code, where there are so few lines that none is by chance."""
    return set(re.findall(r"(?<![\w.])\d{6}(?!\w)", lines))


@case(
    "O3",
    holds="no password, code, key or token that this suite ever made is in any log",
    stems_from="ASVS 16.2.5, CVE-2026-40166",
    broken_by="logs_secrets logs_codes",
    needs=("logs",),
    is_last=True,
)
def test_no_secret_is_logged(target: Target) -> None:
    assert target.inside
    before = Counter(target.inside.log().splitlines())
    shown = show_everything(target)
    log = target.inside.log()
    long = {secret for secret in target.secrets if len(secret) >= LONG and len(set(secret)) >= DIFFERENT}
    assert len(long) > 20
    lengths = sorted(map(len, found_in(log, long)))
    assert not lengths, f"{len(lengths)} secrets are in a log, of {lengths[:9]} characters"
    assert not codes_in(log) & target.secrets, "a code is in a log"
    own = "\n".join(Counter(log.splitlines()) - before)
    assert not numbers_in(own) & shown, "a code is in a line of a log"
    assert "otpauth" not in log


def show_everything(target: Target) -> set[str]:
    """Right and wrong proofs of every kind; the codes among them."""
    person = target.person(device=True)
    wrong, right, late = person.wrong(), person.code(), person.pending()
    person.login(password=person.password + "-mistyped")
    person.verify(person.pending(), wrong)
    person.recover(person.pending(), person.tokens["recoveryCodes"][0])
    person.refresh()
    person.step_up(right)
    person.verify(late, right)
    target.get(f"/api/profile?access_token={person.access}", person.access)
    return {wrong, right}


@case(
    "L1",
    holds="no authenticator's key, password or code stands in the database, nor what was refused for one, "
    "and that in no log",
    stems_from="ASVS 11.3, 13.3",
    broken_by="plain_secrets keeps_refused_passwords keeps_refused_codes logs_refused_passwords logs_codes",
    needs=("database", "logs"),
)
def test_no_key_is_kept_in_the_clear(target: Target) -> None:
    assert target.inside
    before = Counter(target.inside.dump().splitlines() + target.inside.log().splitlines())
    person = target.person(device=True)
    mistyped, wrong, right = f"{person.password}-mistyped", person.wrong(), person.code()
    person.login(password=mistyped)
    person.verify(person.pending(), wrong)
    for _ in range(2):
        person.verify(person.pending(), right)
    key, kept, log = decoded(person.secret), target.inside.dump(), target.inside.log()
    for form in spellings(mistyped):
        assert form not in kept + log, "a password that was refused is kept"
    own = "\n".join(Counter(kept.splitlines() + log.splitlines()) - before)
    assert not numbers_in(own) & {wrong, right}, "a code is kept"
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
    holds="nothing that a client sends forges a line of a log, or is obeyed by the terminal that shows it",
    stems_from="ASVS 16.4.1",
    broken_by="log_lines log_agent log_referer log_request_id log_host log_device_name log_reason",
    needs=("logs", "admin"),
)
def test_no_line_is_forged(target: Target) -> None:
    assert target.inside
    forged = f'{{"event":"login.completed","user":"root-{target.run}"}}'
    person = target.person()
    account, codes = f"/api/admin/users/{target.id_of(person)}", iter(person.tokens["recoveryCodes"])
    for text in (
        f"x\r\n{forged}",
        f"x\n{forged}\n",
        f"\r{forged}",
        f"\u2028{forged}",
        f'x"}}\n{forged}',
        f"\x1b[2J\x9b2J\x07{forged}",
        f"\x85{forged}",
    ):
        target.post("/auth/login", {"username": text, "password": text})
        target.get("/api/" + quote(text))
        for name in ("User-Agent", "Referer", "X-Request-Id", "Host"):
            target.get("/api/profile", headers={name: text.replace("\r", " ").replace("\n", " ")})
        proof = {"tempToken": person.pending(), "recoveryCode": next(codes)}
        target.post("/auth/verify-mfa", proof | {"rememberDevice": True, "deviceName": text})
        target.send(Call("PATCH", account, {"mfaRequired": True, "reason": text}, target.admin()))
    log = target.inside.log()
    assert not CONTROLS.search(log), "a control character is in a log"
    lines = log.splitlines()
    assert forged not in lines
    assert not any(line.strip().startswith(forged[:40]) for line in lines)
    assert all(isinstance(json.loads(line), dict) for line in lines if line.startswith("{"))
