"""For apps that only verify: who is let in, however the view is written, and what goes wrong is said clearly."""

import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from flask.views import MethodView, View
from werkzeug.utils import import_string

from mfa_service.crypto.signing import SharedSecret, SigningKeys
from mfa_service.crypto.tokens import MEMO_SIZE, PASSWORD, Identity, Minter
from mfa_service.errors import ConfigurationError, InvalidToken, Unavailable
from mfa_service.guard import Guard, current_identity, require_login, require_mfa
from mfa_service.jwks import FRESH_SECONDS, PAUSE_SECONDS, RemoteKeys
from tests.factories import bearer

ISSUER = "https://auth.example"
KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
SECRET = "Zk3v9Qp1Lr7Xw5Tb8Nc2Hs6Jd4Gf0MyAeUi"


# ── views ────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_is_called_for_a_good_token_alone(app: Flask, client: FlaskClient, token: str) -> None:
    @app.get("/")
    @require_mfa
    def view() -> str:
        return current_identity.username

    assert client.get("/", headers=bearer(token)).text == "ada"
    assert_refused(client, "no_token")
    assert_refused(client, "invalid_token", token + "x")


def test_above_the_route_it_is_noticed_through_other_decorators(app: Flask, client: FlaskClient) -> None:
    def logged(view: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(view)
        def calling(*args: object) -> str:
            return view(*args)

        return calling

    @app.get("/")
    def view() -> str:
        return "secret"

    require_mfa(logged(view))
    with pytest.raises(ConfigurationError, match="above the route"):
        client.get("/")


def test_a_class_that_is_guarded_after_its_view_was_made_is_noticed(app: Flask, client: FlaskClient) -> None:
    class Secret(View):
        def dispatch_request(self) -> str:
            return "secret"

    app.add_url_rule("/", view_func=Secret.as_view("secret"))
    require_mfa(Secret)
    with pytest.raises(ConfigurationError, match="above the route"):
        client.get("/")


def test_one_function_may_be_guarded_again_for_another_app_or_otherwise(token: str) -> None:
    def view() -> str:
        return current_identity.username

    for guarded in (require_mfa(view), require_mfa(view), require_mfa(max_age=10**9)(view)):
        app = Flask("one of several")
        Guard.from_secret(SECRET, issuer=ISSUER, audience="shop").init_app(app)
        app.add_url_rule("/", view_func=guarded)
        assert app.test_client().get("/").json["code"] == "no_token"


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="by name"):
        require_mfa(300)  # type: ignore[call-overload]


def test_with_parentheses_it_is_the_same(app: Flask, client: FlaskClient, token: str) -> None:
    app.add_url_rule("/", view_func=require_mfa()(lambda: current_identity.username))
    assert client.get("/", headers=bearer(token)).text == "ada"
    assert_refused(client, "no_token")


