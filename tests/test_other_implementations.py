"""Other implementations of JWT read our tokens, and what they forge is refused: joserfc of PyPI, jose of npm."""

import base64
import hmac
import json
import os
import subprocess
import time
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask
from flask.testing import FlaskClient
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OctKey
from joserfc.registry import HeaderParameter

from mfa_service import Guard, require_mfa
from tests.bursts import post
from tests.conftest import NODE, Clock, program
from tests.factories import PASSWORD, bearer, register, sign_in, totp

pytestmark = [pytest.mark.services, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

SECRET = "mZ7vQ2pK9xW4tB8nC6hR3sJ5dG1fL0yA/eUi"
ES256: Mapping[str, str] = {}
HS256 = {"JWT_SECRET": SECRET}
Token = Mapping[str, Any]
Key = ec.EllipticCurvePrivateKey | bytes


@dataclass(frozen=True)
class Forgery:
    """What is changed in a token that is right otherwise. `key` names what signs it: the service's own, if nothing."""

    header: Token = field(default_factory=dict)
    claims: Token = field(default_factory=dict)
    without: str = ""
    key: str = "ours"


CLAIMS = ("iss", "aud", "sub", "username", "step", "jti", "sid", "iat", "exp", "auth_time", "amr", "acr")
ELSEWHERE = "http://127.0.0.1:9/keys"
FORGERIES = {
    "another key under our kid": Forgery(key="stranger"),
    "alg none": Forgery({"alg": "none"}, key="nothing"),
    "HS256 with our public key in PEM": Forgery({"alg": "HS256"}, key="pem"),
    "HS256 with our public key in DER": Forgery({"alg": "HS256"}, key="der"),
    "HS256 with our public key as JWK": Forgery({"alg": "HS256"}, key="jwk"),
    "HS256 with our key set": Forgery({"alg": "HS256"}, key="jwks"),
    "typ of a pending token": Forgery({"typ": "mfa-pending+jwt"}),
    "typ of any JWT": Forgery({"typ": "JWT"}),
    "step of a pending token": Forgery(claims={"step": "mfa_pending"}),
    "for somebody else": Forgery(claims={"aud": ["forum"]}),
    "for pending tokens": Forgery(claims={"aud": ["http://127.0.0.1:8000/pending"]}),
    "of another issuer": Forgery(claims={"iss": "https://evil.example"}),
    "expired": Forgery(claims={"iat": 1_700_000_000, "exp": 1_700_003_600, "auth_time": 1_700_000_000}),
    **{f"without {claim}": Forgery(without=claim) for claim in CLAIMS},
    "a key at jku": Forgery({"jku": ELSEWHERE}, key="stranger"),
    "a certificate at x5u": Forgery({"x5u": ELSEWHERE}, key="stranger"),
    "a key in jwk": Forgery({"jwk": {}}, key="stranger"),
    "a kid of its own with a key in jwk": Forgery({"jwk": {}, "kid": "mine"}, key="stranger"),
    "more than we understand in crit": Forgery({"crit": ["urn:x"], "urn:x": 1}),
}


# ── ours are read ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [ES256, HS256], ids=["ES256", "HS256"])
def test_access_and_pending_tokens_are_read(serve: Callable[..., str], reader: "Reader", settings: Token) -> None:
    issuer = serve(MFA_AUDIENCES="shop", **settings)
    access, pending = tokens_of(issuer)
    for audience in (issuer, "shop"):
        read = reader(access, Wanted(issuer, audience, "at+jwt", settings))
        assert (read["username"], read["step"], read["amr"]) == ("ada", "authenticated", ["pwd", "otp", "mfa"])
    read = reader(pending, Wanted(issuer, f"{issuer}/pending", "mfa-pending+jwt", settings))
    assert (read["username"], read["step"]) == ("ada", "mfa_pending")


@pytest.mark.parametrize("settings", [ES256, HS256], ids=["ES256", "HS256"])
def test_neither_kind_is_read_as_the_other_nor_for_others(
    serve: Callable[..., str], reader: "Reader", settings: Token
) -> None:
    issuer = serve(MFA_AUDIENCES="shop", **settings)
    access, pending = tokens_of(issuer)
    for token, audience, typ in (
        (access, issuer, "mfa-pending+jwt"),
        (access, f"{issuer}/pending", "at+jwt"),
        (access, "forum", "at+jwt"),
        (pending, issuer, "mfa-pending+jwt"),
        (pending, f"{issuer}/pending", "at+jwt"),
    ):
        with pytest.raises(Refused):
            reader(token, Wanted(issuer, audience, typ, settings))
    with pytest.raises(Refused):
        reader(access, Wanted(issuer, issuer, "at+jwt", settings, claimed="https://auth.example"))


# ── theirs are refused ───────────────────────────────────────────────────────────────────────────


def test_a_token_of_theirs_with_everything_right_is_let_in(doors: "Doors", forge: "Forge", good: "Good") -> None:
    assert doors(good.forged(Forgery(), forge)) == [(200, None), (200, None)]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_by_the_service_and_by_other_apps(
    doors: "Doors", forge: "Forge", good: "Good", name: str
) -> None:
    assert doors(good.forged(FORGERIES[name], forge)) == [(401, "invalid_token"), (401, "invalid_token")]


# ── the other implementations ────────────────────────────────────────────────────────────────────


class Refused(Exception):
    """The other implementation does not take a token."""


@dataclass(frozen=True)
class Wanted:
    """What a reader asks of a token: by the published keys, or by the shared secret."""

    issuer: str
    audience: str
    typ: str
    settings: Token
    claimed: str = ""

    @property
    def algorithm(self) -> str:
        return "HS256" if self.settings else "ES256"

    @property
    def jwks(self) -> str:
        return f"{self.issuer}/.well-known/jwks.json"


Reader = Callable[[str, Wanted], dict[str, Any]]
Forge = Callable[[dict[str, Any], dict[str, Any], Key], str]


def read_by_joserfc(token: str, wanted: Wanted) -> dict[str, Any]:
    with urllib.request.urlopen(wanted.jwks, timeout=10) as answer:
        published = json.load(answer)
    key = OctKey.import_key(SECRET) if wanted.settings else KeySet.import_key_set(published)
    names = {"iss": wanted.claimed or wanted.issuer, "aud": wanted.audience}
    registry = jwt.JWTClaimsRegistry(**{name: {"essential": True, "value": value} for name, value in names.items()})
    try:
        read = jwt.decode(token, key, algorithms=[wanted.algorithm])
        registry.validate(read.claims)
    except JoseError as error:
        raise Refused from error
    if read.header["typ"] != wanted.typ:
        raise Refused
    return dict(read.claims)


def forge_by_joserfc(header: dict[str, Any], claims: dict[str, Any], key: Key) -> str:
    known = {name: HeaderParameter("of ours", "int") for name in header.get("crit", ())}
    registry = jws.JWSRegistry(known, [header["alg"]], strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no algorithm, and of a secret that is a public key: it's what we want
        if isinstance(key, bytes) and header["alg"] == "HS256":
            return _with_mac(
                jws.serialize_compact(header, json.dumps(claims), OctKey.generate_key(), registry=registry), key
            )
        private = OctKey.import_key(key) if isinstance(key, bytes) else ECKey.import_key(pem_of(key))
        return jws.serialize_compact(header, json.dumps(claims), private, registry=registry)


def _with_mac(token: str, key: bytes) -> str:
    """The token under another secret: joserfc lends no hand where that is somebody's public key."""
    signed = token.rpartition(".")[0]
    mac = base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), "sha256")).rstrip(b"=")
    return f"{signed}.{mac.decode()}"


