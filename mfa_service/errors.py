"""Every refusal of the service, as one tree: a fact, an HTTP status, a published code, a sentence.

Services raise these; `web/errors.py` alone turns them into answers. `code` is for programs and never
changes; `message` is for people. Both are listed in the README, and a test compares the list with this file.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar


class ConfigurationError(Exception):
    """The service can't start as it is configured. `problems` lists all that is wrong, not just the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


#: `WWW-Authenticate` says that it is the token, not the lack of one (RFC 6750 section 3.1).
_INVALID: Mapping[str, str] = MappingProxyType({"error": "invalid_token"})


class MFAError(Exception):
    """The root of all refusals. A refusal commits what it recorded (`services/unit_of_work.py`)."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    message: ClassVar[str] = "Internal error"
    #: Parameters of `WWW-Authenticate: Bearer` (RFC 6750 section 3) on a 401.
    challenge: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *, fields: Mapping[str, str] | None = None, retry_after: int | None = None) -> None:
        """`fields` gives a reason for each member refused; `retry_after` is in seconds."""
        self.fields = dict(fields or {})
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def reasons(self) -> str:
        """The reasons of all members, in one line; empty where there are none."""
        return "; ".join(f"{member} {reason}" for member, reason in self.fields.items())


# ── 400, 413, 415: the request itself ────────────────────────────────────────────────────────────


class BadRequest(MFAError):
    """The request can't be read at all: its host, its path or its framing."""

    status, code, message = 400, "bad_request", "Bad request"


class InvalidRequest(MFAError):
    """The body is not what the route takes; `fields` says which member and why."""

    status, code, message = 400, "invalid_request", "Invalid request"


class WeakPassword(MFAError):
    """The password is too short, on the list of common ones, or built on the user's own name."""

    status, code, message = 400, "weak_password", "Password refused"


class UserExists(MFAError):
    """The username, as compared (RFC 8265), belongs to an account already."""

    status, code, message = 400, "user_exists", "User already exists"


class PayloadTooLarge(MFAError):
    """The body is larger than 64 KiB."""

    status, code, message = 413, "payload_too_large", "Request body too large"


class UnsupportedMediaType(MFAError):
    """The body is not `application/json` in UTF-8, or is compressed."""

    status, code, message = 415, "unsupported_media_type", "Request body must be application/json"


# ── 401: who are you? ────────────────────────────────────────────────────────────────────────────


class Unauthenticated(MFAError):
    """The parent of every 401; never raised itself."""

    status, code, message = 401, "unauthenticated", "Unauthenticated"


class InvalidCredentials(Unauthenticated):
    """Wrong password, unknown or disabled user: one answer for all of them."""

    code, message = "invalid_credentials", "Invalid credentials"


class InvalidCode(Unauthenticated):
    """The TOTP code is wrong, was used before, or is not six ASCII digits."""

    code, message = "invalid_code", "Invalid TOTP code"


class InvalidRecoveryCode(Unauthenticated):
    """The recovery code is wrong, was used before, or belongs to an older set."""

    code, message = "invalid_recovery_code", "Invalid recovery code"


class InvalidRefreshToken(Unauthenticated):
    """The refresh token is forged, or its session has ended or lapsed, or its user is gone or disabled."""

    code, message = "invalid_refresh_token", "Invalid refresh token"
    challenge = _INVALID


class RefreshReused(Unauthenticated):
    """A refresh token that was replaced long ago came back: somebody has a copy. The session is ended."""

    code, message = "refresh_reused", "Refresh token was used before"
    challenge = _INVALID


class StepUpRequired(Unauthenticated):
    """The second factor was shown too long ago, or not at all on this device (RFC 9470); `max_age` in seconds."""

    code, message = "step_up_required", "Recent second factor required"

    def __init__(self, max_age: int) -> None:
        super().__init__()
        self.challenge = {"error": "insufficient_user_authentication", "max_age": str(max_age)}