def test_a_view_that_a_request_loads_is_guarded_from_that_request_on(
    app: Flask, client: FlaskClient, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the `LazyView` of Flask's manual does it."""
    lines = (
        "from flask.views import View",
        "from mfa_service.guard import current_identity, require_mfa",
        "@require_mfa(max_age=60)",
        "def view(): return current_identity.username",
        "@require_mfa(max_age=60)",
        "class Whole(View):",
        "    def dispatch_request(self): return current_identity.username",
        "whole = Whole.as_view('whole')",
    )
    (tmp_path / "loaded_lazily.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("view", "whole"):
        app.add_url_rule(f"/{name}", name, lambda name=name: import_string(f"loaded_lazily:{name}")())
    for name in ("view", "whole"):
        for headers in ({}, bearer(token)):
            sys.modules.pop("loaded_lazily", None)
            answer = client.get(f"/{name}", headers=headers)
            assert answer.text == "ada" if headers else answer.json["code"] == "no_token"


def test_with_options_it_is_no_check_to_call_within_a_view(app: Flask, client: FlaskClient, token: str) -> None:
    @app.get("/")
    def view() -> str:
        require_mfa(max_age=60)
        return "secret"

    for headers in ({}, bearer(token)):
        with pytest.raises(ConfigurationError, match="within"):
            client.get("/", headers=headers)


def test_an_async_view_is_guarded_as_well(app: Flask, client: FlaskClient, token: str) -> None:
    pytest.importorskip("asgiref")

    @app.get("/")
    @require_mfa
    async def view() -> str:
        return current_identity.username

    assert client.get("/", headers=bearer(token)).text == "ada"
    assert_refused(client, "no_token")


def test_a_view_class_is_guarded_by_its_list_or_as_a_whole(app: Flask, client: FlaskClient, token: str) -> None:
    class Listed(View):
        decorators = (require_mfa,)

        def dispatch_request(self) -> str:
            return current_identity.username

    @require_mfa(max_age=60)
    class Whole(MethodView):
        def get(self) -> str:
            return current_identity.username

    app.add_url_rule("/listed", view_func=Listed.as_view("listed"))
    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    for path in ("/listed", "/whole"):
        assert client.get(path, headers=bearer(token)).text == "ada"
        assert_refused(client, "no_token", path=path)


@pytest.mark.parametrize("guard", [require_mfa, require_mfa(max_age=60)], ids=["bare", "with an age"])
def test_a_blueprint_is_guarded_whole(app: Flask, client: FlaskClient, token: str, guard: Any) -> None:
    shop = Blueprint("shop", __name__)
    shop.before_request(guard)
    shop.add_url_rule("/pay", "pay", lambda: current_identity.username, methods=["GET", "POST"])
    shop.add_url_rule("/cart", "cart", lambda: "cart")
    app.register_blueprint(shop)
    app.add_url_rule("/", "free", lambda: "free")
    assert client.get("/pay", headers=bearer(token)).text == "ada"
    for path in ("/pay", "/cart"):
        assert_refused(client, "no_token", path=path)
    assert client.head("/cart").status_code == client.post("/pay").status_code == 401
    assert client.get("/").text == "free"


def test_above_the_route_it_would_guard_nothing_and_says_so(app: Flask, client: FlaskClient) -> None:
    @require_mfa
    @app.get("/")
    def view() -> str:
        return "let in"

    with pytest.raises(ConfigurationError, match="view: @require_mfa stands above the route"):
        client.get("/")
    with pytest.raises(ConfigurationError):
        client.get("/")


def test_names_and_texts_of_views_stay(app: Flask) -> None:
    @require_mfa(max_age=5)
    def pay() -> str:
        """Pay."""
        return ""

    assert (pay.__name__, pay.__doc__) == ("pay", "Pay.")


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def test_an_old_second_factor_is_a_challenge(app: Flask, client: FlaskClient) -> None:
    app.add_url_rule("/", view_func=require_mfa(max_age=300)(lambda: "in"))
    assert client.get("/", headers=bearer(minted(auth_time=int(time.time()) - 299))).text == "in"
    answer = assert_refused(client, "step_up_required", minted(auth_time=int(time.time()) - 300))
    assert 'error="insufficient_user_authentication"' in answer.headers["WWW-Authenticate"]
    assert 'max_age="300"' in answer.headers["WWW-Authenticate"]
    assert_refused(client, "step_up_required", minted(amr=("pwd",)))


def test_a_password_alone_opens_what_asks_for_a_login(app: Flask, client: FlaskClient) -> None:
    app.add_url_rule("/mfa", "mfa", require_mfa(lambda: "in"))
    app.add_url_rule("/login", "login", require_login(lambda: "in"))
    weak = minted(step=PASSWORD, amr=("pwd",))
    assert client.get("/login", headers=bearer(weak)).text == "in"
    assert_refused(client, "full_authentication_required", weak, path="/mfa")


def test_an_optional_view_knows_who_comes_and_refuses_a_bad_token(app: Flask, client: FlaskClient, token: str) -> None:
    @app.get("/")
    @require_mfa(optional=True)
    def view() -> str:
        return current_identity.username if current_identity else "nobody"

    assert client.get("/").text == "nobody"
    assert client.get("/", headers=bearer(token)).text == "ada"
    assert_refused(client, "invalid_token", "x.y.z")


def test_a_role_without_a_live_check_is_an_error_at_once(app: Flask, client: FlaskClient) -> None:
    app.add_url_rule("/", "view", require_mfa(role="admin")(lambda: "in"))
    with pytest.raises(ConfigurationError, match="view: role='admin' needs a guard with find_account"):
        client.get("/other")


def test_with_a_live_check_roles_and_endings_count_at_once() -> None:
    accounts: dict[str, Any] = {"user": Roles(frozenset({"staff"}))}
    app = Flask("live")
    guard = Guard.from_secret(
        SECRET, issuer=ISSUER, audience="shop", find_account=lambda identity: accounts.get(identity.user_id)
    )
    guard.init_app(app)
    app.add_url_rule("/", "view", require_mfa(role="staff")(lambda: "in"))
    client, token = app.test_client(), minted(SharedSecret(SECRET))
    assert client.get("/", headers=bearer(token)).text == "in"
    accounts["user"] = Roles(frozenset())
    assert client.get("/", headers=bearer(token)).status_code == 403
    del accounts["user"]
    assert_refused(client, "invalid_token", token)


def test_identity_outside_of_a_guarded_view_is_an_error(app: Flask, client: FlaskClient) -> None:
    app.add_url_rule("/", "view", lambda: current_identity.username)
    with pytest.raises(RuntimeError, match="only under require_mfa"):
        client.get("/")


def test_an_app_without_a_guard_refuses_to_guess() -> None:
    app = Flask("bare")
    app.testing = True
    app.add_url_rule("/", "view", require_mfa(lambda: "in"))
    with pytest.raises(ConfigurationError, match="no guard"):
        app.test_client().get("/")


def test_two_guards_in_one_app_are_one_too_many(app: Flask) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        Guard.from_secret(SECRET, issuer=ISSUER, audience="shop").init_app(app)


def test_no_identity_leaks_into_the_next_request(app: Flask, client: FlaskClient, token: str) -> None:
    app.add_url_rule("/", "view", require_mfa(optional=True)(lambda: str(bool(current_identity))))
    assert [client.get("/", headers=headers).text for headers in (bearer(token), {})] == ["True", "False"]


def test_two_apps_in_one_process_know_nothing_of_each_other(token: str) -> None:
    apps = [guarded(Guard.from_secret(secret, issuer=ISSUER, audience="shop")) for secret in (SECRET, SECRET[::-1])]
    mine = minted(SharedSecret(SECRET))
    assert [app.test_client().get("/", headers=bearer(mine)).status_code for app in apps] == [200, 401]
    assert [app.test_client().get("/", headers=bearer(token)).status_code for app in apps] == [401, 401]


@pytest.mark.parametrize("secret", ["", "short", "x" * 31])
def test_a_short_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        Guard.from_secret(secret, issuer=ISSUER, audience="shop")


# ── keys from elsewhere ──────────────────────────────────────────────────────────────────────────


def test_keys_are_fetched_once_and_kept(published: "Published") -> None:
    keys, clock = remote(published)
    for _ in range(5):
        assert keys.find(kid_of(KEY)) is not None
    assert published.fetches == 1
    clock.now += FRESH_SECONDS
    assert keys.find(kid_of(KEY)) is not None
    assert published.fetches == 2


def test_an_unknown_key_makes_one_more_fetch_and_no_hammer(published: "Published") -> None:
    keys, clock = remote(published)
    assert keys.find(kid_of(KEY))
    for number in range(100):
        assert keys.find(f"forged-{number}") is None
    assert published.fetches == 1
    clock.now += PAUSE_SECONDS
    published.keys = [KEY, OTHER]
    assert keys.find(kid_of(OTHER)) is not None
    assert published.fetches == 2


@pytest.mark.parametrize(
    "failure", [OSError("down"), ValueError("nonsense"), b"<html>", b"[]", b"{}", b'{"keys": 1}', b""]
)
def test_when_a_fetch_fails_the_old_keys_stay(published: "Published", failure: Exception | bytes) -> None:
    keys, clock = remote(published)
    assert keys.find(kid_of(KEY))
    published.failure = failure
    clock.now += FRESH_SECONDS
    assert keys.find(kid_of(KEY)) is not None
    published.failure = None
    published.keys = [OTHER]
    clock.now += FRESH_SECONDS
    assert keys.find(kid_of(OTHER)) is not None
    assert keys.find(kid_of(KEY)) is None


def test_who_comes_while_the_first_keys_are_fetched_waits_for_them(published: "Published") -> None:
    (keys, _), found = remote(published), []
    published.gate = threading.Event()
    threads = [threading.Thread(target=lambda: found.append(keys.find(kid_of(KEY)))) for _ in range(4)]
    threads[0].start()
    published.reached.wait(5)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.1)
    assert found == []
    published.gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert None not in found
    assert published.fetches == 1


def test_before_the_keys_could_be_read_once_nobody_is_told_that_a_token_is_bad(published: "Published") -> None:
    published.failure = OSError("down")
    keys, clock = remote(published)
    with pytest.raises(Unavailable) as refusal:
        keys.find(kid_of(KEY))
    assert refusal.value.retry_after == PAUSE_SECONDS
    published.failure = None
    clock.now += PAUSE_SECONDS
    assert keys.find(kid_of(KEY)) is not None


def test_one_thread_fetches_and_the_others_go_on(published: "Published") -> None:
    keys, clock = remote(published)
    keys.find(kid_of(KEY))
    clock.now += FRESH_SECONDS
    published.gate = threading.Event()
    slow = threading.Thread(target=keys.find, args=(kid_of(KEY),))
    slow.start()
    published.reached.wait(5)
    began = time.monotonic()
    assert keys.find(kid_of(KEY)) is not None
    assert time.monotonic() - began < 1
    published.gate.set()
    slow.join()
    assert published.fetches == 2


def test_keys_of_another_kind_or_use_are_left_out(published: "Published") -> None:
    good = SigningKeys([KEY]).public_jwks()["keys"][0]
    for change in ({"use": "enc"}, {"alg": "ES384"}, {"kty": "RSA"}, {"crv": "P-384"}, {"kid": 7}):
        published.failure = json.dumps({"keys": [good | change]}).encode()
        assert remote(published)[0].find(good["kid"]) is None
    published.failure = json.dumps({"keys": [None, 1, "x", good]}).encode()
    assert remote(published)[0].find(good["kid"]) is not None


@pytest.mark.parametrize("kid", [None, 1, True, [], {}, "../../dev/null", "' OR 1=1"])
def test_a_kid_is_looked_up_and_never_followed(published: "Published", kid: object) -> None:
    assert remote(published)[0].find(kid) is None


@pytest.mark.services
def test_over_http_it_is_the_document_that_the_service_publishes(serve: Callable[..., str]) -> None:
    address = serve()
    keys = RemoteKeys(f"{address}/.well-known/jwks.json")
    assert keys.find("unknown") is None
    with pytest.raises(InvalidToken):
        Guard.from_jwks(f"{address}/.well-known/jwks.json", issuer=address, audience=address)._verifier.access(
            minted(), now=time.time()
        )


def test_addresses_of_other_schemes_are_not_opened(tmp_path: Any) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(SigningKeys([KEY]).public_jwks()))
    with pytest.raises(Unavailable):
        RemoteKeys(f"file://{tmp_path}/keys.json").find(kid_of(KEY))


