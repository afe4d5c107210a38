"""A sign-in service in memory, right in everything that the cases look at, until one of its checks is taken out.

`weak("…")` stands at the place of one check. `POST /__control` says which one is out, and empties the service; nothing
of it is meant for anything but to be attacked by the test beside it. It shares no line with the real service.
"""

import base64
import gzip
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socketserver
import threading
import time
import unicodedata
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import jwt
import segno
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask, Response, g, jsonify, request

app = Flask(__name__, static_folder=None)
app.url_map.merge_slashes = False
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "one", "alg": "ES256", "use": "sig"}
ISSUER, DIRECT = "https://broken.example", os.environ.get("DIRECT_PORT", "")
DAY, MONTH = 24 * 3600, 30 * 24 * 3600
ACCESS, PENDING = "at+jwt", "mfa-pending+jwt"


@dataclass
class User:
    id: str
    name: str
    email: str
    salt: bytes
    password: bytes
    plain: str
    secret: str
    roles: list[str] = field(default_factory=list)
    confirmed: bool = False
    last_step: int = -1
    used: set[str] = field(default_factory=set)
    last_code: str = ""
    others: list[str] = field(default_factory=list)
    waiting: str = ""
    waits_until: float = 0.0
    recovery: dict[str, bool] = field(default_factory=dict)
    disabled: bool = False
    required: bool = False
    ticket: str = ""
    was_reset: bool = False


@dataclass
class Lock:
    failures: int = 0
    open_at: float = 0.0
    dead: bool = False


@dataclass
class Session:
    id: str
    user: str
    amr: list[str]
    step: str
    auth_time: int
    address: str = ""
    began: float = 0.0
    seen: float = 0.0
    generations: list[str] = field(default_factory=list)
    over: bool = False
    cookies: list[str] = field(default_factory=list)


class State:
    """All there is, from one `/__control` to the next."""

    def __init__(self, weakness: str = "") -> None:
        self.weakness, self.offset, self.mode = weakness, 0.0, "required"
        self.users: dict[str, User] = {}
        self.sessions: dict[str, Session] = {}
        self.challenges: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.locks: dict[tuple[str, str], Lock] = {}
        self.limits: Counter[str] = Counter()
        self.revoked: set[str] = set()
        self.log: list[str] = []
        self.kept: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.last_user: User | None = None
        self.began = time.time()


state, lock = State(), threading.RLock()
#: Those that let a race in: nobody waits for anybody.
RACES = {
    "check_then_count",
    "check_then_set",
    "recovery_races",
    "refresh_races",
    "refresh_beats_logout",
    "register_races",
}
RACES |= {"refresh_beats_change", "refresh_beats_disabling", "sign_in_beats_disabling"}
RACES |= {"shared_identity", "busy_500", "reset_races", "limit_after", "lost_update", "enrol_races", "writers_500"}


def weak(name: str) -> bool:
    return state.weakness == name


def now() -> float:
    return time.time() + state.offset


class Refused(Exception):
    def __init__(self, status: int, code: str, error: str = "", **headers: Any) -> None:
        self.status, self.code, self.error, self.headers = status, code, error or code.replace("_", " "), headers


# ── around every request ─────────────────────────────────────────────────────────────────────────


@app.errorhandler(Refused)
def refused(error: Refused) -> Any:
    if weak("html_errors") or (weak("html_by_method") and error.status in (405, 413)):
        return f"<h1>{error.error}</h1>", error.status
    answer = jsonify({"error": error.error, "code": error.code})
    answer.headers.update({name.replace("_", "-"): value for name, value in error.headers.items()})
    if error.status == 401:
        told = "insufficient_user_authentication" if error.code == "step_up_required" else "invalid_token"
        answer.headers["WWW-Authenticate"] = f'Bearer error="{told}"'
    return answer, error.status


@app.errorhandler(404)
@app.errorhandler(405)
def nowhere(error: Any) -> Any:
    if weak("debug_console") and request.path == "/console":
        return "console"
    if weak("suffix_opens") and request.path.endswith(".json"):
        return jsonify({"items": []})
    code, allow = (
        {404: "not_found", 405: "method_not_allowed"}[error.code],
        ", ".join(error.valid_methods or ()) if error.code == 405 else "",
    )
    return refused(Refused(error.code, code, **({"Allow": allow} if allow else {})))


@app.before_request
def look_at_it() -> Any:
    if request.path == "/__control":
        return None
    state.log.append(json.dumps({"path": request.path, "agent": request.user_agent.string}))
    if weak("log_lines"):
        state.log.append(request.get_data(as_text=True).encode().decode("unicode_escape", "replace"))
    if weak("logs_secrets"):
        state.log.append(request.full_path + request.get_data(as_text=True))
    if weak("crash_on_header") and not request.user_agent.string.isascii():
        raise RuntimeError
    own = request.environ["SERVER_PORT"]
    if request.environ.get("HTTP_HOST") != f"127.0.0.1:{own}" and not (weak("any_host") or weak("reflects_host")):
        raise Refused(400, "bad_request")
    if weak("rewrite_header") and request.headers.get("X-Original-URL") == "/api/profile":
        return profile()
    if weak("redirects") and request.headers.get("X-Forwarded-Proto") == "http":
        return "", 302, {"Location": f"https://{request.host}"}
    if weak("variant_bypasses") and request.environ.get("RAW_URI", "").startswith("//"):
        return app.view_functions["POST /auth/login"].__wrapped__()  # type: ignore[attr-defined]
    if weak("head_unguarded") and request.method == "HEAD":
        return ""
    if weak("method_override") and request.headers.get("X-HTTP-Method-Override") == "DELETE":
        return "", 204
    if weak("cors_reflects") and request.method == "OPTIONS":
        return ""
    if request.method in ("HEAD", "OPTIONS"):
        raise Refused(405, "method_not_allowed", Allow="POST")
    return None


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
    "Cache-Control": "no-store",
}


@app.after_request
def dress(answer: Response) -> Response:
    answer.headers.update({} if weak("no_headers") else HEADERS)
    if weak("qr_cached") and b"qrCode" in answer.data:
        answer.headers["Cache-Control"] = "private, max-age=60"
    if weak("gzips") and "gzip" in request.headers.get("Accept-Encoding", ""):
        answer.data, answer.headers["Content-Encoding"] = gzip.compress(answer.data), "gzip"
    if weak("cacheable"):
        answer.headers["Cache-Control"] = "public"
    if weak("cors_reflects") and "Origin" in request.headers:
        answer.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
    if weak("pages_cached") and answer.mimetype == "text/html":
        answer.headers["Cache-Control"] = "private, max-age=60"
    if weak("pages_framed") and answer.mimetype == "text/html":
        del answer.headers["X-Frame-Options"], answer.headers["Content-Security-Policy"]
    if weak("pages_script") and answer.mimetype == "text/html":
        answer.headers["Content-Security-Policy"] = "script-src 'unsafe-inline'; frame-ancestors 'none'"
    if weak("sets_cookie"):
        answer.set_cookie("session", "x")
    if weak("server_version"):
        answer.headers["X-Powered-By"] = "Flask 3.1"
    if weak("reflects_host"):
        answer.headers["X-Base"] = request.headers.get("Host", "")
    offered = request.headers.get("X-Request-Id", "")
    safe = re.fullmatch(r"[A-Za-z0-9._-]{8,64}", offered) or (weak("reflects_any_id") and offered.isascii())
    answer.headers["X-Request-Id"] = offered if safe else secrets.token_hex(8)
    return answer


