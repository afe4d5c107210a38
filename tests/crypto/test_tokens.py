"""Tokens: what a verifier takes and all that it refuses.

Every forgery is built by hand from RFC 7515, with HMAC and ECDSA from `hmac` and `cryptography`: neither our Minter
nor PyJWT has a say in it. Most are signed with the real key, so that it is the one thing tested that refuses them.
"""

import base64
import hmac
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt as second_implementation
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey

from mfa_service.crypto.signing import SharedSecret, SigningKeys, thumbprint
from mfa_service.crypto.tokens import AnotherKind, Identity, Minter, Pending, Verifier
from mfa_service.errors import InvalidToken

NOW = 1_700_000_000.0
ISSUER = "https://auth.example"
KEY = ec.generate_private_key(ec.SECP256R1())
KID = thumbprint(KEY.public_key())
STRANGER = ec.generate_private_key(ec.SECP256R1())
SECRET = "uH3kX0pQ9vB7nW2mZ5cL8dR4tY6jF1sA+/eG"
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

ACCESS_HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": KID}
ACCESS = {
    "iss": ISSUER,
    "aud": [ISSUER, "shop"],
    "sub": "user-1",
    "username": "ada",
    "step": "authenticated",
    "jti": "token-1",
    "sid": "session-1",
    "iat": int(NOW),
    "exp": int(NOW) + 3600,
    "auth_time": int(NOW),
    "amr": ["pwd", "otp", "mfa"],
    "acr": "mfa",
}
PENDING_HEADER = {"alg": "ES256", "typ": "mfa-pending+jwt", "kid": KID}
PENDING = {
    "iss": ISSUER,
    "aud": f"{ISSUER}/pending",
    "sub": "user-1",
    "username": "ada",
    "step": "mfa_pending",
    "jti": "challenge-1",
    "iat": int(NOW),
    "exp": int(NOW) + 300,
}
json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ADA = Identity("user-1", "ada", "session-1", int(NOW), ("pwd", "otp", "mfa"))


# ── what is taken ────────────────────────────────────────────────────────────────────────────────


def test_a_hand_made_access_token_with_everything_right_is_taken() -> None:
    assert verifier().access(forged(), now=NOW) == ADA


def test_a_hand_made_pending_token_with_everything_right_is_taken() -> None:
    assert verifier().pending(forged_pending(), now=NOW) == Pending("user-1", "challenge-1")


def test_what_we_make_is_what_we_take() -> None:
    assert verifier().access(minted(), now=NOW) == ADA
    assert verifier().pending(minted_pending(), now=NOW) == Pending("user-1", "challenge-1")


def test_an_access_token_lives_an_hour_and_says_no_more_than_it_must() -> None:
    header, claims = read(minted())
    assert header == ACCESS_HEADER
    assert claims == ACCESS
    assert claims["exp"] - claims["iat"] == 3600


def test_a_pending_token_lives_five_minutes_and_says_no_more_than_it_must() -> None:
    header, claims = read(minted_pending())
    assert header == PENDING_HEADER
    assert claims == PENDING
    assert claims["exp"] - claims["iat"] == 300


def test_the_issuer_is_the_first_audience_and_stands_there_once() -> None:
    assert read(minted(audiences=()))[1]["aud"] == [ISSUER]
    assert read(minted(audiences=("shop", ISSUER, "forum")))[1]["aud"] == [ISSUER, "shop", "forum"]


def test_an_app_takes_tokens_that_name_it_among_others() -> None:
    assert verifier(audience="shop").access(minted(), now=NOW) == ADA
    with pytest.raises(InvalidToken):
        verifier(audience="forum").access(minted(), now=NOW)


def test_a_second_implementation_takes_our_tokens_by_the_published_keys() -> None:
    published = KeySet.import_key_set(SigningKeys([KEY]).public_jwks())
    for token, claims in ((minted(), ACCESS), (minted_pending(), PENDING)):
        assert second_implementation.decode(token, published, algorithms=["ES256"]).claims == claims


# ── algorithm ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "none ", "", "null"])
@pytest.mark.parametrize("signature", [b"", b"x", b"\0" * 64], ids=["unsigned", "one byte", "zeros"])
def test_alg_none_is_refused_in_every_spelling(alg: str, signature: bytes) -> None:
    header = ACCESS_HEADER | {"alg": alg}
    ensure_refused(compact(header, ACCESS, lambda _input: signature))