def test_a_large_answer_is_refused() -> None:
    class Large(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b" " * 100_000)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Large) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Unavailable):
            RemoteKeys(f"http://127.0.0.1:{server.server_port}/").find("x")
        server.shutdown()


# ── a verified token the second time ─────────────────────────────────────────────────────────────


def test_a_remembered_token_ends_with_its_time_and_with_its_key() -> None:
    keys = Exchangeable(SigningKeys([KEY]))
    from mfa_service.crypto.tokens import Verifier

    verifier, now = Verifier(keys, issuer=ISSUER, audience="shop"), time.time()
    token = minted()
    assert verifier.access(token, now=now) == verifier.access(token, now=now)
    for later in (now + 3601, now - 3600):
        with pytest.raises(InvalidToken):
            verifier.access(token, now=later)
    keys.keys = SigningKeys([OTHER])
    with pytest.raises(InvalidToken):
        verifier.access(token, now=now)


def test_a_remembered_token_is_so_still_when_the_same_keys_were_fetched_again() -> None:
    from mfa_service.crypto.tokens import Verifier

    published, now = Published(), time.time()
    keys, clock = remote(published)
    verifier, token = Verifier(keys, issuer=ISSUER, audience="shop"), minted()
    identity = verifier.access(token, now=now)
    clock.now += FRESH_SECONDS
    assert verifier.access(token, now=now) is identity
    assert published.fetches == 2


