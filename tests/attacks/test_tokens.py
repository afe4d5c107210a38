"""Tokens that were never given out: forged by hand, and every one of them refused in the same words."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from tests.attacks import jws
from tests.attacks.case import case
from tests.attacks.jws import claims_of, header_of
from tests.attacks.target import Person, Target

Header = dict[str, Any]


def refused(person: Person, token: str, what: str) -> None:
    """That a token opens nothing, as an access token or as a pending one."""
    answer = person.profile(token)
    assert answer.status == 401, f"{what}: the profile answered {answer.status}"
    answer = person.verify(token, "000000")
    assert answer.code in ("invalid_pending_token", "wrong_step", "invalid_request"), f"{what}: {answer.code}"


def parts(person: Person) -> tuple[Header, Header]:
    return header_of(person.access), claims_of(person.access)


@case(
    "I1",
    holds='a token of alg "none" is refused in every spelling',
    stems_from="RFC 8725 section 3.1, ASVS 9.1.2",
    broken_by="alg_none",
)
def test_alg_none_is_refused(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    for alg in ("none", "None", "NONE", "nOnE", "none ", "", None, [], ["none"], {}, 0, False, "\u006eone"):
        refused(person, jws.unsigned(header | {"alg": alg}, claims), f"alg {alg!r}")
    refused(person, jws.unsigned({key: header[key] for key in header if key != "alg"}, claims), "no alg")


@case(
    "I2",
    holds="a public key is no secret: HS256 with it in any form is refused",
    stems_from="CVE-2015-9235, RFC 8725 section 2.1",
    broken_by="key_confusion",
)
def test_a_public_key_signs_nothing(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    text = target.get("/.well-known/jwks.json").text
    for public in target.get("/.well-known/jwks.json").json["keys"]:
        pem = jws.pem(public)
        forms = (pem, pem.strip(), jws.der(public), text.encode(), jws.part(public).encode(), jws.unb64(public["x"]))
        for key in forms:
            for alg in ("HS256", "hs256", "HS384", "ES256"):
                refused(person, jws.with_hmac(header | {"alg": alg}, claims, key), f"{alg} with {key[:20]!r}")


@case(
    "I3",
    holds="a key that a token brings along is not believed",
    stems_from="CVE-2018-0114, ASVS 9.1.3",
    broken_by="trusts_jwk",
)
def test_a_token_brings_no_key(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    own = jws.jwk(key := 0x1234567890ABCDEF)
    for name, value in (("jwk", own), ("jwk", own | {"kid": header.get("kid")}), ("x5c", [jws.b64(jws.der(own))])):
        refused(person, jws.with_ecdsa(header | {name: value}, claims, key), name)
        refused(person, jws.with_ecdsa({"alg": "ES256", "typ": header["typ"], name: value}, claims, key), name)


class Listener(BaseHTTPRequestHandler):
    """Serves keys of the attacker's, and notes who asks."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        content = json.dumps({"keys": [jws.jwk(77) | {"alg": "ES256", "use": "sig"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@case(
    "I3b",
    holds="an address in a token is not asked for keys",
    stems_from="jku and x5u injection, ASVS 9.1.3",
    broken_by="fetches_jku",
    needs=("listener",),
)
def test_no_address_in_a_token_is_followed(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    with HTTPServer(target.listen, Listener) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://{target.listen[0]}:{server.server_port}"
        for name in ("jku", "x5u", "kid", "iss"):
            for path in ("jwks.json", ".well-known/jwks.json"):
                forged = header | {name: f"{address}/{path}"}
                refused(person, jws.with_ecdsa(forged, claims | {"iss": address}, 77), name)
        server.shutdown()
        assert server.asked == [], "the service asked for a key"  # type: ignore[attr-defined]


@case(
    "I4",
    holds="kid is looked up, never opened, queried or run",
    stems_from="jwt_tool playbook, RFC 8725 section 3.10",
    broken_by="kid_path",
)
def test_a_kid_is_only_looked_up(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    kids: tuple[Any, ...] = (
        "../../../../dev/null",
        "/dev/null",
        "' UNION SELECT 'x",
        "|sleep 10",
        "x" * 2000,
        "\ud800",
    )
    kids += ("é", "", 0, None, [], {}, True, "file:///dev/null", "$(sleep 10)", "../" * 20 + "proc/sys/kernel/ostype")
    for kid in kids:
        for key in (b"", b"x", b"Linux\n"):
            token = jws.with_hmac(header | {"alg": "HS256", "kid": kid}, claims, key)
            answer = person.profile(token)
            assert answer.status == 401, f"kid {kid!r} answered {answer.status}"
            assert answer.seconds < 5


@case(
    "I5",
    holds="a signature that is missing, cut, changed or of another token is refused",
    stems_from="Wycheproof ModifiedSignature, JsonSerialization",
    broken_by="signature_optional",
)
def test_a_signature_is_whole(target: Target) -> None:
    person, other = target.person(), target.person()
    head, body, signature = person.access.split(".")
    raw = jws.unb64(signature)
    changed = jws.b64(bytes([raw[0] ^ 1]) + raw[1:])
    swapped = person.verify(other.pending(), "000000") and other.access.split(".")
    forms = {
        "no signature": f"{head}.{body}.",
        "no third part": f"{head}.{body}",
        "half a signature": f"{head}.{body}.{signature[:40]}",
        "a longer signature": f"{head}.{body}.{signature}AAAA",
        "another signature": f"{head}.{body}.{changed}",
        "zeros": f"{head}.{body}.{jws.b64(bytes(64))}",
        "swapped parts": f"{body}.{head}.{signature}",
        "the body of another": f"{head}.{swapped[1]}.{signature}",
        "four parts": f"{person.access}.{signature}",
        "the header twice": f"{head}.{person.access}",
        "JSON": f'{{"payload":"{body}","protected":"{head}","signature":"{signature}"}}',
        "raised": f"{head}.{jws.part(claims_of(person.access) | {'amr': ['mfa']})}.{signature}",
    }
    for what, token in forms.items():
        refused(person, token, what)


@case(
    "I6",
    holds="a signature of nothing (r = s = 0, or multiples of the order) is refused",
    stems_from="CVE-2022-21449",
    broken_by="psychic",
)
def test_a_psychic_signature_is_refused(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    signed = f"{jws.part(header)}.{jws.part(claims)}"
    numbers = (0, 1, jws.ORDER, jws.ORDER - 1, jws.PRIME, 2**256 - 1)
    for r in numbers:
        for s in numbers[:4]:
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            assert person.profile(f"{signed}.{jws.b64(signature)}").status == 401, (r, s)
    refused(person, f"{signed}.{jws.b64(bytes.fromhex('3006020100020100'))}", "zeros in DER")


@case(
    "I7",
    holds="no blank, short or well-known secret signs anything",
    stems_from="RFC 8725 section 3.5",
    broken_by="common_secret",
)
def test_no_common_secret_signs(target: Target) -> None:
    person = target.person()
    header, claims = parts(person)
    words = ("", "secret", "password", "changeme", "your-256-bit-secret", "key", "jwt", "jwt-secret", "test", "admin")
    words += ("a-string-secret-at-least-256-bits-long", "supersecret", "mfa_service", "dev", "A" * 32, "\0" * 32)
    for word in words:
        for kid in ({}, {"kid": header.get("kid")}):
            forged = {"alg": "HS256", "typ": header["typ"]} | kid
            assert person.profile(jws.with_hmac(forged, claims, word.encode())).status == 401, word


@case(
    "I15",
    holds="after a logout no other spelling of the token is good",
    stems_from="deny lists of strings; Wycheproof 367, 370",
    broken_by="logout_by_string",
)
def test_no_spelling_survives_a_logout(target: Target) -> None:
    person = target.person()
    head, body, signature = person.access.split(".")
    spare = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = spare[spare.index(signature[-1]) ^ 1]
    assert target.post("/auth/logout", {}, person.access).status == 204
    forms = (
        person.access,
        person.access + "=",
        person.access + "==",
        f"{head}=.{body}.{signature}",
        f"{person.access}.",
    )
    for token in (*forms, f" {person.access}", f"{head}.{body}={signature}", f"{head}.{body}.{signature[:-1]}{last}"):
        assert person.profile(token).status == 401, "a token came back after its logout"


@case(
    "I16",
    holds="of two members of one name neither opens anything",
    stems_from="RFC 7519 section 4",
    broken_by="first_alg_wins",
)
def test_members_given_twice_open_nothing(target: Target) -> None:
    person = target.person()
    _, body, signature = person.access.split(".")
    kid = header_of(person.access).get("kid")
    for first, second in (("none", "ES256"), ("ES256", "none"), ("HS256", "ES256")):
        head = jws.part(f'{{"alg":"{first}","typ":"at+jwt","kid":"{kid}","alg":"{second}"}}')
        refused(person, f"{head}.{body}.", "two algs, unsigned")
        refused(person, f"{head}.{body}.{signature}", "two algs")


@case(
    "I17",
    holds="huge and deeply nested tokens are refused like any other",
    stems_from="RecursionError in JSON parsers",
    broken_by="deep_crash",
)
def test_deep_and_huge_tokens_are_refused(target: Target) -> None:
    person = target.person()
    for text in ("[" * 2900, '{"a":' * 600 + "1" + "}" * 600, '{"alg":"ES256","x":"' + "x" * 2900 + '"}'):
        for token in (f"{jws.part(text)}.e30.AAAA", f"{person.access.split('.')[0]}.{jws.part(text)}.AAAA"):
            answer = person.profile(token)
            assert answer.status in (400, 401, 431), answer.status
            assert target.post("/auth/verify-mfa", {"tempToken": token, "totpCode": "000000"}).status in (400, 401)
    assert target.post("/auth/verify-mfa", {"tempToken": "x" * 60000, "totpCode": "000000"}).status in (400, 401)


@case(
    "I18",
    holds="a token counts in the Authorization header alone, once, under Bearer",
    stems_from="RFC 6750, ASVS 14.2.1",
    broken_by="token_in_query",
)
def test_a_token_counts_in_one_place(target: Target) -> None:
    person = target.person()
    token = person.access
    for name in ("access_token", "accessToken", "token", "jwt", "Authorization"):
        assert target.get(f"/api/profile?{name}={token}").status == 401, name
        assert target.get("/api/profile", headers={"Cookie": f"{name}={token}"}).status == 401, name
    for name in ("X-Access-Token", "X-Authorization", "Proxy-Authorization", "X-Forwarded-Authorization"):
        assert target.get("/api/profile", headers={name: f"Bearer {token}"}).status == 401, name
    for value in (
        f"Bearer {token}, Bearer x",
        f"Bearer x, Bearer {token}",
        f"Basic {token}",
        token,
        f"Bearer: {token}",
    ):
        assert target.get("/api/profile", headers={"Authorization": value}).status in (400, 401), value[:20]
    twice = target.get("/api/profile", "x", headers={"authorization": f"Bearer {token}"})
    assert twice.status in (400, 401), "the second of two headers was taken"


@case(
    "I19",
    holds="a token holds no address, secret, hash or role",
    stems_from="ASVS 14.1.1",
    broken_by="email_in_token",
)
def test_a_token_says_little(target: Target) -> None:
    person = target.person()
    known = {"iss", "aud", "sub", "username", "step", "jti", "sid", "iat", "exp", "auth_time", "amr", "acr", "ext"}
    for token in (person.access, person.pending()):
        assert set(claims_of(token)) <= known, set(claims_of(token)) - known
        assert "attack@example.com" not in str(claims_of(token))


@case(
    "I21",
    holds="every token that is none gets one answer, and a challenge",
    stems_from="RFC 6750 section 3, UnicodeEncodeError in JWT libraries",
    broken_by="decode_500",
)
def test_one_answer_for_every_bad_token(target: Target) -> None:
    person = target.person()
    texts = ("x", "a.b.c", "....", "e30.e30.e30", "eyJhbGciOiJub25lIn0..", "\ud800", "é.é.é", "null", "[]", "e30")
    texts += (
        jws.unsigned("[]", "{}") + "AA",
        jws.unsigned("null", "null") + "AA",
        jws.unsigned(b"\xff", b"\xff") + "AA",
    )
    for text in texts:
        answer = target.post("/auth/verify-mfa", {"tempToken": text, "totpCode": "000000"})
        assert answer.status in (400, 401), f"{text!r} answered {answer.status}"
    answers = [person.profile(text) for text in texts if text.isascii()]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert all('error="invalid_token"' in answer.get("www-authenticate") for answer in answers)


@case(
    "I24",
    holds="the published keys have public members only",
    stems_from="RFC 7517",
    broken_by="jwks_private",
)
def test_published_keys_are_public(target: Target) -> None:
    keys = target.get("/.well-known/jwks.json").json["keys"]
    assert len({key["kid"] for key in keys}) == len(keys)
    for key in keys:
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(key), "a private member is published"
        assert (key["kty"], key["alg"], key["use"]) == ("EC", "ES256", "sig")


@case(
    "I26",
    holds="an access token lives an hour, a pending one five minutes, and both say so",
    stems_from="ASVS 9.2.1",
    broken_by="long_life",
)
def test_tokens_live_as_long_as_documented(target: Target) -> None:
    person = target.person()
    login = person.login().json
    for token, seconds, said in (
        (person.access, 3600, person.tokens["expiresIn"]),
        (login["tempToken"], 300, login["expiresIn"]),
    ):
        claims = claims_of(token)
        assert claims["exp"] - claims["iat"] == seconds == said
    assert claims_of(person.access)["jti"] != claims_of(login["tempToken"])["jti"]


# ── with the service's own key: what a good signature does not make good ─────────────────────────


def signer(target: Target, person: Person) -> Callable[[Header, object], str]:
    """Signs as the service does; the header is that of a real token but for what is given."""
    assert target.inside
    key, real = target.inside.key[1], header_of(person.access)

    def sign(header: Header, claims: object) -> str:
        return jws.with_ecdsa({k: v for k, v in (real | header).items() if v is not None}, claims, key)

    return sign


@case(
    "T2",
    holds="step, typ, aud and iss are compared exactly, and a claim that is missing is refused",
    stems_from="overwritten type claims, deny lists; RFC 8725 section 3.11",
    broken_by="claims_optional",
    needs=("key",),
)
def test_every_claim_is_wanted(target: Target) -> None:
    person = target.person()
    sign, claims = signer(target, person), claims_of(person.access)
    assert person.profile(sign({}, claims)).status == 200
    for name in set(claims) - {"acr", "ext"}:
        less = {key: value for key, value in claims.items() if key != name}
        assert person.profile(sign({}, less)).status == 401, f"without {name}"
    steps = ("Authenticated", "authenticated ", ["authenticated"], True, "mfa_pending", "", None, "ａuthenticated")
    for step in steps:
        assert person.profile(sign({}, claims | {"step": step})).status == 401, f"step {step!r}"
    for typ in ("JWT", "mfa-pending+jwt", "AT+JWT", "", None, 1):
        assert person.profile(sign({"typ": typ}, claims)).status == 401, f"typ {typ!r}"


@case(
    "I9",
    holds="a token of another issuer, audience or user is refused",
    stems_from="ASVS 9.2.3, GHSA-75c5-xw7c-p5pm",
    broken_by="any_audience",
    needs=("key",),
)
def test_issuer_and_audience_are_ours(target: Target) -> None:
    person = target.person()
    sign, claims = signer(target, person), claims_of(person.access)
    issuer = claims["iss"]
    for aud in ("https://other.example", [], "", None, {}, f"{issuer}/", f"{issuer}/pending", [f"{issuer}x"], 7):
        assert person.profile(sign({}, claims | {"aud": aud})).status == 401, f"aud {aud!r}"
    for iss in ("https://other.example", issuer[:-1], f"{issuer}/", issuer.upper(), [issuer], "", None):
        assert person.profile(sign({}, claims | {"iss": iss})).status == 401, f"iss {iss!r}"
    for name in ("sub", "sid"):
        for value in ("", "x", None, [], {}, 1, "\ud800", claims[name] + " "):
            assert person.profile(sign({}, claims | {name: value})).status == 401, f"{name} {value!r}"


@case(
    "I13",
    holds="times of every wrong type, past and future, are refused",
    stems_from="RFC 7519 section 4.1, ASVS 9.2.1",
    broken_by="exp_types",
    needs=("key",),
)
def test_times_are_whole_numbers(target: Target) -> None:
    person = target.person()
    sign, claims = signer(target, person), claims_of(person.access)
    exp, iat = claims["exp"], claims["iat"]
    wrong = (str(exp), float(exp), True, None, [exp], {}, -1, 0, iat - 1, 10**30, 2**63, exp + 1, "never", exp + 10**9)
    for value in wrong:
        assert person.profile(sign({}, claims | {"exp": value})).status == 401, f"exp {value!r}"
    for raw in ("1e400", "NaN", "Infinity", "-Infinity", "9" * 5000):
        text = jws.json.dumps(claims).replace(f'"exp": {exp}', f'"exp": {raw}')
        assert person.profile(sign({}, text)).status in (401, 431), f"exp {raw[:9]}"
    for name in ("iat", "nbf"):
        for value in (iat + 600, str(iat), None, float(iat), True):
            if (name, value) != ("nbf", None):
                assert person.profile(sign({}, claims | {name: value})).status == 401, f"{name} {value!r}"


@case(
    "I14",
    holds="a header that says that something must be understood is refused",
    stems_from="GHSA-752w-5fwx-jx9f, RFC 7515 section 4.1.11",
    broken_by="ignores_crit",
    needs=("key",),
)
def test_what_is_critical_is_refused(target: Target) -> None:
    person = target.person()
    sign, claims = signer(target, person), claims_of(person.access)
    for crit in (["exp"], ["x"], ["b64"], "exp", {}, [1]):
        answer = person.profile(sign({"crit": crit, "x": 1}, claims))
        assert answer.status == 401, f"crit {crit!r} answered {answer.status}"