class InvalidPendingToken(Unauthenticated):
    """The pending token is forged, expired, used up or spent: the password has to be given again."""

    code, message = "invalid_pending_token", "MFA verification failed"
    challenge = _INVALID


class WrongStep(Unauthenticated):
    """A good token of another step was sent where a pending token belongs."""

    code, message = "wrong_step", "Invalid token"
    challenge = _INVALID


class NoToken(Unauthenticated):
    """There is no `Authorization: Bearer` header."""

    code, message = "no_token", "No token provided"


class InvalidToken(Unauthenticated):
    """The access token is forged, expired or revoked, or its user is gone or disabled."""

    code, message = "invalid_token", "Invalid or expired token"
    challenge = _INVALID


class FullAuthenticationRequired(Unauthenticated):
    """A good token of another step was sent where an access token belongs."""

    code, message = "full_authentication_required", "Full authentication required"
    challenge = _INVALID


# ── 403, 404, 405, 429: not this, not here, not now ──────────────────────────────────────────────


class FactorExists(MFAError):
    """The account has had a confirmed factor: a password alone never replaces it."""

    status, code, message = 403, "factor_exists", "A second factor exists already"


class NothingToConfirm(MFAError):
    """There is no new authenticator that waits for its first code: none was asked for, or ten minutes are over."""

    status, code, message = 409, "nothing_to_confirm", "No authenticator waits to be confirmed"


class MFARequired(MFAError):
    """Policy does not let this account go without a second factor."""

    status, code, message = 403, "mfa_required", "A second factor is required"


class RoleRequired(MFAError):
    """The route is for users with a role that this one has not."""

    status, code, message = 403, "role_required", "Role required"


class LastAdministrator(MFAError):
    """Nobody would be left to administrate."""

    status, code, message = 409, "last_administrator", "The last administrator has to stay"


class ForeignOrigin(MFAError):
    """A page of another origin made a browser send this, with our cookie along."""

    status, code, message = 403, "foreign_origin", "Request from another origin"


class RegistrationClosed(MFAError):
    """Self-registration is switched off (`MFA_REGISTRATION_OPEN`)."""

    status, code, message = 403, "registration_closed", "Registration is closed"


class NotFound(MFAError):
    """There is nothing at this path."""

    status, code, message = 404, "not_found", "Not found"


class MethodNotAllowed(MFAError):
    """The path exists, the method does not; `Allow` says which do."""

    status, code, message = 405, "method_not_allowed", "Method not allowed"


class TooManyAttempts(MFAError):
    """A rate limit is used up; `Retry-After` says for how long."""

    status, code, message = 429, "too_many_attempts", "Too many authentication attempts"


# ── 5xx: our side ────────────────────────────────────────────────────────────────────────────────


class RegistrationFailed(MFAError):
    """An unexpected failure while registering; the log has the details."""

    code, message = "registration_failed", "Registration failed"


class LoginFailed(MFAError):
    """An unexpected failure while logging in; the log has the details."""

    code, message = "login_failed", "Login failed"


class Unavailable(MFAError):
    """Something the answer needs is out of order; nothing of the account's was spent, try again later."""

    status, code, message = 503, "unavailable", "Service unavailable"

    def __init__(self, *, retry_after: int = 5) -> None:
        super().__init__(retry_after=retry_after)


class SealBroken(Unavailable):
    """A sealed value does not open: unknown key, or changed. Never read as "has no second factor"."""


class Busy(Unavailable):
    """All places for password hashing are taken."""

    code, message = "busy", "Too many logins at once"


class NotReady(MFAError):
    """A part that every request needs is out of order; `fields` says which."""

    status, code, message = 503, "not_ready", "Not ready"


def published(root: type[MFAError] = MFAError) -> Iterator[type[MFAError]]:
    """Yield every error class that can reach a client, one for each code."""
    if root is not Unauthenticated and "code" in vars(root):
        yield root
    for child in root.__subclasses__():
        yield from published(child)
