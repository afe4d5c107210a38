"""Other ways to write an address or a method, and none of them past a guard or a limit."""

from tests.attacks.case import case
from tests.attacks.target import Call, Target

#: Of /auth/login.
VARIANTS = (
    *("//auth/login", "/auth//login", "/auth/login/", "/AUTH/LOGIN", "/Auth/login", "/auth/login;x", "/auth/login;/"),
    *("/auth/login.json", "/auth/%6cogin", "/auth%2flogin", "/./auth/login", "/x/../auth/login", "/auth/login%20"),
    *(
        "/auth/login%00",
        "/auth/login?",
        "/auth/login?x=1",
        "/auth/login#x",
        "/v1/auth/login",
        "/auth/login/.",
        "/auth\\login",
    ),
    *(
        "/auth/login%0a",
        "/;/auth/login",
        "/auth/./login",
        "/auth/login/..;/login",
        "/auth/login%ff",
        "/api/../auth/login",
    ),
)


@case(
    "T22",
    holds="no other spelling of a path reaches a route past its limit",
    stems_from="GHSA-x732-6j76-qmhm",
    broken_by="variant_bypasses",
    needs=("limits",),
)
def test_no_spelling_of_a_path_is_counted_apart(target: Target) -> None:
    source = target.client()
    statuses = [target.once(Call("POST", "/auth/login", {}, source=source)).status for _ in range(6)]
    assert set(statuses) <= {400, 429}, statuses
    assert statuses[-1] == 429, statuses
    for path in VARIANTS:
        answer = target.once(Call("POST", path, {}, source=source))
        routed = answer.status == 400 and answer.code == "invalid_request"
        assert not routed, f"{path} goes past the limit"
        assert answer.status in (0, 308, 400, 404, 405, 429), f"{path} answered {answer.status}"


@case(
    "M19",
    holds="no other spelling of a path opens what is guarded",
    stems_from="ASVS 8.3.1, Spring's suffix matching",
    broken_by="suffix_opens",
)
def test_no_spelling_of_a_path_is_open(target: Target) -> None:
    paths = ("/api/profile", "/api/sessions", "/api/admin/users")
    for path in paths:
        first, rest = path[1:].split("/", 1)
        for spelled in (
            *(
                f"{path}.json",
                f"{path}/",
                f"{path};x",
                f"/{path}",
                f"/{first}//{rest}",
                f"/{first}%2f{rest}",
                f"{path}%20",
            ),
            *(f"/./{first}/{rest}", f"/auth/../{first}/{rest}", f"/healthz/..;{path}", f"/docs/..%2f{first}/{rest}"),
            *(
                path.upper(),
                f"{path}%00",
                f"{path}?.css",
                f"{path}/x.css",
                f"/docs/../{first}/{rest}",
                f"/static/..{path}",
            ),
        ):
            answer = target.get(spelled)
            assert answer.status in (0, 301, 308, 400, 401, 404, 405), f"{spelled} answered {answer.status}"


@case(
    "M15",
    holds="no method but its own does what a route does, and no header says another",
    stems_from="ASVS 13.4.4, 3.5.3",
    broken_by="method_override",
)
def test_a_method_is_what_it_says(target: Target) -> None:
    person = target.person()
    for method in ("TRACE", "CONNECT", "PROPFIND", "DEBUG", "GARBAGE", "get", "TRACK"):
        answer = target.once(Call(method, "/api/profile", None, person.access))
        assert answer.status in (0, 400, 405, 501), f"{method} answered {answer.status}"
        assert person.access not in answer.text
    for path in ("/auth/logout", "/auth/refresh", "/api/mfa/totp", "/api/mfa/recovery-codes", "/auth/step-up"):
        for method in ("GET", "HEAD", "PUT"):
            answer = target.send(Call(method, path, None, person.access))
            assert (answer.status, "POST" in answer.get("allow")) == (405, True), f"{method} {path}"
    names = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
    for header in ({name: "DELETE"} for name in names):
        assert target.post("/api/devices", {}, person.access, headers=header).status == 405
    assert target.post("/api/devices?_method=DELETE", {}, person.access).status == 405
    assert person.profile().status == 200


@case(
    "T45",
    holds="tokens are given on POST alone, from the body alone, and no cache keeps them",
    stems_from="CVE-2021-21241",
    broken_by="get_logs_in",
)
def test_tokens_are_given_on_post_alone(target: Target) -> None:
    person = target.person()
    query = f"username={person.name}&password={person.password}"
    for method in ("GET", "HEAD"):
        answer = target.send(Call(method, f"/auth/login?{query}"))
        assert answer.status == 405, f"{method} answered {answer.status}"
        assert "oken" not in answer.text
    assert target.post(f"/auth/login?{query}", {}).status == 400
    for answer in (person.login(), person.refresh(), person.verify(person.pending(), person.code())):
        assert answer.status == 200
        assert "no-store" in answer.get("cache-control")


@case(
    "R5",
    holds="no header names another path than the one that is asked for",
    stems_from="X-Original-URL and X-Rewrite-URL",
    broken_by="rewrite_header",
)
def test_no_header_names_another_path(target: Target) -> None:
    person = target.person()
    names = ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Script-Name", "SCRIPT_NAME", "X-Forwarded-Uri")
    for name in names:
        answer = target.get("/healthz", person.access, headers={name: "/api/profile"})
        assert person.name not in answer.text, f"{name} was followed"
        assert target.get("/api/profile", headers={name: "/healthz"}).status == 401, f"{name} was followed"


@case(
    "M16",
    holds="no console, file or figures are served",
    stems_from="ASVS 13.4.2, 13.4.5",
    broken_by="debug_console",
)
def test_nothing_is_left_lying_about(target: Target) -> None:
    paths = ("/console", "/debug", "/.env", "/.git/config", "/.git/HEAD", "/metrics", "/server-status", "/actuator/env")
    paths += (
        "/swagger.json",
        "/admin",
        "/wsgi.py",
        "/instance/keyring.json",
        "/static/../wsgi.py",
        "/docs/..%2f..%2fapp.py",
    )
    paths += (
        "/?__debugger__=yes&cmd=resource&f=debugger.js",
        "/backup.sql",
        "/mfa.db",
        "/static/%2e%2e/%2e%2e/etc/passwd",
    )
    for path in paths:
        answer = target.get(path)
        assert answer.status in (0, 400, 404), f"{path} answered {answer.status}"
