"""Tokens that were never given out: forged by hand, and every one of them refused in the same words."""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from tests.attacks import jws
from tests.attacks.case import case
from tests.attacks.jws import claims_of, header_of
from tests.attacks.target import Answer, Person, Target

Header = dict[str, Any]
HMACS = ("HS256", "HS384", "HS512")
#: No refusal takes longer, in seconds, unless something was run for it.
PROMPT = 5


def refused(person: Person, what: str, tokens: Iterable[str]) -> None:
    """That two forgeries open nothing, and soon: that of an access token, and that of a pending one."""
    access, pending = tokens
    first = person.profile(access)
    assert (first.status, first.code) == (401, "invalid_token"), f"{what}: {first.status} {first.code} from the profile"
    assert first.seconds < PROMPT, f"{what}: the profile took {first.seconds:.0f} s"
    second = person.verify(pending, "000000")
    assert second.code in ("invalid_pending_token", "invalid_request"), f"{what}: {second.code} from the second step"
    assert second.seconds < PROMPT, f"{what}: the second step took {second.seconds:.0f} s"


def tokens_of(person: Person) -> tuple[str, str]:
    """An access token, and one that waits for a code."""
    return person.access, person.pending()


def parts(person: Person) -> list[tuple[Header, Header]]:
    """Header and claims of both."""
    return [(header_of(token), claims_of(token)) for token in tokens_of(person)]


@case(
    "I1",
    holds='a token of alg "none" is refused in every spelling',
    stems_from="RFC 8725 section 3.1, ASVS 9.1.2",
    broken_by="alg_none alg_none_signed alg_none_cased alg_none_trimmed alg_none_escaped alg_none_listed alg_missing "
    "alg_blank alg_null alg_falsy alg_none_pending",
)
def test_alg_none_is_refused(target: Target) -> None:
    person = target.person()
    both = parts(person)
    for alg in ("none", "None", "NONE", "nOnE", "none ", "", None, [], ["none"], {}, 0, False):
        for signature in ("", "AAAA"):
            forged = (jws.unsigned(header | {"alg": alg}, claims) + signature for header, claims in both)
            refused(person, f"alg {alg!r}", forged)
    bare = [({key: header[key] for key in header if key != "alg"}, claims) for header, claims in both]
    refused(person, "no alg", (jws.unsigned(header, claims) for header, claims in bare))
    texts = [(json.dumps(header | {"alg": "none"}).replace("none", r"\u006eone"), claims) for header, claims in both]
    refused(person, "an alg that is escaped", (jws.unsigned(text, claims) for text, claims in texts))


def public_forms(text: str) -> Iterator[tuple[str, bytes]]:
    """What somebody may take for the secret who has the published keys."""
    yield "the whole document", text.encode()
    for published in re.findall(r"\{[^{}]*\}", text):
        public = json.loads(published)
        der, point = jws.der(public), jws.unb64(public["x"]) + jws.unb64(public["y"])
        bare = {name: public[name] for name in ("crv", "kty", "x", "y")}
        yield from {
            "PEM": jws.pem(der),
            "PEM without its last line break": jws.pem(der).strip(),
            "DER": der,
            "DER in base64": jws.base64.b64encode(der),
            "the JWK as published": published.encode(),
            "the JWK with spaces": json.dumps(public).encode(),
            "the JWK without spaces": json.dumps(public, separators=(",", ":")).encode(),
            "the JWK in order": json.dumps(public, separators=(",", ":"), sort_keys=True).encode(),
            "the JWK of a thumbprint": json.dumps(bare, separators=(",", ":")).encode(),
            "the JWK in base64": jws.part(published).encode(),
            "the point": b"\x04" + point,
            "both coordinates": point,
            "a coordinate": jws.unb64(public["x"]),
            "the kid": str(public.get("kid")).encode(),
        }.items()