def read_by_jose(token: str, wanted: Wanted) -> dict[str, Any]:
    options = {"issuer": wanted.claimed or wanted.issuer, "audience": wanted.audience, "typ": wanted.typ}
    keys = {"secret": SECRET} if wanted.settings else {"jwks": wanted.jwks}
    read = jose({"do": "verify", "token": token, "options": options | {"algorithms": [wanted.algorithm]}} | keys)
    return dict(read["claims"])


def forge_by_jose(header: dict[str, Any], claims: dict[str, Any], key: Key) -> str:
    by = (
        {"bytes": key.hex()} if isinstance(key, bytes) else {"jwk": ECKey.import_key(pem_of(key)).as_dict(private=True)}
    )
    return str(jose({"do": "sign", "header": header, "claims": claims} | by))


def jose(task: dict[str, Any]) -> Any:
    """Let jose do something, in a Node of its own."""
    command = [program("node"), str(Path(__file__).with_name("jose.cjs"))]
    if not (NODE / "jose").is_dir():
        pytest.skip("jose is not installed: tools/programs.sh does it")
    environment = os.environ | {"NODE_PATH": str(NODE)}
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, timeout=30, check=True, env=environment
    )
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise Refused(answer["refused"])
    return answer["done"]


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[read_by_joserfc, read_by_jose], ids=["joserfc", "jose"])
def reader(request: pytest.FixtureRequest) -> Reader:
    found: Reader = request.param
    return found


