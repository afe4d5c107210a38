"""Register, log in, show the second factor, refresh, log out. Each route parses, calls one method, answers."""

from datetime import datetime
from functools import partial
from typing import Annotated, Literal

from flask import Response, after_this_request, request
from pydantic import Field

from mfa_service import errors
from mfa_service.auth.blueprint import blueprint, post_unless_embedded
from mfa_service.guard import REFUSALS, STEP_UP_SECONDS, current_identity, require_login, require_mfa
from mfa_service.services.factors import Proof
from mfa_service.services.login import MFAPending, PasswordOnly, Remember, SignedIn
from mfa_service.services.totp import Enrolment
from mfa_service.web import cookies, services
from mfa_service.web.client import client_info
from mfa_service.web.contract import Body, Empty, View, gives, limited, refuses, takes

Username = Annotated[str, Field(max_length=256, description="Compared without case or width (RFC 8265).")]
Password = Annotated[str, Field(max_length=1024, description="At most 1,024 bytes.")]


class RegisterBody(Body):
    """A new account."""

    username: Username
    password: Password
    email: Annotated[str, Field(max_length=320)]


class LoginBody(Body):
    """The first factor, and the token of a remembered device where there is one."""

    username: Username
    password: Password
    device_token: str | None = None


class ProofBody(Body):
    """A second factor: exactly one of the two."""

    totp_code: Annotated[str | None, Field(description="Six digits; anything else is a wrong code.")] = None
    recovery_code: Annotated[str | None, Field(description="Case, hyphens and spaces don't matter.")] = None

    @property
    def proof(self) -> Proof:
        """The proof that was sent. Raises InvalidRequest unless it is one."""
        if self.totp_code is not None and self.recovery_code is None:
            return Proof("totp", self.totp_code)
        if self.recovery_code is not None and self.totp_code is None:
            return Proof("recovery_code", self.recovery_code)
        raise errors.InvalidRequest(fields={"totpCode": "either this or recoveryCode is required, and not both"})


class VerifyBody(ProofBody):
    """The second factor, for the token that the first one gave."""

    temp_token: str
    remember_device: bool = False
    device_name: Annotated[str, Field(max_length=64, description="What the user calls this device.")] = ""


class RefreshBody(Body):
    """The refresh token that came last."""

    refresh_token: str


class LogoutBody(Body):
    """How much to end."""

    everywhere: bool = False


class PasswordBody(Body):
    """The password as it is, and as it shall be."""

    current_password: Password
    new_password: Password


class EnrolBody(Body):
    """A token from login; and, after an administrator has reset the account's factors, the ticket that they gave."""

    temp_token: str
    enrolment_ticket: str | None = None


class EnrolView(View):
    """An authenticator to add, shown once."""

    message: str
    qr_code: Annotated[str, Field(description="The otpauth address as a PNG in a data URI.")]
    manual_entry_key: Annotated[str, Field(description="The same secret in base32, for typing.")]
    expires_in: Annotated[int | None, Field(description="Seconds in which a code must confirm it, if they end.")] = None


class UserView(View):
    """Who has signed in."""

    username: str
    email: str