@case(
    "I2",
    holds="a public key is no secret: an HMAC with it in any form is refused",
    stems_from="CVE-2015-9235, CVE-2016-10555, RFC 8725 section 2.1",
    broken_by="key_confusion confusion_hs384 confusion_hs512 confusion_by_case confusion_any_alg confusion_stripped "
    "confusion_der confusion_base64 confusion_jwk confusion_jwk_spaced confusion_jwk_compact confusion_jwk_sorted "
    "confusion_thumbprint confusion_jwk_encoded confusion_jwks confusion_point confusion_coordinates "
    "confusion_coordinate confusion_kid confusion_pending",
)
def test_a_public_key_signs_nothing(target: Target) -> None:
    person = target.person()
    both = parts(person)
    for what, key in public_forms(target.get("/.well-known/jwks.json").text):
        pairs = [(alg, alg) for alg in HMACS]
        pairs += [("hs256", "HS256"), ("ES256", "HS256")] if what == "PEM" else []
        for alg, used in pairs:
            forged = (jws.with_hmac(header | {"alg": alg}, claims, key, used) for header, claims in both)
            refused(person, f"{alg} with {what}", forged)


@case(
    "I3",
    holds="a key that a token brings along is not believed",
    stems_from="CVE-2018-0114, ASVS 9.1.3",
    broken_by="trusts_jwk trusts_jwk_without_kid trusts_jwk_by_kid trusts_secret_jwk trusts_x5c trusts_x5c_key",
)
def test_a_token_brings_no_key(target: Target) -> None:
    person = target.person()
    both, own = parts(person), jws.jwk(key := 0x1234567890ABCDEF)
    chain = [jws.base64.b64encode(raw).decode() for raw in (jws.certificate(key), jws.der(own))]
    brought: dict[str, Header] = {
        "a jwk": {"jwk": own},
        "a jwk by its kid": {"kid": "attacker", "jwk": own | {"kid": "attacker"}},
        "a certificate": {"x5c": chain[:1]},
        "a key in x5c": {"x5c": chain[1:]},
    }
    for what, more in brought.items():
        forged = (jws.with_ecdsa(header | more, claims, key) for header, claims in both)
        refused(person, what, forged)
        bare = [({"alg": "ES256", "typ": header["typ"]}, claims) for header, claims in both]
        refused(person, f"{what} and no kid", (jws.with_ecdsa(header | more, claims, key) for header, claims in bare))
    secret = {"alg": "HS256", "jwk": {"kty": "oct", "k": jws.b64(b"attacker")}}
    refused(person, "a secret", (jws.with_hmac(header | secret, claims, b"attacker") for header, claims in both))


class Listener(BaseHTTPRequestHandler):
    """Serves a key of the attacker's in whatever form, and notes who asks."""

    key = 77

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        known = {"keys": [jws.jwk(self.key) | {"kid": "attacker", "alg": "ES256", "use": "sig"}]}
        is_chain = self.path.endswith(".pem")
        text = jws.pem(jws.certificate(self.key), "CERTIFICATE") if is_chain else json.dumps(known).encode()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(at: tuple[str, int]) -> Iterator[tuple[str, list[str]]]:
    """The address of a listener, and what it was asked for."""
    with HTTPServer(at, Listener) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://{at[0]}:{server.server_port}", server.asked  # type: ignore[attr-defined]
        finally:
            server.shutdown()


@case(
    "I3b",
    holds="an address in a token is not asked for keys",
    stems_from="jku and x5u injection, ASVS 9.1.3",
    broken_by="fetches_jku trusts_jku jku_of_strangers trusts_x5u fetches_x5u fetches_kid fetches_header_issuer "
    "fetches_issuer issuer_of_strangers",
    needs=("listener",),
)
def test_no_address_in_a_token_is_followed(target: Target) -> None:
    person = target.person()
    both = parts(person)
    with listening(target.listen) as (address, asked):
        jwks, chain = f"{address}/jwks.json", f"{address}/chain.pem"
        for more in ({"jku": jwks}, {"jku": jwks, "kid": "attacker"}, {"x5u": chain}, {"kid": jwks}, {"iss": address}):
            forged = (jws.with_ecdsa(header | more, claims, Listener.key) for header, claims in both)
            refused(person, str(more), forged)
            assert asked == [], f"the service asked for a key because of {more}"
        for kid in ({}, {"kid": "attacker"}):
            issued = [(header | kid, claims | {"iss": address}) for header, claims in both]
            refused(person, "iss", (jws.with_ecdsa(header, claims, Listener.key) for header, claims in issued))
        assert asked == [], "the service asked an issuer for its keys"