@pytest.mark.parametrize(
    "alg", ["ES384", "ES512", "ES256K", "RS256", "PS256", "EdDSA", "HS256", "es256", "ES256 ", 1, None, True, [], {}]
)
def test_only_es256_is_taken_where_es256_keys_sign(alg: object) -> None:
    ensure_refused(forged(header={"alg": alg}))


@pytest.mark.parametrize("alg", [["ES256"], {"ES256": 1}])
def test_an_algorithm_is_a_string(alg: object) -> None:
    ensure_refused(forged(header={"alg": alg}))


def test_a_header_needs_an_algorithm() -> None:
    ensure_refused(forged(without=["alg"]))


@pytest.mark.parametrize("form", ["pem", "pem without newline", "der", "jwk", "jwk in the jwks", "point", "kid", ""])
def test_the_public_key_is_no_hmac_secret(form: str) -> None:
    public = KEY.public_key()
    info, point = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.UncompressedPoint
    pem = public.public_bytes(serialization.Encoding.PEM, info)
    jwks = SigningKeys([KEY]).public_jwks()
    secret = {
        "pem": pem,
        "pem without newline": pem.strip(),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "jwk": json.dumps(jwks["keys"][0]).encode(),
        "jwk in the jwks": json.dumps(jwks).encode(),
        "point": public.public_bytes(serialization.Encoding.X962, point),
        "kid": KID.encode(),
        "": b"",
    }[form]
    for alg in ("HS256", "HS384", "HS512", "ES256"):
        ensure_refused(compact(ACCESS_HEADER | {"alg": alg}, ACCESS, hs256(secret)))


# ── which key ────────────────────────────────────────────────────────────────────────────────────


def test_another_key_of_the_same_kid_does_not_sign() -> None:
    ensure_refused(compact(ACCESS_HEADER, ACCESS, es256(STRANGER)))


@pytest.mark.parametrize(
    "kid",
    [
        "",
        "../../dev/null",
        "/dev/null",
        "' UNION SELECT 'x",
        "|sleep 10",
        "http://127.0.0.1/key",
        KID + "\0",
        KID.lower(),
        KID[:-1],
        "ключ",
        "k" * 2500,
        1,
        True,
        None,
        [KID],
        {"kid": KID},
    ],
    ids=lambda kid: type(kid).__name__,
)
def test_a_kid_names_a_key_that_is_loaded_and_nothing_else(kid: object) -> None:
    ensure_refused(forged(header={"kid": kid}))
    for secret in (b"", b"\0", b"x"):
        ensure_refused(compact(ACCESS_HEADER | {"kid": kid, "alg": "HS256"}, ACCESS, hs256(secret)))


def test_a_kid_of_a_megabyte_is_refused_in_no_time() -> None:
    start = time.monotonic()
    ensure_refused(forged(header={"kid": "k" * 2**20}))
    assert time.monotonic() - start < 0.5


def test_a_token_without_a_kid_belongs_to_no_key() -> None:
    ensure_refused(forged(without=["kid"]))


def test_a_key_in_the_header_is_not_believed() -> None:
    stranger = SigningKeys([STRANGER])
    for kid in (KID, stranger.signer[0]):
        header = ACCESS_HEADER | {"jwk": stranger.public_jwks()["keys"][0], "kid": kid}
        ensure_refused(compact(header, ACCESS, es256(STRANGER)))
    ensure_refused(compact(ACCESS_HEADER | {"x5c": ["MIIB"], "kid": "x"}, ACCESS, es256(STRANGER)))


@pytest.mark.parametrize("member", ["jku", "x5u"])
def test_an_address_in_the_header_is_never_called(member: str, listener: socket.socket) -> None:
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/jwks.json"
    for kid in (KID, "elsewhere", address):
        ensure_refused(compact(ACCESS_HEADER | {member: address, "kid": kid}, ACCESS, es256(STRANGER)))
    assert verifier().access(forged(header={member: address}), now=NOW) == ADA
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_after_a_rotation_the_new_key_signs_and_the_old_one_is_taken_until_it_is_removed() -> None:
    old_token = minted()
    both, new_only = SigningKeys([KEY, STRANGER]), SigningKeys([STRANGER])
    assert verifier(both).access(old_token, now=NOW) == ADA
    assert read(minted(both))[0]["kid"] == thumbprint(STRANGER.public_key())
    assert verifier(new_only).access(minted(both), now=NOW) == ADA
    with pytest.raises(InvalidToken):
        verifier(new_only).access(old_token, now=NOW)