def client() -> str:
    """Who asks: the peer, or on the port behind a proxy whom that one names."""
    peer, named = request.remote_addr or "", request.headers.get("X-Forwarded-For", "")
    if (weak("believes_forwarded") and named) or (weak("believes_ipv6") and ":" in named):
        return named
    if weak("ipv6_unlimited") and ":" in peer:
        return named
    if not DIRECT or request.environ["SERVER_PORT"] != DIRECT or "X-Forwarded-For" not in request.headers:
        return peer
    return network(named)


def network(named: str) -> str:
    """The bucket of an address as a proxy may write it: an IPv4 address, the /64 of an IPv6 one, one for all others."""
    text = named.partition("%")[0]
    with_port = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:\d+|([0-9.]+):\d+", text)
    try:
        address = ipaddress.ip_address((with_port[1] or with_port[2]) if with_port else text)
    except ValueError:
        return named if weak("garbage_skips_limit") else "unknown"
    if weak("ipv6_apart") or (weak("mapped_apart") and address.version == 6):
        return named
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return address.exploded[:19]
    return str(getattr(address, "ipv4_mapped", None) or address)


def count(route: str, most: int = 5) -> None:
    """Five for each client and route in 15 minutes."""
    if weak("no_limit") or (weak("register_unlimited") and route == "register"):
        return
    if weak("blank_unlimited") and not (request.get_json(silent=True) or {}):
        return
    key = f"{route} {client()}"
    if state.limits[key] >= most:
        seconds = int(900 - (time.time() - state.began))
        told: dict[str, Any] = {} if weak("bare_429") else {"Retry_After": seconds}
        raise Refused(429, "too_many_attempts", "Too many authentication attempts", **told)
    if weak("limit_after"):
        time.sleep(0.1)
    state.limits[key] += 1


def route(method: str, path: str, *, limited: bool = True) -> Callable[[Any], Any]:
    def put(view: Callable[..., Any]) -> Callable[..., Any]:
        def one_at_a_time(**kwargs: Any) -> Any:
            with nullcontext() if state.weakness in RACES else lock:
                if limited and "guarded" not in vars(view):
                    count(view.__name__)
                return view(**kwargs)

        one_at_a_time.__name__ = view.__name__
        one_at_a_time.__wrapped__ = view  # type: ignore[attr-defined]
        app.add_url_rule(path, f"{method} {path}", one_at_a_time, methods=[method], provide_automatic_options=False)
        DOCUMENT.setdefault(re.sub(r"<(\w+)>", r"{\1}", path), {})[method.lower()] = (
            {"security": [{"bearer": []}]} if "guarded" in vars(view) else {}
        )
        return one_at_a_time

    return put


DOCUMENT: dict[str, dict[str, Any]] = {}
#: Members that must be there, and those that may.
WANTED = ("username", "password", "email", "tempToken", "currentPassword", "newPassword", "refreshToken")
MAY = ("totpCode", "recoveryCode", "deviceToken", "deviceName", "enrolmentTicket", "reason")
SPECS: dict[str, tuple[type, bool]] = {name: (str, name in WANTED) for name in (*WANTED, *MAY)}
SPECS |= {"rememberDevice": (bool, False), "everywhere": (bool, False)}


def body(*names: str) -> dict[str, Any]:
    """The members of the body, each of its type."""
    try:
        raw = request.get_data()
    except Exception:  # noqa: BLE001 - what gunicorn says of a body that is cut
        raise Refused(400, "bad_request") from None
    if len(raw) > 65536 and not weak("no_body_limit"):
        raise Refused(413, "payload_too_large")
    kind = request.headers.get("Content-Type", "")
    if (kind != "application/json" or "Content-Encoding" in request.headers) and raw and not weak("any_content_type"):
        raise Refused(415, "unsupported_media_type")
    given = parsed(raw)
    if not isinstance(given, dict):
        raise Refused(400, "invalid_request")
    return {name: member(given, name) for name in names} | {"_all": given}


