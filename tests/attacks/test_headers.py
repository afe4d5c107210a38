"""What every answer says to browsers and caches, and what it does not say."""

import re
from urllib.parse import urlsplit

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, Target

WANTED = {
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "origin-agent-cluster": "?1",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
    "x-download-options": "noopen",
    "x-frame-options": "DENY",
    "x-permitted-cross-domain-policies": "none",
    "x-xss-protection": "0",
}


def answers(target: Target) -> list[Answer]:
    """One of each kind: given, refused by each layer, not found."""
    person = target.person()
    return [
        person.profile(),
        person.login(),
        person.login(password="wrong-password-1"),
        target.get("/api/profile"),
        target.get("/nowhere"),
        target.get("/auth/login"),
        target.post("/auth/login", b"{", headers={"Content-Type": "application/json"}),
        target.post("/auth/login", b"x", headers={"Content-Type": "text/plain"}),
        target.post("/auth/enrol", b" " * 70000),
        target.get("/healthz"),
        target.get("/openapi.json"),
        target.get("/api/profile", headers={"Host": "evil.example"}),
    ]


@case(
    "M5",
    holds="every answer carries the security headers, refusals included",
    stems_from="ASVS 3.4",
    broken_by="no_headers",
)
def test_every_answer_has_the_headers(target: Target) -> None:
    for answer in answers(target)[:-1]:
        for name, value in WANTED.items():
            assert value in answer.get(name), f"{answer.status}: {name} is {answer.get(name)!r}"


@case(
    "M1",
    holds="nothing under /auth and /api is kept by a cache, refusals included",
    stems_from="ASVS 14.3.2, RFC 6749 section 5.1",
    broken_by="cacheable",
)
def test_no_cache_keeps_anything(target: Target) -> None:
    for answer in answers(target)[:9]:
        if answer.status != 404:
            assert "no-store" in answer.get("cache-control"), f"{answer.status} {answer.text[:60]}"


@case(
    "M2",
    holds="every refusal is JSON with a sentence and a code, and every 401 carries a challenge",
    stems_from="ASVS 4.1.1, RFC 9110",
    broken_by="html_errors",
)
def test_every_refusal_is_json(target: Target) -> None:
    for answer in answers(target)[2:9]:
        assert answer.status >= 400
        assert answer.get("content-type").startswith("application/json"), answer.text[:60]
        assert answer.json["error"]
        assert re.fullmatch("[a-z_]+", answer.code)
        assert answer.status != 401 or answer.get("www-authenticate").startswith("Bearer")


@case(
    "M3",
    holds="no answer names a version, a path, a library or a line of code",
    stems_from="ASVS 13.4.6, 16.5.1",
    broken_by="server_version",
)
def test_no_answer_names_what_runs(target: Target) -> None:
    for answer in answers(target):
        assert not re.search(r"\d", answer.get("server")), answer.get("server")
        assert not answer.get("x-powered-by")
        if "openapi" not in answer.json:
            assert not re.search(r"(?i)traceback|\.py\b|werkzeug|sqlalchemy|select .* from|psycopg", answer.text)


@case(
    "M11",
    holds="no other origin is let in by CORS",
    stems_from="ASVS 3.4.2",
    broken_by="cors_reflects",
)
def test_no_origin_is_let_in(target: Target) -> None:
    person = target.person()
    own = target.url
    origins = (
        "https://evil.example",
        "null",
        f"{own}.evil.example",
        own.replace("://", "://evil"),
        "http://localhost:1",
    )
    for origin in origins:
        answer = target.get("/api/profile", person.access, headers={"Origin": origin})
        asking = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        for each in (answer, target.send(call_options(asking))):
            assert not each.get("access-control-allow-origin"), f"{origin} may read {each.status}"
            assert not each.get("access-control-allow-credentials")


def call_options(headers: dict[str, str]) -> Call:
    return Call("OPTIONS", "/auth/login", None, headers=headers)


@case(
    "M14",
    holds="no cookie is set for whoever did not ask for one, and none stands for a token",
    stems_from="ASVS 3.3",
    broken_by="sets_cookie",
)
def test_no_cookie_is_set(target: Target) -> None:
    person = target.person()
    for answer in (person.login(), person.verify(person.pending(), person.code()), person.refresh(), person.profile()):
        assert answer.status == 200
        assert not answer.get("set-cookie"), "a cookie was set"