#: A kid that leads somewhere, and what is found there.
KIDS: tuple[tuple[Any, bytes], ...] = (
    ("../../../../dev/null", b""),
    ("/dev/null", b""),
    ("file:///dev/null", b""),
    ("../" * 20 + "proc/sys/kernel/ostype", b"Linux\n"),
    ("..%2f" * 20 + "dev%2fnull", b""),
    ("....//" * 20 + "dev/null", b""),
    ("nobody\0", b""),
    ("' UNION SELECT 'x", b"x"),
    ("x' UNION SELECT 'x' -- ", b"x"),
    ("|sleep 6", b""),
    ("$(sleep 6)", b""),
    (";sleep 6;", b""),
    *((kid, b"") for kid in ("x" * 2000, "\ud800", "é", "", 0, None, [], {}, True, "nobody")),
)


@case(
    "I4",
    holds="kid is looked up, never opened, queried or run",
    stems_from="jwt_tool playbook, RFC 8725 section 3.10",
    broken_by="kid_path kid_path_absolute kid_url kid_path_filtered kid_path_decoded kid_path_stripped kid_sql "
    "kid_sql_comment kid_shell kid_shell_substituted kid_shell_listed kid_blank kid_missing kid_types kid_encoded "
    "kid_file_name",
)
def test_a_kid_is_only_looked_up(target: Target) -> None:
    person = target.person()
    both = parts(person)
    for kid, found in KIDS:
        headers = [(header | {"alg": "HS256", "kid": kid}, claims) for header, claims in both]
        refused(person, f"kid {kid!r}", (jws.with_hmac(*each, found) for each in headers))
    bare = [({"alg": "HS256", "typ": header["typ"]}, claims) for header, claims in both]
    refused(person, "no kid", (jws.with_hmac(*each, b"") for each in bare))


def misshapen(token: str, other: str, member: Header) -> dict[str, str]:
    """What is not the whole of a token, or more than it, by what was done."""
    head, body, signature = token.split(".")
    raw = jws.unb64(signature)
    flipped = [jws.b64(bytes(byte ^ (place == at) for place, byte in enumerate(raw))) for at in (0, 63)]
    return {
        "no signature": f"{head}.{body}.",
        "no third part": f"{head}.{body}",
        "half a signature": f"{head}.{body}.{signature[:40]}",
        "a longer signature": f"{head}.{body}.{signature}AAAA",
        "a first byte changed": f"{head}.{body}.{flipped[0]}",
        "a last byte changed": f"{head}.{body}.{flipped[1]}",
        "the body of another": f"{head}.{other.split('.')[1]}.{signature}",
        "four parts": f"{token}.{signature}",
        "the header twice": f"{head}.{token}",
        "JSON": f'{{"payload":"{body}","protected":"{head}","signature":"{signature}"}}',
        "more in it": f"{head}.{jws.part(claims_of(token) | member)}.{signature}",
    }


@case(
    "I5",
    holds="a signature that is missing, cut, changed or of another token is refused",
    stems_from="Wycheproof ModifiedSignature, JsonSerialization",
    broken_by="signature_optional third_part_optional signature_cut signature_slack signature_head signature_tail "
    "signature_ignored memo_by_signature memo_by_id fourth_part last_parts takes_json",
)
def test_a_signature_is_whole(target: Target) -> None:
    person, other = target.person(), target.person()
    real, others = tokens_of(person), tokens_of(other)
    assert person.profile().status == 200, "what is remembered of a good token is remembered now"
    assert person.verify(real[1], person.wrong()).code == "invalid_code"
    made = [misshapen(*pair, {"amr": ["mfa"]}) for pair in zip(real, others, strict=True)]
    for what in made[0]:
        refused(person, what, (forms[what] for forms in made))