@pytest.fixture(params=[forge_by_joserfc, forge_by_jose], ids=["joserfc", "jose"])
def forge(request: pytest.FixtureRequest) -> Forge:
    found: Forge = request.param
    return found


def tokens_of(service: str) -> tuple[str, str]:
    """Somebody's access token and pending token, of a service that runs."""
    who = {"username": "ada", "password": PASSWORD}
    secret = post(service, "/auth/register", who | {"email": "ada@example.com"}).json["manualEntryKey"]
    pending = post(service, "/auth/login", who).json["tempToken"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
    return post(service, "/auth/verify-mfa", body).json["accessToken"], pending


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, nothing = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, nothing)


class Good:
    """An access token of somebody who is signed in, and every key that a forger may sign another one with."""

    def __init__(self, token: str, ours: ec.EllipticCurvePrivateKey, published: bytes) -> None:
        read = jws.extract_compact(token.encode())
        self._header, self._claims = read.headers(), json.loads(read.payload)
        encoding, info = serialization.Encoding, serialization.PublicFormat.SubjectPublicKeyInfo
        public = ours.public_key()
        self._stranger = ec.generate_private_key(ec.SECP256R1())
        self._keys: dict[str, Key] = {
            "ours": ours,
            "stranger": self._stranger,
            "nothing": b"x",
            "pem": public.public_bytes(encoding.PEM, info),
            "der": public.public_bytes(encoding.DER, info),
            "jwk": json.dumps(json.loads(published)["keys"][0]).encode(),
            "jwks": published,
        }

    def forged(self, forgery: Forgery, forge: Forge) -> str:
        header, claims = self._header | dict(forgery.header), self._claims | dict(forgery.claims)
        if "jwk" in header:
            header["jwk"] = ECKey.import_key(pem_of(self._stranger)).as_dict(private=False)
        return forge(
            header, {name: claims[name] for name in claims if name != forgery.without}, self._keys[forgery.key]
        )


@pytest.fixture
def service(make_app: Callable[..., Flask], clock: Clock) -> FlaskClient:
    clock.now = time.time()  # other implementations look at the real one
    return make_app(MFA_AUDIENCES="shop").test_client()


@pytest.fixture
def good(service: FlaskClient, instance: Path, clock: Clock) -> Good:
    pem = (instance / "signing-keys/one.pem").read_bytes()
    ours = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(ours, ec.EllipticCurvePrivateKey)
    return Good(sign_in(service, register(service), clock()), ours, service.get("/.well-known/jwks.json").data)


Doors = Callable[[str], list[tuple[int, str | None]]]


@pytest.fixture
def doors(service: FlaskClient) -> Doors:
    """What the service answers to a token, and what another app does that knows nothing but the published keys."""
    shop = Flask("shop")
    issuer, fetch = "http://127.0.0.1:8000", lambda _url: service.get("/.well-known/jwks.json").data
    Guard.from_jwks(f"{issuer}/.well-known/jwks.json", issuer=issuer, audience="shop", fetch=fetch).init_app(shop)
    shop.add_url_rule("/", view_func=require_mfa(lambda: {"orders": []}), endpoint="orders")

    def knock(token: str) -> list[tuple[int, str | None]]:
        answers = [
            service.get("/api/profile", headers=bearer(token)),
            shop.test_client().get("/", headers=bearer(token)),
        ]
        return [(answer.status_code, answer.json.get("code")) for answer in answers]

    return knock