@case(
    "C11",
    holds="no host that a client names is believed or repeated",
    stems_from="PortSwigger: password reset poisoning",
    broken_by="reflects_host",
)
def test_no_other_host_is_believed(target: Target) -> None:
    person = target.person()
    for host in ("evil.example", "evil.example:443", f"{urlsplit(target.url).hostname}.evil.example", "evil.example#x"):
        answer = target.get("/api/profile", person.access, headers={"Host": host})
        assert answer.status in (0, 400), f"{host} answered {answer.status}"
        assert "evil" not in answer.text + str(answer.headers)
    for name in ("X-Forwarded-Host", "X-Host", "X-Forwarded-Server", "Forwarded"):
        value = "host=evil.example" if name == "Forwarded" else "evil.example"
        for path in ("/openapi.json", "/api/profile", "/auth/login", "/docs"):
            answer = target.get(path, person.access, headers={name: value})
            assert "evil" not in answer.text + str(answer.headers), f"{name} is repeated on {path}"


@case(
    "M9",
    holds="no header makes the service redirect or believe in another scheme",
    stems_from="Talisman trusting X-Forwarded-Proto",
    broken_by="redirects",
)
def test_nothing_is_redirected(target: Target) -> None:
    for scheme in ("http", "https", "javascript", "http, https"):
        for path in ("/auth/login", "/auth/enrol"):
            answer = target.post(path, {}, headers={"X-Forwarded-Proto": scheme, "X-Forwarded-Ssl": "off"})
            assert answer.status == 400, f"{scheme} answered {answer.status}"


@case(
    "T50",
    holds="no secret, hash or code is in any answer that could be asked for later",
    stems_from="CVE-2026-40166",
    broken_by="secret_in_answer",
    needs=("admin",),
)
def test_no_answer_holds_a_secret(target: Target) -> None:
    person = target.person(device=True)
    secrets_of = {person.secret, person.password, *person.tokens["recoveryCodes"], person.tokens["deviceToken"]}
    secrets_of |= {person.tokens["refreshToken"], person.tokens["accessToken"]}
    user = target.id_of(person)
    own = ("/api/profile", "/api/mfa", "/api/sessions", "/api/devices", "/api/activity")
    admin = (f"/api/admin/users/{user}", f"/api/admin/users?q={person.name}", f"/api/admin/audit?user={user}")
    found = [target.get(path, person.access) for path in own]
    found += [target.get(path, target.admin()) for path in (*admin, "/api/admin/audit/seals", "/api/admin/compliance")]
    for answer in found:
        assert answer.status == 200
        assert not [secret for secret in secrets_of if secret in answer.text]
        assert not re.search(r'\$2[aby]\$|otpauth:|"\w*secret\w*":', answer.text), answer.text[:80]


@case(
    "M2b",
    holds="strange methods and long bodies are refused in JSON that no cache keeps, by a proxy, too",
    stems_from="ASVS 4.1.1",
    broken_by="html_by_method",
)
def test_refusals_at_the_door_are_json(target: Target) -> None:
    refusals = [target.once(Call(method, "/healthz")) for method in ("TRACE", "PROPFIND")]
    refusals.append(target.post("/auth/enrol", b'{"tempToken":"' + b"x" * 65537 + b'"}'))
    for answer in refusals:
        if answer.status:  # a connection that is closed over a long body says nothing
            assert answer.status in (405, 413)
            assert answer.code in ("method_not_allowed", "payload_too_large"), answer.text[:60]
            assert answer.get("cache-control") == "no-store"


@case(
    "M17",
    holds="probes say that the service lives, and nothing else",
    stems_from="ASVS 13.4.6",
    broken_by="talkative_health",
)
def test_probes_say_little(target: Target) -> None:
    for path in ("/healthz", "/readyz"):
        answer = target.get(path)
        assert answer.status in (200, 404)
        assert answer.status == 404 or answer.json == {"status": "ok"}, answer.text


@case(
    "M21",
    holds="no answer is compressed, since its size would tell what it holds",
    stems_from="BREACH, CVE-2013-3587",
    broken_by="gzips",
)
def test_nothing_is_compressed(target: Target) -> None:
    person = target.person()
    for coding in ("gzip", "br", "deflate, zstd", "*"):
        for path in ("/api/profile", "/api/sessions", "/openapi.json"):
            answer = target.get(path, person.access, headers={"Accept-Encoding": coding})
            assert (answer.status, answer.get("content-encoding")) == (200, ""), f"{path} is compressed"
