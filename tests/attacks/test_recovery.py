"""Recovery codes: strong, once, their owner's alone, and nothing of them kept."""

import statistics
import time

from tests.attacks.case import case
from tests.attacks.jws import claims_of
from tests.attacks.target import Target
from tests.attacks.test_limits import refused_while


@case(
    "T31",
    holds="no recovery code stands in the database, after regeneration either",
    stems_from="a storage option ignored on regeneration",
    broken_by="plain_recovery",
    needs=("database",),
)
def test_no_recovery_code_is_kept(target: Target) -> None:
    assert target.inside
    person = target.person()
    codes = person.tokens["recoveryCodes"]
    codes += target.post("/api/mfa/recovery-codes", {}, person.access).json["recoveryCodes"]
    kept = target.inside.dump()
    assert person.name in kept
    for code in codes:
        for form in (code, code.replace("-", ""), code.lower(), code.replace("-", "").lower(), code.encode().hex()):
            assert form not in kept, "a recovery code is kept in the clear"


@case(
    "T32",
    holds="a wrong recovery code costs the server one digest, not a slow hash for each that is stored",
    stems_from="a slow hash over each stored code",
    broken_by="slow_recovery",
)
def test_a_wrong_recovery_code_is_cheap(target: Target) -> None:
    person = target.person()
    pending = person.pending()
    times: dict[str, list[float]] = {"code": [], "recovery": []}
    for _ in range(2):
        times["code"].append(person.verify(pending, person.wrong()).seconds)
        times["recovery"].append(person.recover(pending, "0000-0000-0000-0000-0000-0000").seconds)
    code, recovery = (statistics.median(times[kind]) for kind in ("code", "recovery"))
    assert recovery < code + 0.15, f"a recovery code takes {recovery:.2f} s, a code {code:.2f} s"


@case(
    "H1",
    holds="there are ten recovery codes of 112 bits or more, all different, shown once",
    stems_from="ASVS 6.5.4",
    broken_by="short_recovery",
)
def test_recovery_codes_are_strong(target: Target) -> None:
    person = target.person()
    codes = person.tokens["recoveryCodes"]
    plain = [code.replace("-", "") for code in codes]
    assert len(set(plain)) == 10
    assert all(len(code) >= 23 and len(set(code)) > 5 for code in plain), "a code can be guessed"
    assert "recoveryCodes" not in person.sign_in()
    assert codes[0] not in target.get("/api/mfa", person.access).text


@case(
    "H3",
    holds="a recovery code works once",
    stems_from="ASVS 6.5.1",
    broken_by="recovery_again",
)
def test_a_recovery_code_works_once(target: Target) -> None:
    person = target.person()
    code = person.tokens["recoveryCodes"][0]
    assert person.recover(person.pending(), code).status == 200
    for form in (code, code.lower(), code.replace("-", ""), code.replace("-", " ")):
        assert person.recover(person.pending(), form).status == 401, f"{form} was accepted again"


@case(
    "H7",
    holds="new recovery codes end the old ones",
    stems_from="ASVS 7.5.1",
    broken_by="regenerate_keeps",
)
def test_new_recovery_codes_end_the_old(target: Target) -> None:
    person = target.person()
    old = person.tokens["recoveryCodes"][1]
    new = target.post("/api/mfa/recovery-codes", {}, person.access).json["recoveryCodes"]
    assert person.recover(person.pending(), old).status == 401
    assert person.recover(person.pending(), new[1]).status == 200


@case(
    "H9",
    holds="a recovery code works for its owner alone",
    stems_from="ASVS 8.2.2",
    broken_by="recovery_any_user",
)
def test_a_recovery_code_is_its_owners(target: Target) -> None:
    person, other = target.person(), target.person()
    code = other.tokens["recoveryCodes"][0]
    assert person.recover(person.pending(), code).status == 401
    assert target.post("/auth/step-up", {"recoveryCode": code}, person.access).status == 401
    assert person.login(password=person.tokens["recoveryCodes"][0]).status == 401


@case(
    "H5",
    holds="recovery codes are guessed no faster than codes of the phone, and each route that takes one asks their lock",
    stems_from="NIST SP 800-63B section 3.2.2",
    broken_by="endless_recovery recovery_counters_apart verify_ignores_recovery_lock",
)
def test_recovery_codes_lock_too(target: Target) -> None:
    person = target.person()
    pending, wrong, right = person.pending(), "0000-0000-0000-0000-0000-0000", person.tokens["recoveryCodes"][0]
    for number in range(6):
        time.sleep(1.1 if number == 5 else 0)
        opens = time.monotonic() + 2
        if number % 2:
            assert target.post("/auth/step-up", {"recoveryCode": wrong}, person.access).status == 401
        else:
            assert person.recover(pending, wrong).status == 401
    pending = person.pending()  # the one before ended with the lock
    refused_while(opens, target.post("/auth/step-up", {"recoveryCode": right}, person.access))
    refused_while(opens, person.recover(pending, right))


@case(
    "H10",
    holds="the token says that a recovery code opened it",
    stems_from="ASVS 6.8.4",
    broken_by="recovery_as_otp",
)
def test_the_token_says_what_opened_it(target: Target) -> None:
    person = target.person()
    answer = person.recover(person.pending(), person.tokens["recoveryCodes"][0])
    amr = claims_of(answer.json["accessToken"])["amr"]
    assert "recovery" in amr
    assert "otp" not in amr


@case(
    "H4",
    holds="one sign-in spends one proof: two together are refused",
    stems_from="NIST SP 800-63B",
    broken_by="two_proofs",
)
def test_one_proof_at_a_time(target: Target) -> None:
    person = target.person()
    pending, body = person.pending(), {"recoveryCode": person.tokens["recoveryCodes"][0]}
    assert person.verify(pending, person.wrong(), **body).status in (400, 401)
    assert target.post("/auth/verify-mfa", {"tempToken": pending}).status in (400, 401)
    assert target.post("/auth/verify-mfa", {"tempToken": pending, "recoveryCode": ""}).status in (400, 401)
    assert person.recover(pending, body["recoveryCode"]).status == 200


@case(
    "H6",
    holds="each use of a recovery code is counted, and its owner sees how many are left",
    stems_from="NIST SP 800-63B section 4.2",
    broken_by="codes_not_counted",
)
def test_codes_that_are_left_are_counted(target: Target) -> None:
    person = target.person()
    for left, code in zip((9, 8), person.tokens["recoveryCodes"], strict=False):
        assert person.recover(person.pending(), code).status == 200
        assert target.get("/api/mfa", person.access).json["recoveryCodesLeft"] == left