@case(
    "I6",
    holds="a signature of nothing (r = s = 0, or multiples of the order) is refused",
    stems_from="CVE-2022-21449",
    broken_by="psychic psychic_order psychic_der psychic_blank",
)
def test_a_psychic_signature_is_refused(target: Target) -> None:
    person = target.person()
    both = parts(person)
    signed = [f"{jws.part(header)}.{jws.part(claims)}" for header, claims in both]
    numbers = (0, 1, jws.ORDER, jws.ORDER - 1, jws.PRIME, 2**256 - 1)
    for r in numbers:
        for s in numbers[:4]:
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            refused(person, f"r {r:x} and s {s:x}", (f"{text}.{jws.b64(signature)}" for text in signed))
    for what, raw in (("zeros in DER", bytes.fromhex("3006020100020100")), ("a single zero", b"\0")):
        refused(person, what, (f"{text}.{jws.b64(raw)}" for text in signed))


@case(
    "I7",
    holds="no blank, short or well-known secret signs anything",
    stems_from="RFC 8725 section 3.5",
    broken_by="common_secret common_secret_without_kid common_secret_hs512 example_secret blank_secret secret_by_name",
)
def test_no_common_secret_signs(target: Target) -> None:
    person = target.person()
    both = parts(person)
    words = ("", "secret", "password", "changeme", "your-256-bit-secret", "key", "jwt", "jwt-secret", "test", "admin")
    words += ("a-string-secret-at-least-256-bits-long", "supersecret", "mfa_service", "dev", "A" * 32)
    words += (person.name, claims_of(person.access)["iss"])
    for word in words:
        for alg in ("HS256", "HS512"):
            forged = (jws.with_hmac(header | {"alg": alg}, claims, word.encode(), alg) for header, claims in both)
            refused(person, f"{alg} with {word!r}", forged)
        bare = [({"alg": "HS256", "typ": header["typ"]}, claims) for header, claims in both]
        refused(person, f"{word!r} without a kid", (jws.with_hmac(*each, word.encode()) for each in bare))


@case(
    "I15",
    holds="after a logout no other spelling of the token is good",
    stems_from="deny lists of strings; Wycheproof 367, 370",
    broken_by="logout_by_string logout_by_inner_string logout_by_dotted logout_by_spaced logout_by_bits",
)
def test_no_spelling_survives_a_logout(target: Target) -> None:
    person = target.person()
    head, body, signature = person.access.split(".")
    spare = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = spare[spare.index(signature[-1]) ^ 1]
    assert target.post("/auth/logout", {}, person.access).status == 204
    forms = {
        "itself": person.access,
        "padded": f"{person.access}=",
        "padded twice": f"{person.access}==",
        "with a padded head": f"{head}=.{body}.{signature}",
        "with a padded body": f"{head}.{body}=.{signature}",
        "with a dot behind": f"{person.access}.",
        "with a space before": f" {person.access}",
        "with spare bits": f"{head}.{body}.{signature[:-1]}{last}",
    }
    for what, token in forms.items():
        assert person.profile(token).status == 401, f"the token {what} came back after its logout"


@case(
    "I16",
    holds="a header with two algs is read in one way, and opens nothing without a signature of ours",
    stems_from="RFC 7515 section 4, RFC 8725 section 2.4",
    broken_by="first_alg_none last_alg_none first_alg_hmac last_alg_hmac",
)
def test_an_alg_given_twice_opens_nothing(target: Target) -> None:
    person = target.person()
    both = parts(person)
    for pair in (("none", "ES256"), ("ES256", "none")):
        texts = [(jws.twice(header, "alg", *pair), claims) for header, claims in both]
        for signature in ("", "AAAA"):
            refused(person, f"alg {pair}", (jws.unsigned(*each) + signature for each in texts))
        real = zip(texts, tokens_of(person), strict=True)
        with_real = (jws.unsigned(*each) + token.split(".")[2] for each, token in real)
        refused(person, f"alg {pair} and a real signature", with_real)
    [(_, pem)] = [form for form in public_forms(target.get("/.well-known/jwks.json").text) if form[0] == "PEM"][:1]
    for alg in HMACS:
        for pair in ((alg, "ES256"), ("ES256", alg)):
            texts = [(jws.twice(header, "alg", *pair), claims) for header, claims in both]
            refused(person, f"alg {pair}", (jws.with_hmac(*each, pem, alg) for each in texts))