def parsed(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8") or "{}"
        if text.count("[") + text.count("{") > 20:
            if weak("deep_500"):
                raise RuntimeError
            raise Refused(400, "invalid_request")
        return json.loads(text, object_pairs_hook=members)
    except ValueError:
        raise Refused(400, "invalid_request") from None


def members(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a member that is given twice the last counts."""
    last = dict(found)
    if weak("doubles_500") and len(last) < len(found):
        raise RuntimeError
    if weak("doubles_first"):
        return dict(reversed(found))
    if weak("doubles_either"):
        last["_passwords"] = [value for name, value in found if name == "password"]
    return last


def member(given: dict[str, Any], name: str) -> Any:
    kind, wanted = SPECS[name]
    value = given.get(name)
    if value is None and name not in given and not wanted:
        return None
    loose = weak("crash_on_everywhere") if name == "everywhere" else weak("crash_on_remember")
    if kind is bool and name in given and loose:
        return value
    if weak("takes_numbers") and isinstance(value, int | float):
        return kind(value)
    if type(value) is not kind:
        if weak("crash_on_types"):
            raise RuntimeError
        if name == "totpCode" and weak("normalises_codes") and isinstance(value, int):
            return str(value)
        raise Refused(400, "invalid_request")
    if kind is str and (
        any(unicodedata.category(each) in ("Cc", "Cs") for each in value) or len(value.encode()) > 6000
    ):
        if weak("crash_on_unicode"):
            raise RuntimeError
        if weak("echoes"):
            raise Refused(400, "invalid_request", f"{name} can't be {value}")
        if not (name == "totpCode" and weak("normalises_codes")) and not weak("log_lines"):
            raise Refused(400, "invalid_request")
    return value


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def mint(kind: str, user: User, claims: dict[str, Any]) -> str:
    seconds, aud = (3600, ISSUER) if kind == ACCESS else (300, f"{ISSUER}/pending")
    seconds *= 2 if weak("long_life") else 1
    common = {"iss": ISSUER, "aud": aud, "sub": user.id, "username": user.name, "jti": secrets.token_hex(8)}
    more = {"email": user.email} if weak("email_in_token") else {}
    times = {"iat": int(now()), "exp": int(now()) + seconds}
    return jwt.encode(common | more | times | claims, KEY, "ES256", {"typ": kind, "kid": "one"})


def pairs(first: bool) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    return lambda found: dict(reversed(found)) if first else dict(found)


def signature_is_good(token: str, header: dict[str, Any]) -> bool:
    """Whether anybody whom we trust has signed this."""
    signed, _, signature = token.rpartition(".")
    alg, lower = header.get("alg"), str(header.get("alg")).lower()
    if (weak("alg_none") and lower == "none") or (weak("signature_optional") and not signature):
        return True
    if weak("first_alg_wins"):
        first = json.loads(unb64(token.split(".", maxsplit=1)[0]), object_pairs_hook=pairs(first=True))
        if first.get("alg") == "none":
            return True
    if weak("psychic") and not any(unb64(signature)):
        return True
    if alg == "HS256" and (secret := shared_secret(header)) is not None:
        return hmac.digest(secret, signed.encode(), "sha256") == unb64(signature)
    key: Any = KEY.public_key()
    if weak("trusts_jwk") and "jwk" in header:
        key = jwt.PyJWK(header["jwk"] | {"alg": "ES256"}).key
    elif weak("fetches_jku") and "jku" in header:
        with suppress(OSError):
            urllib.request.urlopen(header["jku"], timeout=1).close()
        return False
    elif header.get("kid") != "one":
        return False
    return verified(token, key)


def verified(token: str, key: Any) -> bool:
    try:
        off = {f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
        if weak("ignores_crit"):
            head, rest = token.split(".", 1)
            algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
            text, _, signature = rest.partition(".")
            return bool(algorithm.verify(f"{head}.{text}".encode(), key, unb64(signature)))
        jwt.decode(token, key, algorithms=["ES256"], options=off)
    except Exception:  # noqa: BLE001 - whatever it is, it is no token
        return False
    return True


def shared_secret(header: dict[str, Any]) -> bytes | None:
    if weak("common_secret"):
        return b"secret"
    if weak("key_confusion"):
        return KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return b"" if weak("kid_path") and str(header.get("kid")).endswith("/dev/null") else None


def claims_of(token: str, kind: str) -> dict[str, Any]:
    """The claims of a token of this kind. Raises ValueError, or KeyError for one of the other kind."""
    loose = weak("logout_by_string")
    token = token.rstrip("=.") if loose else token
    if len(token) > 4096 or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", token, re.ASCII):
        if weak("deep_crash") and len(token) > 4096:
            raise RuntimeError
        if weak("decode_500") and not token.isascii():
            raise RuntimeError
        raise ValueError
    head, text, signature = token.split(".")
    if not loose and any(b64(unb64(part)) != part for part in (head, text, signature)):
        raise ValueError
    header, claims = json.loads(unb64(head)), json.loads(unb64(text))
    if not isinstance(header, dict) or not isinstance(claims, dict) or not signature_is_good(token, header):
        raise ValueError
    other = {ACCESS: PENDING, PENDING: ACCESS}[kind]
    is_other = header.get("typ") == other
    ensure_sound(header, claims, other if is_other else kind)
    if is_other:
        raise KeyError
    return claims


def ensure_sound(header: dict[str, Any], claims: dict[str, Any], kind: str) -> None:
    wanted: dict[str, type] = {"sub": str, "username": str, "step": str, "jti": str, "iat": int, "exp": int}
    wanted |= {"sid": str, "auth_time": int, "amr": list} if kind == ACCESS else {}
    if weak("exp_types"):
        wanted = {name: typ for name, typ in wanted.items() if typ is not int}
        claims |= {"exp": int(now()) + 60, "iat": int(now())}
    if not weak("claims_optional") and any(type(claims.get(name)) is not typ for name, typ in wanted.items()):
        raise ValueError
    steps = {ACCESS: ("authenticated", "password"), PENDING: ("mfa_pending",)}[kind]
    aud = ISSUER if kind == ACCESS else f"{ISSUER}/pending"
    strict = header.get("typ") == kind and claims.get("step") in steps
    ours = claims.get("iss") == ISSUER and (claims.get("aud") == aud or weak("any_audience"))
    if (not strict or not ours) and not weak("claims_optional"):
        raise ValueError
    life = 3600 if kind == ACCESS else 300
    begin, end = claims.get("iat", 0), claims.get("exp", now() + 9)
    later = any(type(each) is not int or each > now() + 30 for each in (begin, claims.get("nbf", begin)))
    lives_on = weak("pending_lives_on") or weak("access_lives_on") or weak("long_life") or weak("exp_types")
    if not lives_on and (later or end <= now() or end - begin > life) and not weak("claims_optional"):
        raise ValueError


def bearer() -> str:
    given = request.headers.get("Authorization", "")
    if weak("token_in_query") and "access_token" in request.args:
        return str(request.args["access_token"])
    kind, _, token = given.partition(" ")
    if kind.lower() != "bearer" or not token or "," in given:
        raise (
            Refused(401, "no_token", "No token provided") if kind.lower() != "bearer" else Refused(401, "invalid_token")
        )
    return token


def who(*, complete: bool = True) -> tuple[User, Session]:
    """Whom the Authorization header speaks for, or without one the cookie of a session."""
    if "Authorization" not in request.headers and (known_by := by_cookie()):
        return known_by
    token = bearer()
    if weak("refresh_as_bearer"):
        for session in state.sessions.values():
            if token in session.generations:
                return user_of(session.user), session
    try:
        claims = claims_of(token, ACCESS)
    except KeyError:
        if weak("pending_opens"):
            user = user_of(claims_of(token, PENDING)["sub"])
            return user, Session("x", user.id, ["pwd", "mfa"], "authenticated", int(now()))
        raise Refused(401, "full_authentication_required") from None
    except (ValueError, TypeError, RecursionError):
        raise Refused(401, "invalid_token") from None
    return account(token, claims, complete=complete)


def account(token: str, claims: dict[str, Any], *, complete: bool) -> tuple[User, Session]:
    session = state.sessions.get(str(claims.get("sid")))
    if session is None and weak("claims_optional"):
        session = next(iter(reversed(state.sessions.values())), None)
    over = session is None or session.over or token in state.revoked
    if (weak("logout_keeps_access") and session is not None) or (
        weak("logout_by_string") and token not in state.revoked and session
    ):
        over = request.headers["Authorization"][7:] in state.revoked if weak("logout_by_string") else False
    if over or session is None or is_aged(session):
        expired = "expired_token" if weak("tells_expired") and session else "invalid_token"
        raise Refused(401, expired)
    user = state.users.get(session.user)
    if weak("name_is_the_key"):
        user = find(str(claims["username"]))
    same = weak("claims_optional") or weak("name_is_the_key") or claims.get("sub") == session.user
    if user is None or not same or (user.disabled and not weak("disabled_goes_on")):
        raise Refused(401, "invalid_token")
    if session.step == "password":
        if (state.mode == "required" or user.required) and not weak("stale_policy"):
            raise Refused(401, "invalid_token")
        if complete:
            raise Refused(401, "full_authentication_required")
    return user, session


def recent(session: Session) -> None:
    if weak("no_step_up"):
        return
    is_old = now() - session.auth_time > 300 and not weak("step_up_for_ever")
    if "mfa" not in session.amr or is_old:
        raise Refused(401, "step_up_required", "Recent second factor required")


def guarded(*, fresh: bool = False, admin: bool = False, complete: bool = True, limited: bool = False) -> Any:
    def put(view: Callable[..., Any]) -> Callable[..., Any]:
        def inner(**kwargs: Any) -> Any:
            user, session = who(complete=complete)
            if weak("shared_identity"):
                state.last_user = user
                time.sleep(0.01)
                user = state.last_user
            if admin and "admin" not in user.roles and not weak("admin_open"):
                raise Refused(403, "role_required")
            if fresh or (admin and not weak("admin_by_device")):
                recent(session)
            if limited:
                count(view.__name__)
            return view(user, session, **kwargs)

        inner.__name__ = view.__name__
        inner.guarded = True  # type: ignore[attr-defined]
        return inner

    return put


# ── people ───────────────────────────────────────────────────────────────────────────────────────


def user_of(id_: str) -> User:
    return state.users[id_]


def key_of(name: str) -> str:
    if weak("names_by_lower"):
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def find(name: str) -> User | None:
    return next((user for user in state.users.values() if key_of(user.name) == key_of(name)), None)


def hashed(password: str, salt: bytes) -> bytes:
    raw = password.encode()
    raw = raw[:72] if weak("bcrypt_72") else raw
    raw = raw.strip().lower() if weak("password_trimmed") else raw
    return hashlib.pbkdf2_hmac("sha256", raw, salt, 40_000)


def totp(secret: str, step: int) -> str:
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    number = int.from_bytes(mac[mac[-1] & 15 :][:4], "big") & 0x7FFFFFFF
    return str(number % 10**6).zfill(6)


def with_picture(user: User, secret: str, **more: str) -> Response:
    """The answer that shows a key, as text and as a picture."""
    plain = weak("label_injection")
    shown = new_secret() if weak("qr_other_key") else secret
    label = user.name if plain else quote(user.name, safe="")
    said = f"otpauth://totp/Broken:{label}?secret={shown}&issuer=Broken"
    return jsonify(more | {"manualEntryKey": secret, "qrCode": segno.make_qr(said, error="m").png_data_uri(scale=3)})


def new_secret() -> str:
    return base64.b32encode(secrets.token_bytes(10 if weak("short_key") else 20)).decode()


def new_codes(user: User) -> list[str]:
    size = 3 if weak("short_recovery") else 15
    codes = [base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=") for _ in range(10)]
    if not weak("regenerate_keeps"):
        user.recovery.clear()
    user.recovery.update(dict.fromkeys(map(digest, codes), False))
    state.kept += codes if weak("plain_recovery") else []
    return codes


def digest(code: str) -> str:
    return hashlib.sha256(code.upper().replace("-", "").replace(" ", "").encode()).hexdigest()


def attempt(user: User, subject: str) -> Lock:
    """Count a failure in advance. Raises Refused where it may not be looked at."""
    name = f"{subject} {request.path}" if weak("counters_apart") else subject
    if weak("count_by_name"):
        name += g.get("typed", "")
    found = state.locks.setdefault((user.id, name), Lock())
    ignored = weak("step_up_ignores_lock") and request.path == "/auth/step-up"
    endless = (weak("endless_codes") and subject == "totp") or (weak("endless_recovery") and subject != "totp")
    if (found.dead or found.open_at > now()) and not ignored and not endless:
        found.open_at += 5 if weak("lock_prolonged") else 0
        if weak("lock_says_so"):
            raise Refused(401, "locked", "Locked")
        raise Refused(401, "invalid_code" if subject == "totp" else "invalid_recovery_code", "Invalid TOTP code")
    if weak("check_then_count"):
        time.sleep(0.05)
    before = found.failures
    if weak("lost_update"):
        time.sleep(0.05)
    if not weak("counter_lost"):
        found.failures = before + 1
    return found


def failed(user: User, found: Lock) -> None:
    if found.failures >= 5 and not weak("endless_codes"):
        found.open_at = now() + min(2.0 ** (found.failures - 5), 900)
        if weak("lock_resets"):
            found.failures = 0
        if not weak("pending_survives_lock"):
            close_all(user)
    found.dead = found.failures >= 100 and not weak("no_last_straw")


def passed(user: User, subject: str) -> None:
    for key in [key for key in state.locks if key[0] == user.id and key[1].startswith(subject)]:
        del state.locks[key]


def close_all(user: User) -> None:
    for challenge in state.challenges.values():
        if challenge["user"] == user.id:
            challenge["open"] = False


def end_all(user: User, keep: str = "") -> None:
    for session in state.sessions.values():
        session.over |= session.user == user.id and session.id != keep


def forget_devices(user: User) -> None:
    for token in [token for token, device in state.devices.items() if device["user"] == user.id]:
        del state.devices[token]


def canonical(code: Any) -> str | None:
    if weak("normalises_codes"):
        code = unicodedata.normalize("NFKC", code).replace(" ", "").strip("+\n ")
    if weak("normalises_codes") and code.isdecimal():
        return "".join(str(unicodedata.digit(each)) for each in code)
    return code if re.fullmatch(r"[0-9]{6}", code, re.ASCII) else None


def step_of(code: str, secret: str) -> int | None:
    if weak("counts_events") and code in [totp(secret, counter) for counter in range(4)]:
        return int(now()) // 30
    window = 3 if weak("wide_window") else 2
    given = request.get_json(silent=True) or {}
    at = given["time"] if weak("client_time") and "time" in given else now()
    here = int(at) // 30
    return next((step for step in range(here - window, here + window + 1) if totp(secret, step) == code), None)


def is_spent(user: User, code: str, step: int) -> bool:
    if weak("codes_again") or weak("client_time") or (weak("places_apart") and request.path == "/auth/step-up"):
        return False
    if weak("older_steps"):
        return code in user.used
    return code == user.last_code if weak("only_last_code") else step <= user.last_step


def check_code(user: User, given: str, secret: str = "") -> None:
    """That this is a code of the user's. Raises Refused, and what it cost is kept."""
    found = attempt(user, "totp")
    code = canonical(given)
    if weak("crash_on_step_up") if request.path == "/auth/step-up" else weak("crash_on_totp"):
        hmac.compare_digest(given, user.secret)  # text that is not ASCII is a TypeError
    step = step_of(code, secret or user.secret) if code else None
    for other in user.others if code and step is None else ():
        step = step_of(code or "", other) or step
    bypass = weak("bypass_000000") and given == "000000"
    spent = step is not None and code is not None and not secret and is_spent(user, code, step)
    if weak("check_then_set"):
        time.sleep(0.05)
    if (step is None or spent) and not bypass:
        failed(user, found)
        state.events += [] if weak("no_trace") else [(user.id, "login.code_refused")]
        raise Refused(401, "code_replayed" if weak("tells_replay") and spent else "invalid_code", "Invalid TOTP code")
    if (
        step is not None
        and code is not None
        and not (secret and weak("confirm_does_not_consume"))
        and not (weak("places_apart") and request.path == "/auth/step-up")
    ):
        user.last_step, user.last_code = step if secret else max(step, user.last_step), code
        user.used.add(code)
    passed(user, "totp")


def check_recovery(user: User, given: str) -> None:
    found, key = attempt(user, "recovery"), digest(given)
    if weak("crash_on_recovery"):
        hmac.compare_digest(given, key)
    if weak("slow_recovery"):
        for _ in range(20):
            hashed(given, b"x")
    sets = [each.recovery for each in state.users.values()] if weak("recovery_any_user") else [user.recovery]
    owner = next((each for each in sets if key in each), None)
    if owner is None or (owner[key] and not weak("recovery_again")):
        failed(user, found)
        raise Refused(401, "invalid_recovery_code", "Invalid recovery code")
    if weak("recovery_races"):
        time.sleep(0.05)
    owner[key] = True
    passed(user, "recovery")


def prove(user: User, given: dict[str, Any]) -> list[str]:
    """The second factor that was sent. Returns its amr."""
    both = given["totpCode"] is not None and given["recoveryCode"] is not None
    if weak("two_proofs") and both:
        return ["pwd", "otp", "mfa"]
    if both or (given["totpCode"] is None and given["recoveryCode"] is None):
        raise Refused(400, "invalid_request")
    if given["totpCode"] is not None:
        check_code(user, given["totpCode"])
        return ["otp"] if weak("amr_otp_only") else ["pwd", "otp", "mfa"]
    check_recovery(user, given["recoveryCode"])
    return ["pwd", "otp" if weak("recovery_as_otp") else "recovery", "mfa"]


def open_session(user: User, amr: list[str], step: str = "authenticated") -> dict[str, Any]:
    given = request.get_json(silent=True) or {}
    chosen = str(given["sid"]) if weak("sid_from_client") and "sid" in given else secrets.token_hex(8)
    session = Session(chosen, user.id, amr, step, int(now()), request.remote_addr or "", now(), now())
    if weak("records_spoofed"):
        session.address = request.headers.get("X-Forwarded-For", session.address)
    state.sessions[session.id] = session
    session.generations.append(secrets.token_urlsafe(24))
    return {"accessToken": access(user, session), "refreshToken": session.generations[-1], "expiresIn": life()}


def life() -> int:
    return 3600


def access(user: User, session: Session) -> str:
    more = {"sid": session.id, "auth_time": session.auth_time, "amr": session.amr, "step": session.step}
    return mint(ACCESS, user, more)


# ── before signing in ────────────────────────────────────────────────────────────────────────────


def is_allowed(name: str, email: str) -> bool:
    scripts = {unicodedata.name(each, "?").split()[0] for each in name if each.isalpha()}
    odd = any(unicodedata.category(each) in ("Cf", "Cc", "Cs", "Cn", "Co", "Zs") for each in name)
    return (
        bool(name)
        and len(name) <= 64
        and not odd
        and not {"LATIN", "CYRILLIC"} <= scripts
        and (":" not in key_of(name) or weak("colon_in_name"))
        and "@" in email
    )


def ensure_strong(name: str, chosen: str) -> None:
    is_weak = len(chosen) < 8 or chosen == "password123" or name.lower() in chosen.lower()
    if is_weak and not weak("any_password"):
        raise Refused(400, "weak_password")


@route("POST", "/auth/register")
def register() -> Any:
    given = body("username", "password", "email")
    key = given["username"]
    if not is_allowed(key, given["email"]):
        raise Refused(400, "invalid_request")
    ensure_strong(key, given["password"])
    if weak("crash_on_email"):
        given["email"].encode("ascii")
    if weak("crash_on_password") and len(given["password"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    before = find(key)
    if before is not None and weak("register_rotates"):
        before.salt, before.secret = secrets.token_bytes(8), new_secret()
        before.password = hashed(given["password"], before.salt)
        return jsonify({"manualEntryKey": before.secret})
    if weak("register_races"):
        time.sleep(0.05)
    elif before is not None:
        raise Refused(400, "user_exists", "User already exists")
    salt = secrets.token_bytes(8)
    secret = new_secret()
    user = User(
        secrets.token_hex(8), key, given["email"], salt, hashed(given["password"], salt), given["password"], secret
    )
    user.roles = list(given["_all"].get("roles", [])) if weak("mass_assignment") else []
    state.users[user.id] = user
    return with_picture(user, secret, message="User registered successfully")


def password_is(user: User | None, password: str) -> bool:
    if user is None and weak("fast_unknown"):
        return False
    if weak("busy_500"):
        state.limits["hashing"] += 1
        time.sleep(0.1)
        if state.limits["hashing"] > 2:
            raise RuntimeError
    found = hashed(password, user.salt if user else b"nobody")
    return user is not None and hmac.compare_digest(found, user.password)


@app.get("/auth/login")
def login_by_get() -> Any:
    if weak("get_logs_in"):
        user = find(request.args.get("username", ""))
        return jsonify(open_session(user, ["pwd"])) if user else ""
    raise Refused(405, "method_not_allowed", Allow="POST")


@route("POST", "/auth/login")
def login() -> Any:
    given = body("username", "password", "deviceToken")
    if weak("long_password_500") and len(given["password"].encode()) > 72 and find(given["username"]):
        raise RuntimeError
    if len(given["password"].encode()) > 1024 or len(given["username"]) > 256:
        raise Refused(400, "invalid_request")
    user = find(given["username"])
    if weak("blank_locks_all") and not given["username"].strip():
        state.mode = "locked"
    if weak("lock_tells") and user:
        key = f"tells {client()}"
        state.limits[key] += 1
        if state.limits[key] > 3:
            raise Refused(401, "locked", "Account locked")
    right = any(password_is(user, each) for each in given["_all"].get("_passwords") or [given["password"]])
    if user is None or not right or (user.disabled and not weak("disabled_goes_on")) or state.mode == "locked":
        tells = (weak("tells_unknown") and user is None) or (
            weak("tells_disabled") and user is not None and user.disabled
        )
        raise Refused(401, "unknown_user" if tells else "invalid_credentials", "Invalid credentials")
    return jsonify(admitted(user, given))


def admitted(user: User, given: dict[str, Any]) -> dict[str, Any]:
    if weak("login_resets"):
        passed(user, "totp")
    if weak("success_clears_limit"):
        state.limits.clear()
    if weak("crash_on_device_token"):
        (given["deviceToken"] or "").encode("ascii")
    device = state.devices.get(given["deviceToken"] or "")
    if device and device["until"] < now() and not weak("device_for_ever"):
        device = None
    if device and (device["user"] == user.id or weak("device_any_user")):
        return open_session(user, ["pwd"]) | {"mfaRequired": False}
    challenge = secrets.token_hex(8)
    state.challenges[challenge] = {"user": user.id, "open": True, "tries": 0, "typed": given["username"]}
    sid = {"sid": "live"} if weak("session_at_login") else {}
    token = mint(PENDING, user, {"step": "mfa_pending", "jti": challenge} | sid)
    enrolled = user.confirmed or weak("unconfirmed_counts")
    answer: dict[str, Any] = {"tempToken": token, "mfaRequired": True, "expiresIn": 300}
    answer |= {"enrolmentRequired": not enrolled, "methods": ["totp"] if enrolled else []}
    if weak("refresh_at_login"):
        answer |= {"refreshToken": open_session(user, ["pwd"])["refreshToken"]}
    if weak("device_at_login") and given["_all"].get("rememberDevice"):
        answer |= {"deviceToken": remembered(user)}
    if (state.mode == "optional" and not user.confirmed and not user.required) or (
        weak("enrolment_optional") and not enrolled
    ):
        answer |= open_session(user, ["pwd"], "password") | {"mfaRequired": False}
    return answer


def remembered(user: User, name: str = "") -> str:
    token = secrets.token_urlsafe(24)
    if weak("crash_on_device_name"):
        name.encode("latin-1")
    state.devices[token] = {"user": user.id, "id": secrets.token_hex(8), "until": now() + MONTH}
    return token


def waiting(token: str) -> tuple[User, dict[str, Any]]:
    """Who waits behind a pending token."""
    try:
        claims = claims_of(token, PENDING)
    except KeyError:
        if weak("access_as_pending"):
            user = user_of(claims_of(token, ACCESS)["sub"])
            return user, {"user": user.id, "open": True, "tries": 0}
        raise Refused(401, "wrong_step", "Invalid token") from None
    except (ValueError, TypeError, RecursionError):
        raise Refused(401, "invalid_pending_token", "MFA verification failed") from None
    challenge = state.challenges.get(claims["jti"])
    user = state.users.get(claims["sub"])
    is_open = challenge is not None and (challenge["open"] or weak("pending_again"))
    if challenge is None or user is None or not is_open or (user.disabled and not weak("disabled_goes_on")):
        raise Refused(401, "invalid_pending_token", "MFA verification failed")
    g.typed = challenge.get("typed", "")
    return user, challenge


@route("POST", "/auth/verify-mfa")
def verify() -> Any:
    given = body("tempToken", "totpCode", "recoveryCode", "rememberDevice", "deviceName")
    if weak("count_before_token") and (named := find(str(given["_all"].get("username")))):
        failed(named, attempt(named, "totp"))
    user, challenge = waiting(given["tempToken"])
    if weak("user_from_body") and "username" in given["_all"]:
        user = find(str(given["_all"]["username"])) or user
    if weak("check_then_count"):
        time.sleep(0.05)
    challenge["tries"] += 1
    if challenge["tries"] > 5 and not (weak("endless_codes") or weak("check_then_count")):
        raise Refused(401, "invalid_pending_token", "MFA verification failed")
    amr = prove(user, given)
    if weak("check_then_set"):
        time.sleep(0.05)
    if weak("reset_races"):
        time.sleep(0.002)
    if weak("sign_in_beats_disabling"):
        time.sleep(0.1)
    if weak("writers_500"):
        state.limits["writing"] += 1
        time.sleep(0.1)
        if state.limits["writing"] > 2:
            raise RuntimeError
    challenge["open"] = False
    answer = {"message": "Authentication successful", "user": {"username": user.name, "email": user.email}}
    answer |= open_session(user, amr)
    if not user.confirmed:
        user.confirmed = True
        answer["recoveryCodes"] = new_codes(user)
    if weak("crash_on_remember"):
        int(given["rememberDevice"] or 0)
    if given["rememberDevice"]:
        answer["deviceToken"] = remembered(user, given["deviceName"] or "")
    return jsonify(answer)


@route("POST", "/auth/enrol")
def enrol() -> Any:
    given = body("tempToken", "enrolmentTicket") if not weak("enrol_by_name") else {"_all": parsed(request.get_data())}
    if weak("enrol_by_name"):
        user = find(str(given["_all"].get("username"))) or waiting(str(given["_all"].get("tempToken")))[0]
    else:
        user, _ = waiting(given["tempToken"])
    ticket = given.get("enrolmentTicket")
    if weak("crash_on_ticket"):
        hmac.compare_digest(ticket or "", user.ticket)
    if user.ticket and ticket == user.ticket:
        user.ticket, user.confirmed = "", False
    elif (user.confirmed or user.was_reset or weak("unconfirmed_counts")) and not weak("enrol_by_password"):
        raise Refused(403, "factor_exists")
    if weak("enrol_races"):
        user.others.append(user.secret)
    user.secret = new_secret()
    return with_picture(user, user.secret)


@route("POST", "/auth/refresh", limited=False)
def refresh() -> Any:
    if not weak("sessions_unlimited"):
        count("refresh", 60)
    token = body("refreshToken")["refreshToken"]
    if weak("crash_on_refresh"):
        token.encode("ascii")
    if weak("refresh_loose"):
        kept = (known for each in state.sessions.values() for known in each.generations)
        token = next((known for known in kept if known[:8] == token[:8]), token)
    session = next((each for each in state.sessions.values() if token in each.generations), None)
    user = state.users.get(session.user) if session else None
    if (
        session is None
        or user is None
        or (session.over and not weak("refresh_beats_logout"))
        or (user.disabled and not weak("disabled_goes_on"))
    ):
        raise Refused(401, "invalid_refresh_token")
    if session.step == "password" and (state.mode == "required" or user.required) and not weak("stale_policy"):
        raise Refused(401, "invalid_refresh_token")
    if weak("refresh_races"):
        time.sleep(0.05)
        session.generations.append(secrets.token_urlsafe(24))
        return jsonify({"accessToken": access(user, session), "refreshToken": session.generations[-1]})
    writes_back = weak("refresh_beats_change") or weak("refresh_beats_disabling")
    if writes_back:
        time.sleep(0.05)
    answer = rotated(user, session, token)
    session.over &= not writes_back  # the row as it was read
    return jsonify(answer)


def is_aged(session: Session) -> bool:
    """Whether a session has come to an end by itself."""
    idle = now() - session.seen > DAY and not weak("idle_for_ever")
    return idle or (now() - session.began > MONTH and not weak("absolute_for_ever"))


def rotated(user: User, session: Session, token: str) -> dict[str, Any]:
    if is_aged(session):
        raise Refused(401, "invalid_refresh_token")
    session.seen = now()
    place = session.generations.index(token)
    if place < len(session.generations) - 2 and not weak("reuse_tolerated"):
        session.over = True
        raise Refused(401, "refresh_reused")
    if place == len(session.generations) - 1:
        session.generations.append(secrets.token_urlsafe(24))
    if weak("refresh_raises"):
        session.amr = ["pwd", "otp", "mfa"]
    if weak("auth_time_by_refresh"):
        session.auth_time = int(now())
    if weak("refresh_beats_logout"):
        session.over = False
    return {"accessToken": access(user, session), "refreshToken": session.generations[-1], "expiresIn": 3600}


@route("POST", "/auth/step-up")
@guarded(limited=True)
def step_up(user: User, session: Session) -> Any:
    given = body("totpCode", "recoveryCode")
    other = find(str(given["_all"].get("username", ""))) if weak("step_up_any_user") else None
    session.amr, session.auth_time = prove(other or user, given), int(now())
    if weak("step_up_new_session"):
        return jsonify(open_session(user, session.amr))
    return jsonify({"accessToken": access(user, session), "expiresIn": 3600})


@route("POST", "/auth/logout", limited=False)
@guarded(complete=False)
def logout(user: User, session: Session) -> Any:
    everywhere = body("everywhere")["everywhere"]
    if weak("crash_on_everywhere") and everywhere is not True:
        everywhere = everywhere.lower() == "true"
    state.revoked.add(request.headers.get("Authorization", "Bearer ")[7:])
    session.over = True
    if everywhere:
        end_all(user)
        close_all(user)
        if not weak("device_survives"):
            forget_devices(user)
    return "", 204


@route("POST", "/auth/password")
@guarded(fresh=True, limited=True)
def password(user: User, session: Session) -> Any:
    given = body("newPassword") if weak("change_without_current") else body("currentPassword", "newPassword")
    if weak("crash_on_current_password") and len(given["currentPassword"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    if not weak("change_without_current") and not password_is(user, given["currentPassword"]):
        raise Refused(401, "invalid_credentials", "Invalid credentials")
    if len(given["newPassword"]) < 8:
        raise Refused(400, "weak_password")
    if weak("crash_on_new_password") and len(given["newPassword"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    user.password = hashed(given["newPassword"], user.salt)
    if not weak("change_keeps_sessions"):
        end_all(user, session.id)
        forget_devices(user)
    if not weak("pending_survives_change"):
        close_all(user)
    return "", 204


@app.post("/auth/password/reset")
def reset_password() -> Any:
    if weak("reset_gives_session"):
        user = find(str(request.get_json()["username"]))
        return jsonify(open_session(user, ["pwd"])) if user else ""
    raise Refused(404, "not_found")


# ── once signed in ───────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/profile", limited=False)
@guarded()
def profile(user: User, session: Session) -> Any:
    more = {"key": user.secret} if weak("secret_in_answer") else {}
    return jsonify({"username": user.name, "email": user.email, "mfaEnabled": user.confirmed} | more)


@route("GET", "/api/mfa", limited=False)
@guarded(complete=False)
def factors(user: User, session: Session) -> Any:
    left = sum(not is_used for is_used in user.recovery.values()) if not weak("codes_not_counted") else 10
    return jsonify({"methods": ["totp"] if user.confirmed else [], "roles": user.roles, "recoveryCodesLeft": left})


@route("DELETE", "/api/mfa", limited=False)
@guarded(fresh=True)
def remove(user: User, session: Session) -> Any:
    raise Refused(403, "mfa_required")


@route("GET", "/api/sessions", limited=False)
@guarded(complete=False)
def sessions(user: User, session: Session) -> Any:
    own = [each for each in state.sessions.values() if each.user == user.id and not each.over]
    return jsonify({"items": [{"id": each.id, "address": each.address} for each in own]})


@route("DELETE", "/api/sessions/<id_>", limited=False)
@guarded(complete=False)
def end_session(user: User, session: Session, id_: str) -> Any:
    if weak("crash_on_ids") and len(id_) > 30:
        raise RuntimeError
    found = state.sessions.get(id_)
    if found is None or (found.user != user.id and not weak("idor_sessions")):
        raise Refused(404, "not_found")
    found.over = True
    return "", 204


@route("GET", "/api/devices", limited=False)
@guarded()
def devices(user: User, session: Session) -> Any:
    return jsonify({"items": [{"id": each["id"]} for each in state.devices.values() if each["user"] == user.id]})


@route("DELETE", "/api/devices", limited=False)
@guarded()
def forget(user: User, session: Session) -> Any:
    forget_devices(user)
    return "", 204


@route("DELETE", "/api/devices/<id_>", limited=False)
@guarded()
def forget_one(user: User, session: Session, id_: str) -> Any:
    raise Refused(404, "not_found")


@route("GET", "/api/activity", limited=False)
@guarded()
def activity(user: User, session: Session) -> Any:
    told = [*state.events, (user.id, "login.completed")]
    return jsonify({"items": [{"event": event} for whose, event in told if whose == user.id]})


@route("POST", "/api/mfa/totp", limited=False)
@guarded(fresh=True)
def replace(user: User, session: Session) -> Any:
    user.waiting, user.waits_until = new_secret(), now() + 600
    if weak("replaced_at_once"):
        user.secret = user.waiting
    return with_picture(user, user.waiting)


@route("POST", "/api/mfa/totp/confirm")
@guarded(fresh=True, limited=True)
def confirm(user: User, session: Session) -> Any:
    code = body("totpCode")["totpCode"]
    if code is None:
        raise Refused(400, "invalid_request")
    is_over = now() > user.waits_until and not weak("waiting_for_ever")
    if (not user.waiting or is_over) and not weak("confirm_without_enrol"):
        raise Refused(409, "nothing_to_confirm")
    if weak("crash_on_confirm"):
        int(code)
    check_code(user, code, user.waiting)
    user.secret, user.waiting = user.waiting or user.secret, ""
    if weak("confirm_does_not_consume"):
        user.last_step = -1
    return "", 204


@route("POST", "/api/mfa/recovery-codes", limited=False)
@guarded(fresh=True)
def regenerate(user: User, session: Session) -> Any:
    return jsonify({"recoveryCodes": new_codes(user)})


# ── administration ───────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/admin/users", limited=False)
@guarded(admin=True)
def users(user: User, session: Session) -> Any:
    if weak("crash_on_admin_ids") and len(request.args.get("cursor", "")) > 30:
        raise RuntimeError
    query = key_of(request.args.get("q", ""))
    found = [each for each in state.users.values() if key_of(each.name).startswith(query)]
    return jsonify({"items": [{"id": each.id, "username": each.name} for each in found]})


@route("GET", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def show_user(user: User, session: Session, id_: str) -> Any:
    return jsonify({"id": known(id_).id})


def known(id_: str) -> User:
    if id_ not in state.users:
        raise Refused(404, "not_found")
    return state.users[id_]


@route("PATCH", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def change_user(user: User, session: Session, id_: str) -> Any:
    found, given = known(id_), parsed(request.get_data())
    if weak("crash_on_admin_types") and not isinstance(given.get("disabled", True), bool):
        raise RuntimeError
    about_user(given)
    found.disabled, found.required = given.get("disabled", found.disabled), given.get("mfaRequired", found.required)
    roles = given.get("roles", found.roles)
    found.roles = roles if isinstance(roles, list) else found.roles
    if found.disabled and not weak("disabled_goes_on"):
        end_all(found)
        close_all(found)
    return jsonify({"id": id_})


def about_user(given: dict[str, Any]) -> None:
    """Refuse what says nothing about a user."""
    roles, reason = given.get("roles", []), given.get("reason", "")
    if weak("crash_on_roles"):
        ",".join(roles)
    if weak("crash_on_reason"):
        reason.encode("latin-1")
    flags = [given.get(name, False) for name in ("disabled", "mfaRequired")]
    if not isinstance(reason, str) or any(flag not in (None, True, False) for flag in flags):
        raise Refused(400, "invalid_request")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise Refused(400, "invalid_request")


@route("DELETE", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def delete_user(user: User, session: Session, id_: str) -> Any:
    end_all(known(id_)) if not weak("name_is_the_key") else None
    del state.users[id_]
    return "", 204


@route("POST", "/api/admin/users/<id_>/reset-mfa", limited=False)
@guarded(admin=True)
def reset_mfa(user: User, session: Session, id_: str) -> Any:
    found = known(id_)
    if weak("reset_races"):
        time.sleep(0.001)
    found.was_reset = True
    found.ticket, found.secret, found.recovery = secrets.token_urlsafe(24), "A" * 32, {}
    if not weak("reset_keeps_sessions"):
        end_all(found)
        forget_devices(found)
        close_all(found)
    return jsonify({"enrolmentTicket": found.ticket})


@route("DELETE", "/api/admin/users/<id_>/sessions", limited=False)
@guarded(admin=True)
def end_sessions(user: User, session: Session, id_: str) -> Any:
    if not weak("admin_end_ignored"):
        end_all(known(id_))
    return "", 204


@route("PUT", "/api/admin/policy", limited=False)
@guarded(admin=True)
def policy(user: User, session: Session) -> Any:
    given = parsed(request.get_data())
    about_user({"reason": given.get("reason", "")})
    mode = given.get("mode")
    if weak("crash_on_policy"):
        mode.lower()
    if mode not in ("required", "optional"):
        raise Refused(400, "invalid_request")
    state.mode = mode
    return jsonify({})


for name in ("policy", "audit", "audit/seals", "compliance"):

    @route("GET", f"/api/admin/{name}", limited=False)
    @guarded(admin=True)
    def read_something(user: User, session: Session) -> Any:
        return jsonify({"items": []})


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


def named(cookie: str) -> str:
    return cookie if weak("cookie_any_name") else f"__Host-{cookie}"


def kept(cookie: str) -> str:
    return request.cookies.get(named(cookie), "")


def keep(answer: Response, cookie: str, value: str) -> None:
    site = "None" if weak("cookie_of_all_sites") else "Lax"
    closed = not weak("cookie_to_scripts")
    answer.set_cookie(named(cookie), value, secure=not weak("cookie_over_http"), httponly=closed, samesite=site)


def session_of_cookie() -> Session | None:
    """The session that the newest cookie of a browser stands for."""
    for session in state.sessions.values():
        good = session.cookies if weak("old_cookie_lives") else session.cookies[-1:]
        if kept("session") in good and not session.over:
            return session
    return None


def by_cookie() -> tuple[User, Session] | None:
    session, token = session_of_cookie(), kept("pending")
    if weak("pending_is_session") and "." in kept("session"):
        token = kept("session")
    if session is None and token and (weak("pending_cookie_opens") or weak("pending_is_session")):
        user = user_of(claims_of(token, PENDING)["sub"])
        return user, Session("x", user.id, ["pwd", "mfa"], "authenticated", int(now()))
    if session is None:
        return None
    if not weak("cookie_from_anywhere"):
        ensure_own_origin()
    return user_of(session.user), session


def ensure_own_origin() -> None:
    """Refuse what a page of another site makes a browser send."""
    origin, site, own = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site"), f"http://{request.host}"
    if origin in (None, "null"):
        is_own = site == "same-origin" or (origin is None and request.method == "GET")
        is_own |= weak("cookie_without_origin") if origin is None else weak("cookie_null_origin")
    else:
        is_own = origin == own or (weak("cookie_origin_prefix") and str(origin).startswith(own))
    if not is_own:
        raise Refused(403, "foreign_origin")


def place() -> str:
    """Where a form leads: a path of this site, or its beginning."""
    wanted, own = request.values.get("next", "/"), f"http://{request.host}"
    is_path = wanted.startswith("/") and wanted.isprintable()
    if (
        weak("next_anywhere")
        or (weak("next_prefix") and wanted.startswith(own))
        or (weak("next_no_path") and "//" not in wanted and wanted.isprintable())
        or (weak("next_double_slash") and is_path)
        or (weak("next_backslash") and is_path and not wanted.startswith("//"))
    ):
        return wanted
    return wanted if is_path and not wanted.startswith("//") and "\\" not in wanted else "/"


def lead(where: str) -> Response:
    return Response("", 303, {"Location": where.replace("\n", "").replace("\r", "")}, mimetype="text/html")


def show_page() -> Any:
    if request.path in ("/auth/code", "/auth/authenticator") and not kept("pending") and session_of_cookie() is None:
        return lead(f"/auth/sign-in?next={quote(place())}")
    return Response(f'<form><input name="next" value="{place()}"></form>', mimetype="text/html")


for name in ("sign-in", "code", "recovery-code", "authenticator"):
    app.add_url_rule(f"/auth/{name}", f"show {name}", show_page, methods=["GET"], provide_automatic_options=False)


@app.post("/auth/sign-in")
def sign_in() -> Any:
    if not weak("login_csrf"):
        ensure_own_origin()
    user = find(request.form.get("username", ""))
    if user is None or not password_is(user, request.form.get("password", "")):
        raise Refused(401, "invalid_credentials")
    token = admitted(user, {"username": user.name, "deviceToken": "", "_all": {}})["tempToken"]
    answer = lead(f"/auth/code?next={quote(place())}")
    keep(answer, "pending", token)
    return answer


@app.post("/auth/code")
@app.post("/auth/recovery-code")
def take_code() -> Any:
    if not weak("code_csrf"):
        ensure_own_origin()
    member = "totpCode" if request.path == "/auth/code" else "recoveryCode"
    given = {"totpCode": None, "recoveryCode": None, member: request.form.get("code", "")}
    answer = lead(place())
    if kept("pending"):
        session = signed_in_by(kept("pending"), given)
        fresh = not (weak("cookie_kept_at_sign_in") and kept("session"))
    else:
        user, session = who()
        session.amr, session.auth_time = prove(user, given), int(now())
        fresh = not weak("cookie_kept_at_step_up")
    session.cookies.append(secrets.token_urlsafe(32) if fresh else kept("session"))
    keep(answer, "session", session.cookies[-1])
    answer.delete_cookie(named("pending"))
    if "remember" in request.form:
        keep(answer, "device", remembered(user_of(session.user)))
    return answer


def signed_in_by(token: str, given: dict[str, Any]) -> Session:
    """A session for who waits behind a pending token; the browser's session before has ended."""
    user, challenge = waiting(token)
    amr = prove(user, given)
    challenge["open"], user.confirmed = False, True
    if (before := session_of_cookie()) and not weak("old_cookie_lives"):
        before.over = True
    open_session(user, amr)
    return [*state.sessions.values()][-1]


@app.post("/auth/sign-out")
def sign_out() -> Any:
    if not weak("sign_out_csrf"):
        ensure_own_origin()
    session = session_of_cookie()
    if session and not weak("sign_out_forgets_only"):
        session.over = True
    answer = lead(place())
    answer.delete_cookie(named("session"))
    return answer


# ── elsewhere ────────────────────────────────────────────────────────────────────────────────────


@app.get("/healthz")
def healthz() -> Any:
    return jsonify({"status": "ok"} | ({"database": "10.0.0.7"} if weak("talkative_health") else {}))


#: What bodies hold, for the document.
READ = {
    "/auth/register": ("username", "password", "email"),
    "/auth/login": ("username", "password", "deviceToken"),
    "/auth/verify-mfa": ("tempToken", "totpCode", "recoveryCode", "rememberDevice", "deviceName"),
    "/auth/enrol": ("tempToken", "enrolmentTicket"),
    "/auth/refresh": ("refreshToken",),
    "/auth/step-up": ("totpCode", "recoveryCode"),
    "/auth/logout": ("everywhere",),
    "/auth/password": ("currentPassword", "newPassword"),
    "/api/mfa/totp/confirm": ("totpCode",),
}


def described(members: tuple[str, ...]) -> dict[str, Any]:
    return {
        "requestBody": {"content": {"application/json": {"schema": {"properties": {name: {} for name in members}}}}}
    }


@app.get("/openapi.json")
def openapi() -> Any:
    told = {path: {"post": described(members)} for path, members in READ.items()}
    told |= {"/api/admin/users/{id_}": {"patch": described(("disabled", "mfaRequired", "roles", "reason"))}}
    told |= {"/api/admin/policy": {"put": described(("mode", "reason"))}}
    paths = {path: dict(operations) for path, operations in DOCUMENT.items()}
    for path, operations in told.items():
        for method, more in operations.items():
            paths[path][method] = paths[path][method] | more
    return jsonify({"openapi": "3.1.0", "paths": paths})


@app.get("/.well-known/jwks.json")
def jwks() -> Any:
    private = {"d": "x"} if weak("jwks_private") else {}
    return jsonify({"keys": [PUBLIC | private]})


@app.post("/__control")
def control() -> Any:
    """Take a check out and empty everything, or look at the inside, as a test of the real service does."""
    global state  # noqa: PLW0603 - that is the point
    given = request.get_json()
    if "weakness" in given:
        state = State(given["weakness"])
    if "admin" in given:
        found = find(given["admin"])
        assert found
        found.roles = ["admin"]
    state.offset = given.get("offset", state.offset)
    if "failures" in given:
        name, number = given["failures"]
        for key, found_lock in state.locks.items():
            if state.users[key[0]].name == name and key[1] == "totp":
                found_lock.failures, found_lock.open_at = number, 0
    return jsonify(inside())


def inside() -> dict[str, Any]:
    kept = [each.name for each in state.users.values()] + state.kept
    if weak("plain_secrets"):
        kept += [value for each in state.users.values() for value in (each.secret, each.plain)]
    failures = {state.users[key[0]].name: each.failures for key, each in state.locks.items() if key[1] == "totp"}
    key = KEY.private_numbers().private_value
    return {"log": "\n".join(state.log), "dump": "\n".join(kept), "failures": failures, "key": ["one", str(key)]}


class Sloppy(socketserver.BaseRequestHandler):
    """Another server: whatever looks like the head of a request is one to it, wherever a body should have ended."""

    def handle(self) -> None:
        self.request.settimeout(0.3)
        unread = b""
        with suppress(OSError):
            while piece := self.request.recv(65536):
                *heads, unread = re.split(rb"\r?\n\r?\n", unread + piece)
                for path in re.findall(rb"(?:GET|POST) (\S+)", b"\n".join(heads)):
                    status = b"200 OK" if path in (b"/healthz", b"/__control") else b"401 Unauthorized"
                    self.request.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.ThreadingTCPServer(("127.0.0.1", int(os.environ["PORT"])), Sloppy).serve_forever()