# ── signature ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("r", "s"),
    [(0, 0), (0, 1), (1, 0), (1, 1), (ORDER, ORDER), (ORDER, 1), (1, ORDER), (0, ORDER), (2**256 - 1, 2**256 - 1)],
)
def test_a_psychic_signature_convinces_nobody(r: int, s: int) -> None:
    ensure_refused(compact(ACCESS_HEADER, ACCESS, lambda _input: r.to_bytes(32) + s.to_bytes(32)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:32],
        lambda raw: raw[:1],
        lambda raw: b"\0" + raw,
        lambda raw: raw + b"\0",
        lambda raw: raw[32:] + raw[:32],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: bytes([raw[0] ^ 128]) + raw[1:],
    ],
    ids=["cut", "half", "one byte", "zero before", "zero after", "s before r", "last bit", "first bit"],
)
def test_a_signature_is_64_bytes_and_all_of_them_count(spoil: Callable[[bytes], bytes]) -> None:
    ensure_refused(compact(ACCESS_HEADER, ACCESS, lambda text: spoil(es256(KEY)(text))))


def test_a_signature_in_der_is_refused() -> None:
    ensure_refused(compact(ACCESS_HEADER, ACCESS, lambda text: KEY.sign(text, ec.ECDSA(hashes.SHA256()))))


def test_no_character_of_a_token_can_be_changed() -> None:
    token = forged()
    for place, character in enumerate(token):
        for other in {"A", "_", "."} - {character}:
            ensure_refused(token[:place] + other + token[place + 1 :])


# ── form ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "reshape",
    [
        lambda h, p, s: "",
        lambda h, p, s: ".",
        lambda h, p, s: "..",
        lambda h, p, s: f"{h}.{p}",
        lambda h, p, s: f"{h}.{p}.",
        lambda h, p, s: f".{p}.{s}",
        lambda h, p, s: f"{h}..{s}",
        lambda h, p, s: f"{p}.{h}.{s}",
        lambda h, p, s: f"{h}.{s}.{p}",
        lambda h, p, s: f"{h}.{p}.{s}.",
        lambda h, p, s: f"{h}.{p}.{s}.{s}",
        lambda h, p, s: f"{h}.{p}.{s}.{s}.{s}",
        lambda h, p, s: f"{h}.{p}.{s}\n",
        lambda h, p, s: f" {h}.{p}.{s}",
        lambda h, p, s: f"{h}.\n{p}.{s}",
        lambda h, p, s: f"Bearer {h}.{p}.{s}",
        lambda h, p, s: f"{h}.{p}.{s}\0",
        lambda h, p, s: f"{h}.{p}.{s}\ud800",
        lambda h, p, s: f"{h}.{p}.{s}ü",
        lambda h, p, s: f"{h}．{p}．{s}",
        lambda h, p, s: json.dumps({"protected": h, "payload": p, "signature": s}),
        lambda h, p, s: json.dumps({"payload": p, "signatures": [{"protected": h, "signature": s}]}),
    ],
)
def test_a_token_has_three_parts_of_base64url(reshape: Callable[[str, str, str], str]) -> None:
    ensure_refused(reshape(*forged().split(".")))


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "claims", "signature"])
@pytest.mark.parametrize("padding", ["=", "==", "===", "====", "A", "A===", "%3D"])
def test_padding_makes_no_second_spelling(part: int, padding: str) -> None:
    parts = forged().split(".")
    parts[part] += padding
    ensure_refused(".".join(parts))


def test_spare_bits_make_no_second_spelling() -> None:
    for token in (forged(), forged(claims={"username": "ada1"}), forged(claims={"username": "ada12"})):
        for part in range(3):
            for spelling in respelled(token.split(".")[part]):
                parts = token.split(".")
                parts[part] = spelling
                ensure_refused(".".join(parts))


