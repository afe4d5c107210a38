"""The collection for Postman and newman, made from the OpenAPI document: `python tools/postman.py` writes it anew.

With --check nothing is written, and the exit code says whether the files under docs/ are what would be written.
"""

import json
import logging
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from mfa_service.app import create_app
from mfa_service.crypto.keyring import new_keyring_text

ROOT = Path(__file__).parent.parent
COLLECTION = ROOT / "docs/mfa_service.postman_collection.json"
ENVIRONMENT = ROOT / "docs/mfa_service.postman_environment.json"
FORMAT = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"

JSON = dict[str, Any]

#: What scripts after a request call things.
_NAMED = (
    "const kept = pm.collectionVariables;",
    "const isRight = pm.response.code < 300;",
    "const answer = pm.response.text() ? pm.response.json() : {};",
)


@dataclass(frozen=True)
class Step:
    """A call of the walk, and what is claimed of its answer beside status and shape. A refusal has status and code."""

    title: str
    operation: str
    claims: Mapping[str, str] = field(default_factory=dict)
    bearer: str = "accessToken"
    refusal: tuple[str, str] | None = None
    before: str = ""
    after: str = ""


WALK = (
    Step(
        "Register",
        "auth_register",
        before='pm.collectionVariables.set("username", pm.variables.replaceIn("ada-{{$randomUUID}}").slice(0, 17));',
    ),
    Step("Log in", "auth_login", {"a second factor is wanted": "answer.mfaRequired"}),
    Step("Try it without a code", "api_profile", bearer="tempToken", refusal=("401", "full_authentication_required")),
    Step("Show the code", "auth_verify_mfa", {"there are ten recovery codes": "answer.recoveryCodes.length === 10"}),
    Step("Be let in", "api_profile", {"it is me": 'answer.username === pm.collectionVariables.get("username")'}),
    Step(
        "Refresh",
        "auth_refresh",
        {"it is another token": 'answer.refreshToken !== pm.variables.get("replaced")'},
        before='pm.variables.set("replaced", pm.collectionVariables.get("refreshToken"));',
    ),
    Step("Step up", "auth_step_up"),
    Step("Do what wants a recent second factor", "api_renew_recovery_codes"),
    Step("Log out", "auth_logout"),
    Step(
        "Be refused from now on",
        "api_profile",
        refusal=("401", "invalid_token"),
        after="pm.execution.setNextRequest(null); // a run ends here: the rest is sent by hand",
    ),
)

#: What stands in a body, by the name of the member.
EXAMPLES: Mapping[str, Any] = {
    "username": "{{username}}",
    "password": "{{password}}",
    "email": "{{username}}@example.com",
    "tempToken": "{{tempToken}}",
    "refreshToken": "{{refreshToken}}",
    "totpCode": "{{totpCode}}",
    "rememberDevice": True,
    "deviceName": "Postman",
    "currentPassword": "{{password}}",
    "newPassword": "difference-engine-1822",
    "everywhere": False,
    "mode": "required",
    "mfaRequired": True,
    "reason": "trying things out",
}
#: Where the same name means something else.
OTHERWISE: Mapping[str, JSON] = {"api_confirm_totp": {"totpCode": "{{newTotpCode}}"}}

#: What an answer leaves behind for later calls, beside the tokens.
KEPT: Mapping[str, Mapping[str, str]] = {
    "auth_register": {"secret": "answer.manualEntryKey", "lastStep": "0"},
    "auth_enrol": {"secret": "answer.manualEntryKey", "lastStep": "0"},
    "auth_change_password": {"password": '"difference-engine-1822"'},
    "api_replace_totp": {"newSecret": "answer.manualEntryKey", "newLastStep": "0"},
    "api_confirm_totp": {"secret": "kept.get('newSecret')", "lastStep": "kept.get('newLastStep')"},
    "api_list_sessions": {"session_id": "answer.items.at(-1)?.id"},
    "api_list_devices": {"device_id": "answer.items.at(-1)?.id"},
    "api_admin_list_users": {"user_id": "answer.items.at(-1)?.id"},
}


@dataclass(frozen=True)
class Operation:
    """One operation of the document, whole: with everything that it points at."""

    path: str
    method: str
    said: JSON

    @property
    def tag(self) -> str:
        """What it is grouped by."""
        return str(self.said["tags"][0])

    @property
    def body(self) -> JSON:
        """An example of what it takes."""
        content = self.said.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        required = schema.get("required", [])
        examples = {**EXAMPLES, **OTHERWISE.get(self.said["operationId"], {})}
        return {
            name: examples.get(name, "…") for name in schema.get("properties", {}) if name in [*required, *examples]
        }

    def answer(self, status: str) -> JSON:
        """The schema of what it answers; empty where there is no body."""
        found: JSON = self.said["responses"][status].get("content", {}).get("application/json", {}).get("schema", {})
        return found


def operations(document: JSON) -> dict[str, Operation]:
    """All operations by their name."""
    found = [
        Operation(path, method.upper(), whole(document, said))
        for path, item in document["paths"].items()
        for method, said in item.items()
    ]
    return {operation.said["operationId"]: operation for operation in found}