class TokenView(View):
    """An access token."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int


class RefreshView(TokenView):
    """A new pair of tokens."""

    refresh_token: str


class SignedInView(RefreshView):
    """Both factors were right. `recoveryCodes` and `deviceToken` are shown this once."""

    message: Literal["Authentication successful"] = "Authentication successful"
    user: UserView
    recovery_codes: list[str] | None = None
    recovery_codes_left: Annotated[int | None, Field(description="Said after using one, and when few are left.")] = None
    device_token: str | None = None


class LoginView(View):
    """The password was right: a token for showing the second factor, or one for everything on a remembered device.

    Where policy lets the account go without a second factor there are both: `accessToken` is of `step: password`, and
    `tempToken` is for enrolling, by `mfaDeadline` if there is one.
    """

    message: Literal["Credentials valid, provide TOTP code", "Authentication successful"]
    mfa_required: bool
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int
    temp_token: str | None = None
    enrolment_required: bool | None = None
    methods: list[str] | None = None
    mfa_deadline: Annotated[datetime | None, Field(description="From when a second factor is required.")] = None
    access_token: str | None = None
    refresh_token: str | None = None
    user: UserView | None = None
    recovery_codes_left: int | None = None


def _enrolment(enrolment: Enrolment, message: str) -> EnrolView:
    return EnrolView(
        message=message, qr_code=enrolment.qr_code, manual_entry_key=enrolment.secret, expires_in=enrolment.expires_in
    )


@post_unless_embedded("/register")
@limited("credentials", "registrations")
@takes(RegisterBody)
@gives(200, EnrolView)
@refuses(errors.UserExists, errors.WeakPassword, errors.RegistrationClosed, errors.Busy, errors.RegistrationFailed)
def register(body: RegisterBody) -> EnrolView:
    """Make an account and its authenticator."""
    enrolment = services().accounts.register(body.username, body.password, body.email, client_info())
    return _enrolment(enrolment, "User registered successfully")


@post_unless_embedded("/login")
@limited("credentials")
@takes(LoginBody)
@gives(200, LoginView)
@refuses(errors.InvalidCredentials, errors.Busy, errors.LoginFailed)
def login(body: LoginBody) -> LoginView:
    """Exchange a password for a token that is good for one thing: showing the second factor.

    On a remembered device (`deviceToken`) the password is enough.
    """
    outcome = services().login.begin(body.username, body.password, client_info(), body.device_token)
    if isinstance(outcome, PasswordOnly):
        return _password_only(outcome)
    return _signed_in(outcome) if isinstance(outcome, SignedIn) else _pending(outcome)


def _pending(pending: MFAPending) -> LoginView:
    return LoginView(
        message="Credentials valid, provide TOTP code",
        temp_token=pending.token,
        expires_in=pending.expires_in,
        mfa_required=True,
        enrolment_required=not pending.methods,
        methods=list(pending.methods),
    )


def _password_only(outcome: PasswordOnly) -> LoginView:
    return _signed_in(outcome).model_copy(
        update={
            "temp_token": outcome.pending.token if outcome.pending else None,
            "enrolment_required": False,
            "methods": [],
            "mfa_deadline": outcome.deadline,
        }
    )


def _signed_in(signed_in: SignedIn) -> LoginView:
    return LoginView(
        message="Authentication successful",
        access_token=signed_in.access_token,
        refresh_token=signed_in.refresh_token,
        expires_in=signed_in.expires_in,
        mfa_required=False,
        user=_user(signed_in),
        recovery_codes_left=signed_in.recovery_codes_left,
    )


def _user(signed_in: SignedIn) -> UserView:
    return UserView(username=signed_in.username, email=signed_in.email)


@blueprint.post("/verify-mfa")
@limited("credentials")
@takes(VerifyBody)
@gives(200, SignedInView)
@refuses(errors.InvalidCode, errors.InvalidRecoveryCode, errors.WrongStep, errors.InvalidPendingToken)
def verify_mfa(body: VerifyBody) -> SignedInView:
    """Exchange the pending token and a code for an access token. The first success confirms the authenticator."""
    remember = Remember(body.device_name) if body.remember_device else None
    signed_in = services().login.complete(body.temp_token, body.proof, client_info(), remember)
    return SignedInView(
        access_token=signed_in.access_token,
        refresh_token=signed_in.refresh_token,
        expires_in=signed_in.expires_in,
        user=_user(signed_in),
        recovery_codes=list(signed_in.recovery_codes) if signed_in.recovery_codes else None,
        recovery_codes_left=signed_in.recovery_codes_left,
        device_token=signed_in.device_token,
    )


@blueprint.post("/enrol")
@limited("credentials")
@takes(EnrolBody)
@gives(200, EnrolView)
@refuses(errors.WrongStep, errors.InvalidPendingToken, errors.FactorExists)
def enrol(body: EnrolBody) -> EnrolView:
    """A new QR code for an account that has never shown a right code, or, with a ticket, for one that was reset."""
    enrolment = services().login.enrol(body.temp_token, client_info(), body.enrolment_ticket)
    return _enrolment(enrolment, "Scan the QR code, then verify a code")


@blueprint.post("/refresh")
@limited("sessions")
@takes(RefreshBody)
@gives(200, RefreshView)
@refuses(errors.InvalidRefreshToken, errors.RefreshReused)
def refresh(body: RefreshBody) -> RefreshView:
    """Exchange the refresh token for a new pair. The old one is good for ten more seconds, for the same successor."""
    fresh = services().login.refresh(body.refresh_token, client_info())
    return RefreshView(access_token=fresh.access_token, refresh_token=fresh.refresh_token, expires_in=fresh.expires_in)


@blueprint.post("/step-up")
@require_mfa
@limited("credentials")
@takes(ProofBody)
@gives(200, TokenView)
@refuses(*REFUSALS, errors.InvalidCode, errors.InvalidRecoveryCode)
def step_up(body: ProofBody) -> TokenView:
    """Show the second factor again: the same session, an access token with a fresh `auth_time`.

    A browser that came with a cookie gets another one.
    """
    cookie = None if "Authorization" in request.headers else cookies.read("session")
    fresh = services().login.step_up(current_identity, body.proof, client_info(), cookie)
    if fresh.cookie:
        after_this_request(partial(_with_cookie, fresh.cookie))
    return TokenView(access_token=fresh.access_token, expires_in=fresh.expires_in)


@blueprint.post("/logout")
@require_login
@limited("sessions")
@takes(LogoutBody, optional=True)
@gives(204, Empty)
@refuses(*REFUSALS)
def logout(body: LogoutBody) -> Empty:
    """End this session; with `everywhere` all of them, remembered devices too. It takes effect at once."""
    services().login.sign_out(current_identity, client_info(), everywhere=body.everywhere)
    return Empty()


@post_unless_embedded("/password")
@require_mfa(max_age=STEP_UP_SECONDS)
@limited("credentials")
@takes(PasswordBody)
@gives(204, Empty)
@refuses(*REFUSALS, errors.StepUpRequired, errors.InvalidCredentials, errors.WeakPassword, errors.Busy)
def change_password(body: PasswordBody) -> Empty:
    """Change the password. Every other session, remembered device and pending token ends."""
    who, session_id = current_identity.user_id, current_identity.session_id
    services().accounts.change_password(who, session_id, body.current_password, body.new_password, client_info())
    return Empty()


def _with_cookie(cookie: str, response: Response) -> Response:
    cookies.keep(response, "session", cookie)
    return response