def test_the_other_base64_alphabet_makes_no_second_spelling() -> None:
    # A signature is another one each time it is made.
    token = next(token for token in iter(forged, None) if set("-_") & set(token))
    assert verifier().access(token, now=NOW) == ADA
    ensure_refused(token.replace("-", "+").replace("_", "/"))


@given(st.text())
def test_no_string_crashes_it(text: str) -> None:
    ensure_refused(text)


@given(st.dictionaries(st.text(), json_values))
def test_no_header_crashes_it(header: dict[str, Any]) -> None:
    ensure_refused(compact(header, ACCESS, es256(KEY)))


@given(claims=st.dictionaries(st.sampled_from(sorted(ACCESS)), json_values, min_size=1))
def test_no_claims_crash_it(claims: dict[str, Any]) -> None:
    try:
        verifier().access(forged(claims=claims), now=NOW)
    except InvalidToken:
        return
    assert {type(value) for value in claims.values()} <= {str, int}


@pytest.mark.parametrize("text", [b"", b"1", b"null", b"[]", b'"x"', b"{", b"\xff", b"{}x", b"\xef\xbb\xbf{}", b"NaN"])
def test_header_and_claims_are_json_objects(text: bytes) -> None:
    ensure_refused(compact_of(text, json.dumps(ACCESS).encode(), es256(KEY)))
    ensure_refused(compact_of(json.dumps(ACCESS_HEADER).encode(), text, es256(KEY)))