def whole(document: JSON, node: Any) -> Any:
    """A part of the document with what it points at put in."""
    if isinstance(node, list):
        return [whole(document, each) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return whole(document, document["components"]["schemas"][node["$ref"].rpartition("/")[2]])
    return {name: whole(document, value) for name, value in node.items() if (name, type(value)) != ("title", str)}


def collection(document: JSON) -> JSON:
    """The walk, and after it every operation that is not in it."""
    named = operations(document)
    others = [named[name] for name in named if name not in {step.operation for step in WALK}]
    by_tag = groupby(sorted(others, key=lambda each: each.tag), lambda each: each.tag)
    return {
        "info": {"name": "mfa_service", "description": document["info"]["description"], "schema": FORMAT},
        "auth": _bearer("accessToken"),
        "event": [_script("prerequest", _code("before.js")), _script("test", _code("after.js"))],
        "variable": [{"key": "password", "value": "analytical-engine-1843"}],
        "item": [
            {
                "name": "Walk",
                "description": "From registering to logging out, by itself: no step wants anything typed.",
                "item": [_walked(step, named[step.operation]) for step in WALK],
            },
            {
                "name": "Every other operation",
                "description": "For sending by hand, after logging in and showing the code as in the walk.",
                "item": [{"name": tag, "item": [_item(operation) for operation in group]} for tag, group in by_tag],
            },
        ],
    }


def environment() -> JSON:
    """Where the service is."""
    address = {"key": "baseUrl", "value": "http://127.0.0.1:8000", "type": "default", "enabled": True}
    return {"name": "mfa_service", "values": [address], "_postman_variable_scope": "environment"}


def _item(operation: Operation, name: str = "", before: str = "", tests: Sequence[str] = ()) -> JSON:
    kept = KEPT.get(operation.said["operationId"], {})
    events = [_script("prerequest", before)] if before else []
    if lines := [*tests, *(f'if (isRight) kept.set("{variable}", {value});' for variable, value in kept.items())]:
        events.append(_script("test", "\n".join([*_NAMED, *lines])))
    return {"name": name or f"{operation.method} {operation.path}", "event": events, "request": _request(operation)}


def _walked(step: Step, operation: Operation) -> JSON:
    status, code = step.refusal or (next(each for each in operation.said["responses"] if each < "300"), "")
    tests = [f'pm.test("status {status}", () => pm.response.to.have.status({status}));']
    if schema := operation.answer(status):
        proof = f"pm.response.to.have.jsonSchema({json.dumps(schema)})"
        tests.append(f'pm.test("as the contract says", () => {proof});')
    claims = {**step.claims, **({f"it says {code}": f'answer.code === "{code}"'} if code else {})}
    tests += [f'pm.test("{claim}", () => pm.expect({proof}).to.be.true);' for claim, proof in claims.items()]
    made = _item(operation, step.title, step.before, [*tests, *filter(None, [step.after])])
    if operation.said["security"]:
        made["request"]["auth"] = _bearer(step.bearer)
    return made


def _request(operation: Operation) -> JSON:
    said = operation.said
    made: JSON = {"method": operation.method, "url": _url(operation), "description": said["summary"]}
    if not said["security"]:
        made["auth"] = {"type": "noauth"}
    if "requestBody" in said:
        made["header"] = [{"key": "Content-Type", "value": "application/json"}]
        raw = json.dumps(operation.body, indent=2, ensure_ascii=False)
        made["body"] = {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}
    return made


def _url(operation: Operation) -> JSON:
    path = re.sub(r"{(\w+)}", r":\1", operation.path)
    url: JSON = {"raw": f"{{{{baseUrl}}}}{path}", "host": ["{{baseUrl}}"], "path": path[1:].split("/")}
    for parameter in operation.said.get("parameters", []):
        name, note = parameter["name"], {"description": parameter.get("description", "")}
        if parameter["in"] == "path":
            url.setdefault("variable", []).append({"key": name, "value": f"{{{{{name}}}}}"})
        else:
            url.setdefault("query", []).append({"key": name, "value": "", "disabled": True} | note)
    return url


def _bearer(variable: str) -> JSON:
    return {"type": "bearer", "bearer": [{"key": "token", "value": f"{{{{{variable}}}}}", "type": "string"}]}


def _script(moment: str, text: str) -> JSON:
    return {"listen": moment, "script": {"type": "text/javascript", "exec": text.splitlines()}}


def _code(name: str) -> str:
    return (ROOT / "tools/postman" / name).read_text()


def _document() -> JSON:
    logging.disable()  # of the database, which nobody needs here
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "keyring.json").write_text(new_keyring_text())
        settings = {
            "MFA_INSTANCE": folder,
            "MFA_DATABASE_URL": f"sqlite:///{folder}/none.db",
            "MFA_REGISTRATION_OPEN": "true",
        }
        app = create_app(settings | {"JWT_SECRET": secrets.token_urlsafe(32)})
        answer = app.test_client().get("/openapi.json", headers={"Host": "127.0.0.1"})
        app.extensions["mfa_service"].services.close()
    return dict(answer.json or {})


def main() -> int:
    """Write the files, or look whether they are right."""
    made = {COLLECTION: collection(_document()), ENVIRONMENT: environment()}
    texts = {path: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for path, value in made.items()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.exists() or path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
