"""Before the first case: whether the target can be attacked at all, and if not, why, in one sentence."""

import math
import os
import ssl
from urllib.parse import urlsplit

import pytest

from tests.attacks.target import Answer, Call, CouldNotTry, Target

#: An administrator who signs in by themselves: from the environment alone, so that nothing shows the password.
ADMINISTRATOR = ("ATTACK_ADMIN_USERNAME", "ATTACK_ADMIN_PASSWORD", "ATTACK_ADMIN_KEY")


def ensure_address(url: str) -> None:
    """Refuse what is no address of a service."""
    try:
        parsed = urlsplit(url)
        is_address = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise pytest.UsageError(f"--target {url} is no address: it has to be like https://staging.example")
    if parsed.path.strip("/") or parsed.query:
        raise pytest.UsageError(f"--target {url} has a path: a service is attacked at the root of its host")


def ensure_rate(rate: float | None) -> None:
    """Refuse what would be no pace at all."""
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise pytest.UsageError(f"--rate {rate:g} is no pace: it has to be a number above 0")


def ensure_ready(target: Target) -> None:
    """Refuse a target that does not answer, is not this service, or lets nobody register."""
    answer, where = first_answer(target), f"{target.url}/openapi.json"
    if answer.status == 0:
        raise pytest.UsageError(f"{target.url} closes the connection without an answer: is it http or https?")
    if answer.status in (400, 421):
        raise pytest.UsageError(
            f"{where} answered {answer.status}: the service does not know the host {target.host} (MFA_ALLOWED_HOSTS)"
        )
    if answer.status != 200 or "openapi" not in answer.json:
        raise pytest.UsageError(f"no OpenAPI document at {where} (it answered {answer.status}): is it this service?")
    if "/auth/register" not in answer.json.get("paths", {}):
        raise pytest.UsageError(
            f"registration is closed at {target.url}: open it for the attack (MFA_REGISTRATION_OPEN)"
        )
    said = answer.json.get("info", {})
    target.software = [f"{said.get('title', 'a service')} {said.get('version', '')}".strip()]


def first_answer(target: Target) -> Answer:
    try:
        return target.once(Call("GET", "/openapi.json"))
    except ssl.SSLCertVerificationError as error:
        raise pytest.UsageError(
            f"{target.url} is not trusted ({error.verify_message}): --ca names whom to trust"
        ) from None
    except OSError as error:
        host, port = target.connect_to
        raise pytest.UsageError(f"{target.url} can't be reached at {host}:{port}: {error}") from None


def has_administrator() -> bool:
    given = [name for name in ADMINISTRATOR if os.environ.get(name)]
    if given and len(given) < len(ADMINISTRATOR):
        raise pytest.UsageError(f"{', '.join(ADMINISTRATOR)} belong together: there is only {', '.join(given)}")
    return bool(given)


def hire(target: Target) -> None:
    """Sign in the administrator whom the environment names, or see whether the token is taken that was given."""
    if has_administrator():
        try:
            target.hire_administrator(*(os.environ[name] for name in ADMINISTRATOR))
        except (CouldNotTry, ValueError, pytest.skip.Exception) as error:
            raise pytest.UsageError(f"the administrator can't sign in: {str(error).splitlines()[0]}") from None
    if "admin" in target.offers:
        answer = target.once(Call("GET", "/api/admin/users", None, target.admin()))
        if answer.status != 200:
            raise pytest.UsageError(
                f"the administrator is not taken for one (it answered {answer.status} {answer.code}): "
                "the token is older than five minutes, or of somebody else"
            )