def test_another_spelling_of_a_remembered_token_is_another_token(app: Flask, client: FlaskClient, token: str) -> None:
    app.add_url_rule("/", "view", require_mfa(lambda: "in"))
    assert client.get("/", headers=bearer(token)).text == "in"
    assert_refused(client, "invalid_token", f"{token}=")


def test_the_memory_is_bounded() -> None:
    from mfa_service.crypto.tokens import Verifier

    verifier, now = Verifier(SharedSecret(SECRET), issuer=ISSUER, audience="shop"), time.time()
    for _ in range(MEMO_SIZE + 10):
        verifier.access(minted(SharedSecret(SECRET)), now=now)
    assert len(verifier._memo) <= MEMO_SIZE


# ── the side door ────────────────────────────────────────────────────────────────────────────────


def test_a_verifier_by_keys_loads_no_database_and_no_password_hashing() -> None:
    script = (
        "import sys; from mfa_service.guard import Guard;"
        "Guard.from_jwks('https://a.example/jwks', issuer='https://a.example', audience='x');"
        "print([name for name in ('sqlalchemy', 'pyotp', 'pydantic', 'flask_limiter') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Roles:
    def __init__(self, roles: frozenset[str]) -> None:
        self.roles = roles


class Exchangeable:
    """Keys that a test changes under a verifier."""

    algorithm = "ES256"

    def __init__(self, keys: SigningKeys) -> None:
        self.keys = keys

    def find(self, kid: object) -> Any:
        return self.keys.find(kid)


class Ticks:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Published:
    """A JWK Set as somebody else serves it."""

    def __init__(self) -> None:
        self.keys = [KEY]
        self.fetches = 0
        self.failure: Exception | bytes | None = None
        self.gate: threading.Event | None = None
        self.reached = threading.Event()

    def __call__(self, _url: str) -> bytes:
        self.fetches += 1
        if self.gate:
            self.reached.set()
            self.gate.wait(5)
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure or json.dumps(SigningKeys(self.keys).public_jwks()).encode()


def remote(published: Published) -> tuple[RemoteKeys, Ticks]:
    clock = Ticks()
    return RemoteKeys("https://auth.example/jwks", fetch=published, clock=clock), clock


def kid_of(key: ec.EllipticCurvePrivateKey) -> str:
    return str(SigningKeys([key]).signer[0])


def minted(
    keys: SigningKeys | SharedSecret | None = None,
    *,
    step: str = "authenticated",
    amr: tuple[str, ...] = ("pwd", "otp", "mfa"),
    auth_time: int | None = None,
) -> str:
    minted_at = time.time()
    identity = Identity("user", "ada", "session", int(auth_time or minted_at), amr, step)
    minter = Minter(keys or SigningKeys([KEY]), issuer=ISSUER, audiences=("shop",))
    return minter.access(identity, token_id=f"{minted_at}", now=minted_at)


def guarded(guard: Guard) -> Flask:
    app = Flask("guarded")
    app.testing = True
    guard.init_app(app)
    app.add_url_rule("/", "view", require_mfa(lambda: "in"))
    return app


def assert_refused(client: FlaskClient, code: str, token: str = "", path: str = "/") -> Any:
    answer = client.get(path, headers=bearer(token) if token else {})
    assert (answer.status_code, answer.json["code"]) == (401, code), answer.text
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["Cache-Control"] == "no-store"
    return answer


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def app(published: Published) -> Flask:
    """An app of somebody else that verifies our tokens."""
    made = Flask("shop")
    made.testing = True
    Guard.from_jwks("https://auth.example/jwks", issuer=ISSUER, audience="shop", fetch=published).init_app(made)
    return made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def token() -> str:
    return minted()
