"""In somebody else's app: their users, tables, errors and settings stay theirs, and nobody else gets in."""

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from flask import Flask, abort
from flask_limiter import Limiter
from flask_login import AnonymousUserMixin, LoginManager, UserMixin
from flask_sqlalchemy import SQLAlchemy
from flask_talisman import Talisman
from flask_wtf import CSRFProtect
from sqlalchemy import create_engine, inspect, text

from mfa_service import MFA, HostUser, current_identity, require_login
from mfa_service.app import create_app
from mfa_service.errors import ConfigurationError, InvalidCredentials, InvalidRequest
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo
from mfa_service.services.login import MFAPending, PasswordOnly, SignedIn
from tests.conftest import ROOT, Clock
from tests.factories import bearer, register, sign_in, totp
from tests.hosts import STANDALONE, MakeShop, Shop, enrol, log_in, orders

pytestmark = pytest.mark.filterwarnings("ignore:Using the in-memory storage")


# ── a user of the host ───────────────────────────────────────────────────────────────────────────


def test_the_host_checks_the_password_and_we_the_code(shop: Shop, clock: Clock) -> None:
    user_id = shop.add("ada")
    client = shop.client()
    token, secret = enrol(client, "ada", clock())
    assert orders(client, token).json == {"of": str(user_id), "user": "ada"}
    clock.advance(30)
    pending = log_in(client, "ada")
    assert orders(client, pending).json["error"] == "Full authentication required"
    body = {"tempToken": pending, "totpCode": totp(secret, int(clock()) // 30)}
    assert client.post("/auth/verify-mfa", json=body).json["user"] == {"username": "ada", "email": ""}


def test_everything_after_the_password_is_there(shop: Shop, clock: Clock) -> None:
    shop.add("ada")
    client = shop.client()
    token, _ = enrol(client, "ada", clock())
    for path in ("/api/profile", "/api/mfa", "/api/sessions", "/api/devices", "/api/activity", "/auth/check"):
        assert client.get(path, headers=bearer(token)).status_code in (200, 204), path
    assert client.post("/api/mfa/recovery-codes", headers=bearer(token)).status_code == 200
    assert client.post("/auth/logout", headers=bearer(token)).status_code == 204
    assert orders(client, token).status_code == 401


@pytest.mark.parametrize("path", ["/auth/register", "/auth/password", "/auth/sign-in"])
def test_what_needs_a_password_of_ours_is_absent(shop: Shop, path: str) -> None:
    assert shop.client().post(path, json={}).status_code == 404
    assert shop.client().get(path).status_code == 404
    assert path not in shop.client().get("/auth/openapi.json").json["paths"]


def test_the_hosts_own_login_is_not_in_our_document(shop: Shop) -> None:
    assert "/auth/login" not in shop.client().get("/auth/openapi.json").json["paths"]


def test_who_registered_elsewhere_on_the_same_database_is_nobody_here(
    shop: Shop, config: dict[str, Any], clock: Clock
) -> None:
    elsewhere = create_app(config, clock=clock)
    token = sign_in(elsewhere.test_client(), register(elsewhere.test_client(), "admin"), clock())
    assert elsewhere.test_client().get("/api/profile", headers=bearer(token)).status_code == 200
    answer = orders(shop.client(), token)
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_token")
    assert shop.client().get("/api/profile", headers=bearer(token)).status_code == 401
    elsewhere.extensions["mfa_service"].services.close()


def test_whom_the_host_does_not_know_any_more_is_refused(shop: Shop, clock: Clock) -> None:
    user_id = shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    with shop.app.app_context():
        shop.db.session.delete(shop.db.session.get(shop.User, user_id))
        shop.db.session.commit()
    assert orders(shop.client(), token).status_code == 401
    assert shop.client().get("/api/profile", headers=bearer(token)).status_code == 401


def test_a_token_of_another_than_the_host_has_signed_in_is_refused(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop()
    signed_in: list[HostUser] = []
    shop.mfa.current_user_loader(lambda: signed_in[-1] if signed_in else None)
    ada = shop.add("ada")
    shop.add("mallory")
    token, _ = enrol(shop.client(), "mallory", clock())
    assert orders(shop.client(), token).status_code == 200
    signed_in.append(HostUser(ada, "ada"))
    assert orders(shop.client(), token).json["code"] == "invalid_token"


def test_without_a_loader_a_linked_account_is_enough(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop(loads_users=False)
    shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    assert orders(shop.client(), token).status_code == 200


def test_a_loader_that_fails_lets_nobody_in(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop()
    shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    shop.mfa.user_loader(lambda _identity: 1 // 0)
    shop.app.config["PROPAGATE_EXCEPTIONS"] = False
    assert orders(shop.client(), token).status_code == 500


def test_an_unlinked_user_leaves_nothing_to_who_gets_the_same_id(shop: Shop, clock: Clock) -> None:
    user_id = shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    with shop.app.app_context():
        shop.mfa.accounts.unlink(user_id)
        shop.mfa.accounts.unlink(user_id)  # nothing is left, and that is no mistake
        again = shop.mfa.login.continue_for(user_id, username="mallory")
    assert orders(shop.client(), token).status_code == 401
    assert isinstance(again, MFAPending)
    assert again.methods == ()


def test_a_name_is_a_label_that_follows_the_host(shop: Shop) -> None:
    def profile_of(external_id: str | int, username: str, email: str = "") -> tuple[str, str]:
        shop.mfa.login.continue_for(external_id, username=username, email=email)
        found = shop.mfa.services.directory.show(str(shop.mfa.services.directory.find_id(str(external_id))))
        return found.entry.user.username, found.entry.user.email

    with shop.app.app_context():
        assert profile_of(1, "ada", "ada@example.com") == ("ada", "ada@example.com")
        assert profile_of(2, "ada") == ("ada", "")  # not unique
        assert profile_of(1, "Ada Lovelace:\u200b x", "new@example.com") == ("Ada Lovelace: x", "new@example.com")
        assert profile_of("uuid-é", "a" * 300) == ("a" * 254, "")
        assert profile_of(1, "ada", "not\nprintable") == ("ada", "")


@pytest.mark.parametrize("external_id", [None, True, "", "None", "a\x00b", "\ud800", "x" * 256, 1.5, b"1"])
def test_what_can_be_nobodys_id_is_said_at_once(shop: Shop, external_id: Any) -> None:
    with shop.app.app_context(), pytest.raises(ValueError, match="a user's id must be"):
        shop.mfa.login.continue_for(external_id, username="ada")


def test_an_id_may_be_text_a_number_or_a_uuid(shop: Shop) -> None:
    with shop.app.app_context():
        for external_id in ("é" * 255, 2**70, uuid.UUID(int=7)):
            shop.mfa.login.continue_for(external_id, username="ada")
            assert shop.mfa.services.directory.find_id(str(external_id))
            shop.mfa.accounts.unlink(external_id)


@pytest.mark.parametrize("username", ["", "  ", "\x00\u200b"])
def test_a_name_that_shows_nothing_is_refused(shop: Shop, username: str) -> None:
    with shop.app.app_context(), pytest.raises(InvalidRequest):
        shop.mfa.login.continue_for(1, username=username)


def test_an_account_that_is_disabled_here_goes_no_further(shop: Shop, clock: Clock) -> None:
    shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    with shop.app.app_context():
        services = shop.mfa.services
        services.administration.disable(By(ClientInfo()), str(services.directory.find_id("1")))
        with pytest.raises(InvalidCredentials):
            shop.mfa.login.continue_for(1, username="ada")
    assert orders(shop.client(), token).status_code == 401


def test_the_three_outcomes_of_going_on(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop()
    client = shop.client()
    shop.add("ada")
    pending = log_in(client, "ada")
    secret = client.post("/auth/enrol", json={"tempToken": pending}).json["manualEntryKey"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(clock()) // 30), "rememberDevice": True}
    device = client.post("/auth/verify-mfa", json=body).json["deviceToken"]
    with shop.app.app_context():
        login = shop.mfa.login
        assert isinstance(login.continue_for(1, username="ada"), MFAPending)
        assert isinstance(login.continue_for(1, username="ada", device_token=device), SignedIn)
        assert isinstance(login.continue_for(2, username="bob", device_token=device), MFAPending)
        shop.mfa.services.administration.change_policy(By(ClientInfo()), _optional)
        assert isinstance(login.continue_for(3, username="eve"), PasswordOnly)


def test_a_password_alone_opens_what_asks_for_no_more(make_shop: MakeShop) -> None:
    shop = make_shop()
    shop.app.add_url_rule("/shelf", view_func=require_login(lambda: current_identity.username), endpoint="shelf")
    with shop.app.app_context():
        shop.mfa.services.administration.change_policy(By(ClientInfo()), _optional)
    shop.add("ada")
    token = shop.client().post("/auth/login", json={"name": "ada", "password": "ada"}).json["access"]
    assert shop.client().get("/shelf", headers=bearer(token)).text == "ada"
    assert orders(shop.client(), token).json["code"] == "full_authentication_required"


def test_the_token_says_whose_it_is_in_the_host(shop: Shop, clock: Clock) -> None:
    user_id = shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    identity = shop.app.extensions["mfa_service"].services.verifier.access(token, now=clock())
    assert identity.external_id == str(user_id)
    assert identity.user_id != str(user_id)


# ── the database ─────────────────────────────────────────────────────────────────────────────────


def test_what_the_host_has_not_committed_stays_so(shop: Shop, rows: Callable[..., list[dict[str, Any]]]) -> None:
    with shop.app.app_context():
        shop.db.session.add(shop.User(name="pending"))
        shop.mfa.login.continue_for(1, username="ada")
        assert shop.db.session.new
        assert rows("SELECT * FROM users WHERE name = 'pending'") == []
        shop.db.session.commit()
    assert rows("SELECT name FROM users") == [{"name": "pending"}]


def test_the_hosts_tables_are_not_looked_at(shop: Shop, rows: Callable[..., list[dict[str, Any]]]) -> None:
    shop.add("ada")
    with shop.app.app_context():
        names = set(inspect(shop.db.engine).get_table_names())
    assert {"users", "mfa_users", "mfa_alembic_version"} <= names
    assert {name for name in names if not name.startswith("mfa_")} == {"users"}
    assert rows("SELECT * FROM mfa_users") == []


def test_an_engine_of_plain_sqlalchemy_will_do(
    database: str, config: dict[str, Any], clock: Clock, closing: Callable[..., None]
) -> None:
    engine = create_engine(database)
    app = Flask("plain")
    app.config |= _mfa_only(config)
    mfa = MFA(app, engine=engine, clock=clock)
    closing(app)
    with app.app_context():
        assert isinstance(mfa.login.continue_for(7, username="ada"), MFAPending)
    app.extensions["mfa_service"].services.close()
    with engine.connect() as connection:  # borrowed, and not closed
        assert connection.execute(text("SELECT external_id FROM mfa_users")).scalar() == "7"
    engine.dispose()


def test_a_database_of_our_own_will_do(
    database: str, config: dict[str, Any], clock: Clock, closing: Callable[..., None]
) -> None:
    app = Flask("apart")
    app.config |= _mfa_only(config) | {"MFA_DATABASE_URL": database}
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    SQLAlchemy(app)
    mfa = MFA(app, clock=clock)
    closing(app)
    with app.app_context():
        assert isinstance(mfa.login.continue_for(7, username="ada"), MFAPending)


@pytest.mark.parametrize("database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_whatever_isolation_the_hosts_engine_has_our_units_are_whole(
    database: str, config: dict[str, Any], clock: Clock, closing: Callable[..., None], level: str
) -> None:
    engine = create_engine(database, isolation_level=level)
    with engine.connect() as connection:
        before = connection.get_isolation_level(), connection.connection.driver_connection.autocommit
    app = Flask("plain")
    app.config |= _mfa_only(config)
    mfa = MFA(app, engine=engine, clock=clock)
    closing(app)
    with app.app_context():
        services = mfa.services
        mfa.login.continue_for(7, username="ada")
        levels = services.unit.run(lambda: services.session.scalar(text("SHOW transaction_isolation")), writes=True)
    assert levels == "read committed"
    with engine.connect() as connection:  # and theirs is as it was
        assert (connection.get_isolation_level(), connection.connection.driver_connection.autocommit) == before
    engine.dispose()


def test_their_autogenerate_can_leave_our_tables_out(shop: Shop) -> None:
    def is_theirs(name: str | None, kind: str, _parents: Any) -> bool:
        return not (kind == "table" and str(name).startswith("mfa_"))

    engine = create_engine(shop.app.config["SQLALCHEMY_DATABASE_URI"])
    with engine.connect() as connection:
        greedy = MigrationContext.configure(connection)
        modest = MigrationContext.configure(connection, opts={"include_name": is_theirs})
        dropped = produce_migrations(greedy, shop.db.metadata).upgrade_ops
        kept = produce_migrations(modest, shop.db.metadata).upgrade_ops
    engine.dispose()
    assert "mfa_users" in str(dropped.as_diffs())  # type: ignore[union-attr]
    assert kept.is_empty()  # type: ignore[union-attr]
    said = (ROOT / "docs/embedding.md").read_text()
    assert 'not (kind == "table" and name.startswith("mfa_"))' in said


def test_their_commands_migrate_and_administrate_our_tables_in_their_database(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import time\n"
        "from flask import Flask\n"
        "from flask_sqlalchemy import SQLAlchemy\n"
        "from mfa_service import MFA\n"
        "app = Flask(__name__)\n"
        f"app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite:///{tmp_path}/shop.db'\n"
        "db = SQLAlchemy(app)\n"
        "mfa = MFA(app)\n"
        "@app.cli.command('meet')\n"
        "def meet():\n"
        "    mfa.login.continue_for(42, username='ada')\n"
        "def mail(notices, notice):\n"
        "    time.sleep(0.5)\n"
        "    print('mail to', notice.username, 'of', notice.event, flush=True)\n"
        "app.extensions['mfa_service'].services.notices.signal.connect(mail)\n"
    )
    flask = _flask(tmp_path, tmp_path / "keys")
    flask("mfa", "init")
    assert "shop.db is at revision" in flask("mfa", "upgrade")
    assert not (tmp_path / "instance").exists()
    assert "error" not in flask("mfa", "doctor")
    flask("meet")
    assert "ada" in flask("mfa", "list")
    flask("mfa", "set-role", "42", "admin")
    assert "admin" in flask("mfa", "show", "42")
    assert "the app's own" in flask("mfa", "create-admin", "bob", code=2)
    assert "mail to ada of factor.removed" in flask("mfa", "reset-mfa", "42", "--reason", "lost", "--yes")


# ── what is the host's stays the host's ──────────────────────────────────────────────────────────


def test_of_the_hosts_app_nothing_is_different_but_what_is_documented(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False)
    _settle(shop.app)
    before = _snapshot(shop.app)
    shop.embed()
    after = _snapshot(shop.app)
    assert after.pop("extensions") - before.pop("extensions") == {"mfa_service", "mfa_guard"}
    assert set(before["rules"]) <= set(after["rules"])
    added = [name for _, name in set(after.pop("rules")) - set(before.pop("rules"))]
    assert {name.partition(".")[0] for name in added} == {"mfa_auth", "mfa_api", "mfa_meta"}
    # Looks at the app once; answers refusals of `require_mfa`.
    assert len(after.pop("before_request")) - len(before.pop("before_request")) == 2
    handlers = after.pop("error_handlers") - before.pop("error_handlers")
    assert {name for _, name in handlers} == {"MFAError"}
    assert after == before


def test_their_errors_are_answered_by_them_and_ours_by_us(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False)
    app = shop.app
    for status in (400, 401, 403, 404, 405, 413, 415, 429, 500):
        app.register_error_handler(status, lambda error: (f"the shop's {error.code}", error.code))
    app.register_error_handler(Exception, lambda error: ("the shop's own", getattr(error, "code", 500)))
    app.add_url_rule("/broken", view_func=lambda: 1 // 0, endpoint="broken")
    app.add_url_rule("/forbidden", view_func=lambda: abort(403), endpoint="forbidden")
    shop.embed()
    client = shop.client()
    assert client.get("/nowhere").text == "the shop's 404"
    assert client.get("/broken").text == "the shop's own"
    assert client.get("/forbidden").text == "the shop's 403"
    assert client.get("/orders").json["code"] == "no_token"
    assert client.get("/api/profile").json["code"] == "no_token"
    assert client.post("/auth/refresh", data="{").json["code"] == "unsupported_media_type"
    assert client.post("/auth/refresh", json={}).json["code"] == "invalid_request"
    big = client.post("/auth/refresh", json={"refreshToken": "x" * 70_000})
    assert (big.status_code, big.json["code"]) == (413, "payload_too_large")


def test_a_failure_of_ours_is_ours(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop()
    shop.add("ada")
    token, _ = enrol(shop.client(), "ada", clock())
    shop.mfa.user_loader(lambda _identity: 1 // 0)
    answer = shop.client().get("/api/profile", headers=bearer(token))
    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")


def test_our_answers_carry_our_headers_and_theirs_do_not(shop: Shop) -> None:
    ours, theirs = shop.client().get("/api/profile"), shop.client().get("/nowhere")
    assert ours.headers["Cache-Control"] == "no-store"
    assert ours.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert ours.headers["X-Request-Id"]
    # What speaks for the whole origin is the host's to say.
    assert {"Strict-Transport-Security", "Origin-Agent-Cluster"} & set(ours.headers.keys()) == set()
    assert set(theirs.headers.keys()) == {"Content-Type", "Content-Length"}


def test_names_and_prefixes_are_the_hosts_to_choose(make_shop: MakeShop, clock: Clock) -> None:
    shop = make_shop(MFA_AUTH_PREFIX="/people/mfa", MFA_API_PREFIX="/people/me", MFA_BLUEPRINT_PREFIX="second_factor_")
    shop.add("ada")
    client = shop.client()
    token, _ = enrol(client, "ada", clock(), prefix="/people/mfa")
    assert client.get("/people/me/profile", headers=bearer(token)).status_code == 200
    assert client.get("/api/profile", headers=bearer(token)).status_code == 404
    assert {"second_factor_auth", "second_factor_api", "auth"} <= set(shop.app.blueprints)
    assert client.get("/people/mfa/docs").status_code == 200
    page = client.get("/people/mfa/docs").text
    assert 'href="docs/swagger-ui.css"' in page
    assert client.get("/people/mfa/docs/swagger-ui.css").status_code == 200
    assert client.get("/people/mfa/.well-known/jwks.json").json["keys"]


# ── other extensions in the host ─────────────────────────────────────────────────────────────────


def test_their_limiter_and_ours_count_apart(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False, MFA_AUTH_RATE_LIMIT="2 per hour")
    shop.app.config |= {"RATELIMIT_ENABLED": True, "RATELIMIT_STRATEGY": "moving-window"}
    limiter = Limiter(lambda: "everybody", app=shop.app, default_limits=["6 per hour"])
    shop.app.register_error_handler(429, lambda _error: ("the shop's 429", 429))
    shop.app.add_url_rule("/shelf", view_func=limiter.limit("1 per hour")(lambda: "books"), endpoint="shelf")
    shop.embed()
    client = shop.client()
    assert [client.get("/shelf").status_code for _ in range(2)] == [200, 429]
    assert client.get("/shelf").text == "the shop's 429"
    statuses = [client.post("/auth/enrol", json={"tempToken": "x"}) for _ in range(3)]
    assert [answer.status_code for answer in statuses] == [401, 401, 429]
    assert statuses[-1].json["code"] == "too_many_attempts"
    assert int(statuses[-1].headers["Retry-After"]) > 1


def test_switching_their_limiter_off_leaves_ours_on(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False, MFA_AUTH_RATE_LIMIT="2 per hour")
    shop.app.config |= {"RATELIMIT_ENABLED": False, "RATELIMIT_DEFAULT": "1 per hour"}
    shop.embed()
    answers = [shop.client().post("/auth/enrol", json={"tempToken": "x"}).status_code for _ in range(3)]
    assert answers == [401, 401, 429]
    assert [shop.client().get("/auth/healthz").status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("is_first", [True, False])
def test_their_csrf_protection_is_about_their_forms(make_shop: MakeShop, clock: Clock, is_first: bool) -> None:
    shop = make_shop(embeds=False)
    protect = CSRFProtect()
    if is_first:
        protect.init_app(shop.app)
    shop.app.add_url_rule("/order", view_func=lambda: "ordered", endpoint="order", methods=["POST"])
    shop.embed()
    if not is_first:
        protect.init_app(shop.app)
    client = shop.client()
    assert client.post("/order").status_code == 400
    assert client.post("/auth/login", json={"name": "ada", "password": "ada"}).status_code == 400  # their own "auth"
    shop.app.config["WTF_CSRF_ENABLED"] = False
    shop.add("ada")
    pending = log_in(client, "ada")
    shop.app.config["WTF_CSRF_ENABLED"] = True
    secret = client.post("/auth/enrol", json={"tempToken": pending}).json["manualEntryKey"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(clock()) // 30)}
    token = client.post("/auth/verify-mfa", json=body).json["accessToken"]
    assert client.delete("/api/devices", headers=bearer(token)).status_code == 204


def test_their_talisman_sends_our_policy_for_our_pages_alone(make_shop: MakeShop) -> None:
    shops = [make_shop(embeds=False), make_shop(embeds=False)]
    for shop, force_https in zip(shops, (False, True), strict=True):
        Talisman(shop.app, force_https=force_https, content_security_policy="default-src 'self'; img-src *")
        shop.app.add_url_rule("/shelf", view_func=lambda: "books", endpoint="shelf")
        shop.embed()
    client = shops[0].client()
    assert client.get("/shelf").headers["Content-Security-Policy"] == "default-src 'self'; img-src *"
    assert client.get("/auth/docs").headers["Content-Security-Policy"].startswith("default-src 'none'; script-src")
    assert client.get("/api/profile").headers["Content-Security-Policy"].startswith("default-src 'none'")
    # Neither app's choice is the other's.
    assert shops[1].client().get("/auth/docs").status_code == 302
    assert client.get("/auth/docs").status_code == 200


def test_flask_login_says_who_is_signed_in(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False, MFA_TOKEN_LOCATIONS="header,cookie")
    manager = LoginManager(shop.app)
    manager.user_loader(lambda _user_id: None)
    shop.embed()
    page = {"Accept": "text/html"}
    assert shop.client().get("/orders").json["code"] == "no_token"
    assert shop.client().get("/orders", headers=page).location == "/auth/code?next=/orders"
    assert shop.client().get("/auth/code").status_code == 401  # nobody is signed in to the shop
    manager.login_view = "auth.login"
    assert shop.client().get("/orders", headers=page).location.startswith("/auth/login?next=")


def test_a_user_of_flask_logins_kind_is_understood() -> None:
    class User(UserMixin):
        id, username, email = 7, "ada", "ada@example.com"

    class Other(UserMixin):
        id, email = 8, "bob@example.com"

    class Bare(UserMixin):
        id = 9

    assert HostUser.of(User()) == HostUser("7", "ada", "ada@example.com")
    assert HostUser.of(Other()) == HostUser("8", "bob@example.com", "bob@example.com")
    assert HostUser.of(Bare()) == HostUser("9", "9")
    assert HostUser(7, "ada").id == "7"


def test_a_user_who_has_no_id_yet_is_nobody() -> None:
    class Unflushed(UserMixin):
        id, username = None, "ada"

    for user in (Unflushed(), AnonymousUserMixin()):
        with pytest.raises(ValueError, match="a user's id must be"):
            HostUser.of(user)


# ── mistakes are said at the start ───────────────────────────────────────────────────────────────


def test_without_a_database_it_does_not_start(config: dict[str, Any]) -> None:
    app = Flask("shop")
    app.config |= _mfa_only(config)
    with pytest.raises(ConfigurationError, match="there is no database: make Flask-SQLAlchemy before MFA"):
        MFA(app)
    assert "mfa_service" not in app.extensions


def test_twice_in_one_app_is_refused(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="MFA is in this app already"):
        MFA(shop.app)


def test_without_keys_it_says_what_to_run(make_shop: MakeShop, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no keyring at .*run `flask mfa init`") as error:
        make_shop(MFA_INSTANCE=str(tmp_path / "empty"))
    assert len(error.value.problems) == 2


def test_a_database_in_memory_is_refused(config: dict[str, Any]) -> None:
    app = Flask("shop")
    app.config |= _mfa_only(config) | {"SQLALCHEMY_DATABASE_URI": "sqlite://"}
    SQLAlchemy(app)
    with pytest.raises(ConfigurationError, match="SQLite needs a file"):
        MFA(app)


def test_a_route_that_the_host_has_already_is_named(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False)
    shop.app.add_url_rule("/api/profile", view_func=lambda: "mine", endpoint="their_profile")
    with pytest.raises(ConfigurationError, match=r"/api/profile is a route of the app \(their_profile\)"):
        shop.embed()


def test_a_route_that_the_host_adds_later_is_named_with_the_first_request(shop: Shop) -> None:
    shop.app.add_url_rule("/api/profile", view_func=lambda: "mine", endpoint="their_profile")
    with pytest.raises(ConfigurationError, match="MFA_API_PREFIX"):
        shop.client().get("/orders")


def test_a_cookie_needs_to_know_who_is_signed_in(make_shop: MakeShop) -> None:
    shop = make_shop(MFA_TOKEN_LOCATIONS="header,cookie")
    with pytest.raises(ConfigurationError, match="current_user_loader"):
        shop.client().get("/orders")


def test_begin_needs_the_cookie(shop: Shop) -> None:
    with shop.app.test_request_context(), pytest.raises(ConfigurationError, match="MFA_TOKEN_LOCATIONS"):
        shop.mfa.begin(HostUser("1", "ada"))


def test_an_app_that_matches_hosts_is_refused(make_shop: MakeShop) -> None:
    shop = make_shop(embeds=False)
    shop.app.url_map.host_matching = True
    with pytest.raises(ConfigurationError, match="host_matching"):
        shop.embed()


def test_a_mistyped_setting_is_named(make_shop: MakeShop, caplog: pytest.LogCaptureFixture) -> None:
    make_shop(MFA_TOTP_ISSER="Shop")
    assert "MFA_TOTP_ISSER is not a setting; did you mean MFA_TOTP_ISSUER?" in caplog.text


def test_a_wrong_setting_is_named(make_shop: MakeShop) -> None:
    with pytest.raises(ConfigurationError, match="MFA_AUTH_PREFIX must be a path"):
        make_shop(MFA_AUTH_PREFIX="auth/")


def test_an_app_without_it_says_so() -> None:
    mfa = MFA()
    with Flask("bare").app_context(), pytest.raises(ConfigurationError, match="MFA is not in this app"):
        mfa.login  # noqa: B018


def test_the_keyring_of_another_database_is_noticed(
    make_shop: MakeShop, tmp_path: Path, clock: Clock, config: dict[str, Any]
) -> None:
    first = make_shop()
    first.add("ada")
    enrol(first.client(), "ada", clock())
    subprocess.run(
        [sys.executable, "-m", "flask", "mfa", "init"],
        env=os.environ | {"MFA_INSTANCE": str(tmp_path / "other")},
        check=True,
        capture_output=True,
    )
    second = make_shop(MFA_INSTANCE=str(tmp_path / "other"))
    assert second.client().post("/auth/enrol", json={"tempToken": "x"}).status_code == 503


# ── several apps in one process ──────────────────────────────────────────────────────────────────


def test_no_token_of_one_app_opens_the_other(make_shop: MakeShop, other_keys: Path, clock: Clock) -> None:
    one, other = make_shop(), make_shop(MFA_SIGNING_KEYS=str(other_keys))
    one.add("ada")
    first, _ = enrol(one.client(), "ada", clock())
    pending = log_in(one.client(), "ada")
    assert orders(one.client(), first).status_code == 200
    assert orders(other.client(), first).json["code"] == "invalid_token"
    assert other.client().post("/auth/enrol", json={"tempToken": pending}).status_code == 401
    second = other.mfa, log_in(other.client(), "ada")
    assert one.client().post("/auth/enrol", json={"tempToken": second[1]}).status_code == 401


def test_one_object_serves_several_apps(make_shop: MakeShop, clock: Clock) -> None:
    mfa = MFA(clock=clock)
    one, other = make_shop(mfa=mfa, loads_users=False), make_shop(mfa=mfa, loads_users=False, MFA_TOTP_ISSUER="Other")
    with one.app.app_context():
        first = mfa.services
    with other.app.app_context():
        assert mfa.services is not first
        assert mfa.services.settings.totp_issuer == "Other"


def test_limits_of_one_app_are_not_the_others(make_shop: MakeShop) -> None:
    one, other = make_shop(MFA_AUTH_RATE_LIMIT="1 per hour"), make_shop(MFA_AUTH_RATE_LIMIT="1 per hour")
    ask = {"json": {"tempToken": "x"}}
    assert [one.client().post("/auth/enrol", **ask).status_code for _ in range(2)] == [401, 429]
    assert other.client().post("/auth/enrol", **ask).status_code == 401


def test_the_service_of_its_own_may_live_beside_a_host(make_shop: MakeShop, make_app: Callable[..., Flask]) -> None:
    shop, app = make_shop(), make_app()
    assert app.test_client().post("/auth/login", json={}).json["code"] == "invalid_request"
    assert shop.client().post("/auth/register", json={}).status_code == 404
    assert "Strict-Transport-Security" in app.test_client().get("/healthz").headers
    assert "Strict-Transport-Security" not in shop.client().get("/auth/healthz").headers


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def closing() -> Iterator[Callable[..., None]]:
    """Close the services of an app after the test."""
    apps: list[Flask] = []
    yield apps.append
    for app in apps:
        app.extensions["mfa_service"].services.close()


@pytest.fixture
def make_shop(database: str, config: dict[str, Any], clock: Clock) -> Iterator[MakeShop]:
    """Make shops on the test's database."""
    made: list[Shop] = []

    def make(*, embeds: bool = True, loads_users: bool = True, mfa: MFA | None = None, **overrides: Any) -> Shop:
        shop = Shop(database, config | overrides, mfa=mfa or MFA(clock=clock))
        made.append(shop)
        if loads_users:
            shop.mfa.user_loader(lambda identity: shop.db.session.get(shop.User, int(identity.external_id)))
        return shop.embed() if embeds else shop

    yield make
    for shop in made:
        shop.close()
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS users"))
    engine.dispose()


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


@pytest.fixture
def other_keys(tmp_path: Path) -> Path:
    from mfa_service.crypto.signing import new_key_pem

    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "other.pem").write_bytes(new_key_pem())
    return tmp_path / "keys"


def _mfa_only(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name.startswith("MFA_") and name not in STANDALONE}


def _optional(rules: Any) -> Any:
    from dataclasses import replace

    return replace(rules, mode="optional")


def _settle(app: Flask) -> None:
    """A host that has made itself at home."""
    app.register_error_handler(404, lambda _error: ("the shop's", 404))
    app.after_request(lambda response: response)
    app.teardown_request(lambda _error: None)
    app.logger.addHandler(logging.NullHandler())
    Limiter(lambda: "everybody", app=app)
    CSRFProtect(app)
    LoginManager(app)


def _snapshot(app: Flask) -> dict[str, Any]:
    """What a host would notice."""
    loggers = [logging.getLogger(), app.logger, logging.getLogger("mfa_service"), logging.getLogger("werkzeug")]
    own_errors = app.error_handler_spec[None]
    return {
        "extensions": set(app.extensions),
        "config": {name: repr(value) for name, value in app.config.items()},
        "rules": [(rule.rule, rule.endpoint) for rule in app.url_map.iter_rules()],
        "before_request": list(app.before_request_funcs.get(None, ())),
        "after_request": list(app.after_request_funcs.get(None, ())),
        "teardown": [list(app.teardown_request_funcs.get(None, ())), list(app.teardown_appcontext_funcs)],
        "error_handlers": {(status, kind.__name__) for status, kinds in own_errors.items() for kind in kinds},
        "context_processors": list(app.template_context_processors.get(None, ())),
        "jinja": [set(app.jinja_env.globals), set(app.jinja_env.filters)],
        "logging": [(logger.name, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        "session": repr(app.session_interface),
        "wsgi": repr(app.wsgi_app),
        "commands": set(app.cli.commands),
        "views": {name: view for name, view in app.view_functions.items() if not name.startswith("mfa_")},
        "merge_slashes": app.url_map.merge_slashes,
    }


def _flask(folder: Path, instance: Path) -> Callable[..., str]:
    """Run `flask …` in a folder; returns what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
        done = subprocess.run(
            [sys.executable, "-m", "flask", *arguments],
            cwd=folder,
            env=environment | {"MFA_INSTANCE": str(instance)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run