@case(
    "I17",
    holds="huge and deeply nested tokens are refused like any other",
    stems_from="RecursionError in JSON parsers",
    broken_by="deep_crash deep_header deep_claims huge_token",
)
def test_deep_and_huge_tokens_are_refused(target: Target) -> None:
    person = target.person()
    for text in ("[" * 2900, '{"a":' * 600 + "1" + "}" * 600, '{"alg":"ES256","x":"' + "x" * 2900 + '"}'):
        for token in (f"{jws.part(text)}.e30.AAAA", f"{person.access.split('.')[0]}.{jws.part(text)}.AAAA"):
            answer = person.profile(token)
            assert answer.status in (400, 401, 431), answer.status
            assert target.post("/auth/verify-mfa", {"tempToken": token, "totpCode": "000000"}).status in (400, 401)
    answer = target.post("/auth/verify-mfa", {"tempToken": "x" * 60000, "totpCode": "000000"})
    assert answer.status in (400, 401), f"a huge token is answered with {answer.status}"


@case(
    "I18",
    holds="a token counts in the Authorization header alone, once, under Bearer",
    stems_from="RFC 6750, ASVS 14.2.1",
    broken_by="token_in_query token_in_cookie token_in_header token_in_body token_of_a_list last_of_a_list any_scheme "
    "bare_token scheme_with_colon second_header",
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
    for content in (b'{"accessToken":"%s"}', b'{"access_token":"%s"}', b"access_token=%s"):
        assert target.post("/auth/step-up", content % token.encode()).status in (401, 415), content
    twice = target.get("/api/profile", "x", headers={"authorization": f"Bearer {token}"})
    assert twice.status in (400, 401), "the second of two headers was taken"


@case(
    "I19",
    holds="a token holds no address, secret, hash or role",
    stems_from="ASVS 14.1.1",
    broken_by="email_in_token email_in_pending email_as_name",
)
def test_a_token_says_little(target: Target) -> None:
    person = target.person()
    known = {"iss", "aud", "sub", "username", "step", "jti", "sid", "iat", "exp", "auth_time", "amr", "acr", "ext"}
    for token in (person.access, person.pending()):
        assert set(claims_of(token)) <= known, set(claims_of(token)) - known
        assert "attack@example.com" not in str(claims_of(token)), "an address is in a token"


@case(
    "I21",
    holds="every token that is none gets one answer, and a challenge",
    stems_from="RFC 6750 section 3, UnicodeEncodeError in JWT libraries",
    broken_by="decode_500 decode_500_of_lists decode_500_of_bytes answers_apart no_challenge",
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
    assert len({answer.content for answer in answers}) == 1, "bad tokens are told apart"
    challenges = {answer.get("www-authenticate") for answer in answers}
    assert all('error="invalid_token"' in challenge for challenge in challenges), challenges


@case(
    "I24",
    holds="the published keys have public members only",
    stems_from="RFC 7517",
    broken_by="jwks_private jwks_secret jwks_kid_twice jwks_for_encryption",
)
def test_published_keys_are_public(target: Target) -> None:
    keys = target.get("/.well-known/jwks.json").json["keys"]
    assert len({key["kid"] for key in keys}) == len(keys), "two keys have one kid"
    for key in keys:
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(key), "a private member is published"
        said = (key["kty"], key["alg"], key["use"])
        assert said == ("EC", "ES256", "sig"), said


@case(
    "I26",
    holds="an access token lives an hour, a pending one five minutes, and both say so",
    stems_from="ASVS 9.2.1",
    broken_by="long_life long_pending expires_in_lies jti_shared",
)
def test_tokens_live_as_long_as_documented(target: Target) -> None:
    person = target.person()
    login = person.login().json
    for token, seconds, said in (
        (person.access, 3600, person.tokens["expiresIn"]),
        (login["tempToken"], 300, login["expiresIn"]),
    ):
        claims = claims_of(token)
        assert claims["exp"] - claims["iat"] == seconds, f"a token lives {claims['exp'] - claims['iat']} s"
        assert said == seconds, f"{said} s are said, {seconds} s are documented"
    assert claims_of(person.access)["jti"] != claims_of(login["tempToken"])["jti"], "two tokens have one jti"


# ── with the service's own key: what a good signature does not make good ─────────────────────────


@dataclass(frozen=True)
class Kind:
    """A kind of token that the service signs, and the request that takes it."""

    name: str
    header: Header
    claims: Header
    key: int
    send: Callable[[str], Answer]
    #: The header's `typ` and the claims of a token of the other kind.
    other: tuple[str, Header]

    def sign(self, header: Header, claims: object) -> str:
        """As the service does; the header is that of a real token but for what is given."""
        return jws.with_ecdsa({k: v for k, v in (self.header | header).items() if v is not None}, claims, self.key)

    def forged(self, what: str, **changed: object) -> None:
        """That a token is refused which says so, and is right otherwise."""
        self.refuses(what, self.sign({}, self.claims | changed))

    def refuses(self, what: str, token: str) -> None:
        answer = self.send(token)
        told = f"{self.name} token, {what}: {answer.status} {answer.code}"
        # A token may be too long for a header, or for its member of a body.
        assert answer.status in (401, 431) or answer.code == "invalid_request", told
        assert answer.code not in ("invalid_code", "wrong_step"), told


def kinds(target: Target, person: Person) -> tuple[Kind, Kind]:
    """Both that are signed: one that is sent to the profile, and one that is shown with a wrong code."""
    assert target.inside
    key, (access, pending) = target.inside.key[1], parts(person)
    return (
        Kind("access", *access, key, person.profile, (pending[0]["typ"], pending[1])),
        Kind("pending", *pending, key, lambda token: person.verify(token, "000000"), (access[0]["typ"], access[1])),
    )


@case(
    "T2",
    holds="of both kinds of tokens step, typ, aud and iss are compared exactly, and a claim that is missing is refused",
    stems_from="overwritten type claims, deny lists; RFC 8725 section 3.11",
    broken_by="claims_optional exp_optional iat_optional aud_optional iss_optional step_optional sub_optional "
    "sid_optional jti_optional step_folded step_truthy step_listed step_blank step_ignored typ_ignored typ_folded "
    "typ_blank typ_generic pending_claims_optional pending_any_step pending_typ_ignored",
    needs=("key",),
)
def test_every_claim_is_wanted(target: Target) -> None:
    person = target.person()
    both = kinds(target, person)
    assert both[0].send(both[0].sign({}, both[0].claims)).status == 200
    assert both[1].send(both[1].sign({}, both[1].claims)).code == "invalid_code"
    for kind in both:
        for name in set(kind.claims) - {"ext"}:
            less = {key: value for key, value in kind.claims.items() if key != name}
            kind.refuses(f"without {name}", kind.sign({}, less))
        step, typ = kind.claims["step"], kind.header["typ"]
        wide = chr(ord(step[0]) + 0xFEE0) + step[1:]
        for wrong in (step.title(), f"{step} ", [step], True, kind.other[1]["step"], "", None, wide):
            kind.forged(f"step {wrong!r}", step=wrong)
        for wrong in ("JWT", kind.other[0], typ.upper(), "", None, 1):
            kind.refuses(f"typ {wrong!r}", kind.sign({"typ": wrong}, kind.claims))


@case(
    "I9",
    holds="a token of another issuer, audience or user is refused, of either kind",
    stems_from="ASVS 9.2.3, GHSA-75c5-xw7c-p5pm",
    broken_by="any_audience any_issuer audience_part audience_blank issuer_part issuer_blank issuer_folded "
    "any_subject subject_trimmed session_trimmed session_blank pending_any_audience pending_any_issuer "
    "pending_any_user",
    needs=("key",),
)
def test_issuer_and_audience_are_ours(target: Target) -> None:
    stranger, person = claims_of(target.person().access)["sub"], target.person()
    for kind in kinds(target, person):
        claims, issuer = kind.claims, kind.claims["iss"]
        own = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        for aud in ("https://other.example", [], "", None, {}, f"{own[0]}/", kind.other[1]["aud"], [f"{own[0]}x"], 7):
            kind.forged(f"aud {aud!r}", aud=aud)
        for iss in ("https://other.example", issuer[:-1], f"{issuer}/", issuer.upper(), [issuer], "", None):
            kind.forged(f"iss {iss!r}", iss=iss)
        for name in ("sub", "sid" if kind.name == "access" else "jti"):
            for value in ("", "x", None, [], {}, 1, "\ud800", claims[name] + " ", stranger):
                kind.forged(f"{name} {value!r}", **{name: value})


@case(
    "I13",
    holds="times of every wrong type, past and future, are refused in both kinds of tokens",
    stems_from="RFC 7519 section 4.1, ASVS 9.2.1",
    broken_by="exp_types exp_as_text exp_as_float exp_as_truth exp_null exp_nan exp_past exp_far exp_huge iat_future "
    "iat_as_text iat_as_float nbf_ignored nbf_as_text pending_exp_ignored",
    needs=("key",),
)
def test_times_are_whole_numbers(target: Target) -> None:
    for kind in kinds(target, target.person()):
        exp, iat = kind.claims["exp"], kind.claims["iat"]
        wrong = (str(exp), float(exp), True, None, [exp], {}, -1, 0, iat - 1, 10**30, 2**63, exp + 1, "x", exp + 10**9)
        for value in wrong:
            kind.forged(f"exp {value!r}", exp=value)
        for raw in ("1e400", "NaN", "Infinity", "-Infinity", "9" * 5000):
            text = jws.json.dumps(kind.claims).replace(f'"exp": {exp}', f'"exp": {raw}')
            kind.refuses(f"exp {raw[:9]}", kind.sign({}, text))
        for name in ("iat", "nbf"):
            for value in (iat + 600, str(iat), None, float(iat), True):
                if (name, value) != ("nbf", None):
                    kind.forged(f"{name} {value!r}", **{name: value})


@case(
    "I14",
    holds="a header that says that something must be understood is refused, in both kinds of tokens",
    stems_from="GHSA-752w-5fwx-jx9f, RFC 7515 section 4.1.11",
    broken_by="ignores_crit crit_misshapen crit_registered crit_empty pending_ignores_crit",
    needs=("key",),
)
def test_what_is_critical_is_refused(target: Target) -> None:
    for kind in kinds(target, target.person()):
        for crit in (["exp"], ["x"], ["b64"], "exp", {}, [1], []):
            kind.refuses(f"crit {crit!r}", kind.sign({"crit": crit, "x": 1}, kind.claims))


@case(
    "I16b",
    holds="of two members of one name the last counts everywhere, or the token is refused, of either kind",
    stems_from="RFC 7519 section 4, RFC 8725 section 2.4",
    broken_by="first_claim_wins first_header_wins first_sub_names any_step_counts pending_first_claim_wins "
    "pending_first_header_wins",
    needs=("key",),
)
def test_a_member_given_twice_is_read_in_one_way(target: Target) -> None:
    person, other = target.person(), claims_of(target.person().access)
    for kind in kinds(target, person):
        claims, header = kind.claims, kind.header
        wrong = {name: other[name] for name in ("sub", "sid") if name in claims}
        wrong |= {"step": kind.other[1]["step"], "exp": 0, "iat": claims["iat"] + 600, "iss": "https://other.example"}
        for name, bad in (wrong | {"aud": kind.other[1]["aud"]}).items():
            reads_the_last(person, kind, name, *(kind.sign({}, text) for text in both_ways(claims, name, bad)))
        for name, bad in {"alg": "none", "typ": kind.other[0], "kid": "nobody"}.items():
            texts = both_ways(header, name, bad)
            reads_the_last(person, kind, name, *(jws.with_ecdsa(text, claims, kind.key) for text in texts))


def both_ways(members: Header, name: str, bad: object) -> tuple[str, str]:
    """One member twice: with the bad value last, and with the bad value first."""
    return jws.twice(members, name, members[name], bad), jws.twice(members, name, bad, members[name])


def reads_the_last(person: Person, kind: Kind, name: str, bad_last: str, bad_first: str) -> None:
    kind.refuses(f"the first {name} counts", bad_last)
    if kind.name == "access":  # of the other kind each that is taken costs a failure, and five are a lock
        answer = kind.send(bad_first)
        assert answer.status == 401 or answer.json.get("username") == person.name, f"the first {name} counts, too"