@pytest.mark.parametrize("depth", [200_000, 1_300], ids=["past the size limit", "within it"])
def test_nesting_crashes_nothing(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    header = json.dumps(ACCESS_HEADER).encode()[:-1] + b',"x":' + deep + b"}"
    claims = json.dumps(ACCESS).encode()[:-1] + b',"iat":' + deep + b"}"
    ensure_refused(compact_of(header, json.dumps({}).encode(), es256(KEY)))
    ensure_refused(compact_of(json.dumps(ACCESS_HEADER).encode(), claims, es256(KEY)))


def test_a_token_past_4096_characters_is_refused_unread() -> None:
    assert verifier().access(forged(claims={"username": "a" * 2500}), now=NOW).username == "a" * 2500
    ensure_refused(forged(claims={"username": "a" * 3000}))


def test_of_a_member_that_stands_there_twice_the_last_one_counts_in_header_and_claims() -> None:
    header, claims = json.dumps(ACCESS_HEADER), json.dumps(ACCESS)
    twice = {
        '{"alg":"none",' + header[1:]: claims,
        header: '{"sub":"user-2","step":"mfa_pending","exp":1,' + claims[1:],
    }
    for first_is_wrong, other in twice.items():
        assert verifier().access(compact_of(first_is_wrong.encode(), other.encode(), es256(KEY)), now=NOW) == ADA
    for last_is_wrong in ('"alg":"none"', '"typ":"mfa-pending+jwt"', '"kid":"other"'):
        ensure_refused(compact_of(f"{header[:-1]},{last_is_wrong}}}".encode(), claims.encode(), es256(KEY)))
    for last_is_wrong in ('"step":"mfa_pending"', '"exp":1', '"aud":"other"', '"iss":"other"', '"sub":null'):
        ensure_refused(compact_of(header.encode(), f"{claims[:-1]},{last_is_wrong}}}".encode(), es256(KEY)))


@pytest.mark.parametrize("crit", [["x"], ["exp"], ["b64"], [], "exp", None, 1, [1]], ids=ascii)
def test_a_header_that_must_be_understood_and_is_not_is_refused(crit: object) -> None:
    ensure_refused(forged(header={"crit": crit, "x": 1, "exp": 1}))


def test_an_unencoded_payload_is_refused() -> None:
    ensure_refused(forged(header={"b64": False, "crit": ["b64"]}))
    ensure_refused(forged(header={"b64": False}))


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_token_of_the_other_kind_is_told_from_a_bad_one() -> None:
    with pytest.raises(AnotherKind):
        verifier().access(forged_pending(), now=NOW)
    with pytest.raises(AnotherKind):
        verifier().pending(forged(), now=NOW)


def test_a_bad_token_of_the_other_kind_is_just_bad() -> None:
    wrong = {"step": "authenticated"}, {"exp": int(NOW)}, {"aud": ISSUER}, {"iss": "https://other.example"}
    for claims in wrong:
        ensure_refused(forged_pending(claims=claims))
    ensure_refused(compact(PENDING_HEADER, PENDING, es256(STRANGER)))
    for claims in ({"step": "mfa_pending"}, {"exp": int(NOW)}, {"aud": f"{ISSUER}/pending"}):
        ensure_pending_refused(forged(claims=claims))


def test_a_token_does_not_change_its_kind_with_its_header() -> None:
    ensure_refused(compact(ACCESS_HEADER, PENDING, es256(KEY)))
    ensure_refused(compact(PENDING_HEADER, ACCESS, es256(KEY)))
    ensure_pending_refused(compact(PENDING_HEADER, ACCESS, es256(KEY)))
    ensure_pending_refused(compact(ACCESS_HEADER, PENDING, es256(KEY)))


@pytest.mark.parametrize(
    "typ", ["JWT", "at+JWT", "AT+JWT", "application/at+jwt", "at+jwt ", "", None, 1, True, ["at+jwt"], {}], ids=ascii
)
def test_typ_is_exact(typ: object) -> None:
    ensure_refused(forged(header={"typ": typ}))


def test_typ_is_required() -> None:
    ensure_refused(forged(without=["typ"]))
    ensure_pending_refused(forged_pending(without=["typ"]))


@pytest.mark.parametrize(
    "step",
    [
        "mfa_pending",
        "Password",
        "Authenticated",
        "AUTHENTICATED",
        "authenticated ",
        "authenticate",
        "authenticated,mfa_pending",
        "ａuthenticated",
        "аuthenticated",
        "",
        None,
        True,
        1,
        ["authenticated"],
        {"authenticated": True},
    ],
    ids=ascii,
)
def test_step_is_exact(step: object) -> None:
    ensure_refused(forged(claims={"step": step}))
    ensure_pending_refused(forged_pending(claims={"step": step} if step != "mfa_pending" else {"step": "pending"}))


# ── claims ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("claim", sorted(ACCESS))
def test_an_access_token_needs_each_of_its_claims(claim: str) -> None:
    ensure_refused(forged(without=[claim]))


@pytest.mark.parametrize("claim", sorted(PENDING))
def test_a_pending_token_needs_each_of_its_claims(claim: str) -> None:
    ensure_pending_refused(forged_pending(without=[claim]))


@pytest.mark.parametrize("claim", sorted(ACCESS))
@pytest.mark.parametrize("value", [None, True, False, 1.5, [], {}, [1], {"a": 1}], ids=ascii)
def test_a_claim_of_another_type_is_refused(claim: str, value: object) -> None:
    if not (claim == "amr" and isinstance(value, list)):  # which is what it has to be
        ensure_refused(forged(claims={claim: value}))
    if claim in PENDING:
        ensure_pending_refused(forged_pending(claims={claim: value}))


@pytest.mark.parametrize("claim", ["sub", "username", "jti", "sid", "acr"])
def test_a_number_is_no_string(claim: str) -> None:
    ensure_refused(forged(claims={claim: 1}))


@pytest.mark.parametrize("claim", ["iat", "exp", "auth_time"])
def test_a_string_is_no_time(claim: str) -> None:
    ensure_refused(forged(claims={claim: str(int(NOW) + 10)}))


@pytest.mark.parametrize("exp", ["1e400", "-1e400", "NaN", "1.7e9", "1700000100.0", "9" * 3000, "-1", "0", '"never"'])
def test_no_spelling_of_exp_makes_a_token_last(exp: str) -> None:
    claims = json.dumps(ACCESS | {"exp": "EXP"}).replace('"EXP"', exp)
    ensure_refused(compact_of(json.dumps(ACCESS_HEADER).encode(), claims.encode(), es256(KEY)))


@pytest.mark.parametrize("exp", [10**30, 2**63, int(NOW) + 3601 + 30])
def test_no_token_lasts_longer_than_its_kind(exp: int) -> None:
    ensure_refused(forged(claims={"exp": exp}))
    ensure_pending_refused(forged_pending(claims={"exp": exp}))


def test_a_token_ends_at_exp_sharp() -> None:
    assert verifier().access(forged(), now=NOW + 3599.9) == ADA
    assert verifier().pending(forged_pending(), now=NOW + 299.9).user_id == "user-1"
    with pytest.raises(InvalidToken):
        verifier().access(forged(), now=NOW + 3600)
    with pytest.raises(InvalidToken):
        verifier().pending(forged_pending(), now=NOW + 300)


@pytest.mark.faults("Q11")
@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_the_future_waits_but_for_the_clocks_to_differ_by_half_a_minute(claim: str) -> None:
    assert verifier().access(forged(claims={claim: int(NOW) + 30}), now=NOW) == ADA
    ensure_refused(forged(claims={claim: int(NOW) + 31}))
    ensure_refused(forged(claims={claim: 10**30}))


@pytest.mark.parametrize("nbf", ["0", None, 1.5, True, [], {}], ids=ascii)
def test_nbf_may_be_missing_and_is_a_whole_number_otherwise(nbf: object) -> None:
    assert verifier().access(forged(claims={"nbf": int(NOW)}), now=NOW) == ADA
    ensure_refused(forged(claims={"nbf": nbf}))


@pytest.mark.parametrize(
    "aud",
    [
        "",
        "shop",
        ISSUER + "/",
        ISSUER + "/pending",
        ISSUER[:-1],
        ISSUER.upper(),
        [],
        ["shop"],
        [ISSUER, 1],
        [[ISSUER]],
        {ISSUER: 1},
        1,
        f"{ISSUER} shop",
    ],
    ids=ascii,
)
def test_a_token_for_somebody_else_is_refused(aud: object) -> None:
    ensure_refused(forged(claims={"aud": aud}))


def test_one_audience_may_stand_without_a_list() -> None:
    assert verifier().access(forged(claims={"aud": ISSUER}), now=NOW) == ADA


@pytest.mark.parametrize(
    "iss",
    ["", "https://", ISSUER + "/", ISSUER[:-1], ISSUER + ".evil", ISSUER.upper(), [ISSUER], {ISSUER: 1}, 1],
    ids=ascii,
)
def test_the_issuer_is_exact(iss: object) -> None:
    ensure_refused(forged(claims={"iss": iss}))
    ensure_pending_refused(forged_pending(claims={"iss": iss}))


# ── with a shared secret ─────────────────────────────────────────────────────────────────────────


def test_with_a_shared_secret_tokens_are_hs256_without_a_kid() -> None:
    secret = SharedSecret(SECRET)
    assert read(minted(secret))[0] == {"alg": "HS256", "typ": "at+jwt"}
    assert verifier(secret).access(minted(secret), now=NOW) == ADA
    hand_made = compact({"alg": "HS256", "typ": "at+jwt"}, ACCESS, hs256(SECRET.encode()))
    assert verifier(secret).access(hand_made, now=NOW) == ADA


def test_a_second_implementation_takes_our_hs256_tokens() -> None:
    key = OctKey.import_key(SECRET)
    token = minted(SharedSecret(SECRET))
    assert second_implementation.decode(token, key, algorithms=["HS256"]).claims == ACCESS
    with pytest.raises(JoseError):
        second_implementation.decode(token, OctKey.import_key(SECRET[::-1]), algorithms=["HS256"])


@pytest.mark.parametrize("alg", ["none", "HS384", "HS512", "ES256", "hs256", None, ["HS256"]], ids=ascii)
def test_with_a_shared_secret_nothing_but_hs256_is_taken(alg: object) -> None:
    for sign in (hs256(SECRET.encode()), es256(KEY), lambda _input: b""):
        with pytest.raises(InvalidToken):
            verifier(SharedSecret(SECRET)).access(compact({"alg": alg, "typ": "at+jwt"}, ACCESS, sign), now=NOW)


@pytest.mark.parametrize("digest", ["sha384", "sha512"])
def test_hs384_and_hs512_are_refused_although_they_are_made_with_the_secret(digest: str) -> None:
    header = {"alg": digest.replace("sha", "HS"), "typ": "at+jwt"}
    token = compact(header, ACCESS, lambda text: hmac.digest(SECRET.encode(), text, digest))
    with pytest.raises(InvalidToken):
        verifier(SharedSecret(SECRET)).access(token, now=NOW)


@pytest.mark.parametrize("secret", [b"", b"\0", SECRET[:-1].encode(), SECRET.lower().encode(), b"changeme"])
def test_another_secret_does_not_sign(secret: bytes) -> None:
    with pytest.raises(InvalidToken):
        verifier(SharedSecret(SECRET)).access(
            compact({"alg": "HS256", "typ": "at+jwt"}, ACCESS, hs256(secret)), now=NOW
        )


@pytest.mark.parametrize("kid", ["", "x", "../../dev/null", KID, None, 0, False], ids=lambda kid: type(kid).__name__)
def test_with_a_shared_secret_a_kid_is_refused(kid: object) -> None:
    token = compact({"alg": "HS256", "typ": "at+jwt", "kid": kid}, ACCESS, hs256(SECRET.encode()))
    with pytest.raises(InvalidToken):
        verifier(SharedSecret(SECRET)).access(token, now=NOW)


def test_tokens_of_one_mode_mean_nothing_in_the_other() -> None:
    with pytest.raises(InvalidToken):
        verifier(SharedSecret(SECRET)).access(minted(), now=NOW)
    ensure_refused(minted(SharedSecret(SECRET)))


# ── fixtures and the forge ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that must not be called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def verifier(keys: SigningKeys | SharedSecret | None = None, *, audience: str = ISSUER) -> Verifier:
    return Verifier(keys or SigningKeys([KEY]), issuer=ISSUER, audience=audience)


def minted(keys: SigningKeys | SharedSecret | None = None, *, audiences: tuple[str, ...] = ("shop",)) -> str:
    minter = Minter(keys or SigningKeys([KEY]), issuer=ISSUER, audiences=audiences)
    return minter.access(ADA, token_id="token-1", now=NOW)


def minted_pending() -> str:
    minter = Minter(SigningKeys([KEY]), issuer=ISSUER, audiences=())
    return minter.pending(user_id="user-1", username="ada", challenge_id="challenge-1", now=NOW)


def ensure_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        verifier().access(token, now=NOW)


def ensure_pending_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        verifier().pending(token, now=NOW)


def forged(
    *,
    header: Mapping[str, Any] | None = None,
    claims: Mapping[str, Any] | None = None,
    without: list[str] | None = None,
) -> str:
    """An access token signed with the real key, right in everything but what is given."""
    return _altered(ACCESS_HEADER, ACCESS, header, claims, without)


def forged_pending(
    *,
    header: Mapping[str, Any] | None = None,
    claims: Mapping[str, Any] | None = None,
    without: list[str] | None = None,
) -> str:
    return _altered(PENDING_HEADER, PENDING, header, claims, without)


def _altered(
    header: Mapping[str, Any],
    claims: Mapping[str, Any],
    other_header: Mapping[str, Any] | None,
    other_claims: Mapping[str, Any] | None,
    without: list[str] | None,
) -> str:
    merged = [dict(header) | dict(other_header or {}), dict(claims) | dict(other_claims or {})]
    kept = [{name: value for name, value in part.items() if name not in (without or ())} for part in merged]
    return compact(kept[0], kept[1], es256(KEY))


def compact(header: object, claims: object, sign: Callable[[bytes], bytes]) -> str:
    """The compact serialisation (RFC 7515 section 7.1)."""
    return compact_of(json.dumps(header).encode(), json.dumps(claims).encode(), sign)


def compact_of(header: bytes, claims: bytes, sign: Callable[[bytes], bytes]) -> str:
    text = f"{base64url(header)}.{base64url(claims)}"
    return f"{text}.{base64url(sign(text.encode()))}"


def es256(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """r and s as 32 bytes each (RFC 7518 section 3.4)."""

    def sign(text: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    return sign


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.digest(secret, text, "sha256")


def read(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _signature = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(claims)


def respelled(part: str) -> list[str]:
    """Other spellings of the same bytes: the spare bits of the last character, set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    raw = base64.urlsafe_b64decode(part + "==")
    candidates = [part[:-1] + character for character in alphabet if character != part[-1]]
    return [other for other in candidates if base64.urlsafe_b64decode(other + "==") == raw]


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
