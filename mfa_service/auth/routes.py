"""Register, log in, show the second factor. Each route parses, calls one method, answers."""

from typing import Annotated, Literal

from flask import Blueprint
from pydantic import Field

from mfa_service import errors
from mfa_service.services.totp import Enrolment
from mfa_service.web import services
from mfa_service.web.client import client_info
from mfa_service.web.contract import Body, View, gives, limited, refuses, takes

blueprint = Blueprint("auth", __name__)

Username = Annotated[str, Field(max_length=256, description="Compared without case or width (RFC 8265).")]
Password = Annotated[str, Field(max_length=1024, description="At most 1,024 bytes.")]


class RegisterBody(Body):
    """A new account."""

    username: Username
    password: Password
    email: Annotated[str, Field(max_length=320)]


class LoginBody(Body):
    """The first factor."""

    username: Username
    password: Password


class VerifyBody(Body):
    """The second factor, for the token that the first one gave."""

    temp_token: str
    totp_code: Annotated[str, Field(description="Six digits; anything else is a wrong code.")]


class EnrolBody(Body):
    """A token from login."""

    temp_token: str


class EnrolView(View):
    """An authenticator to add, shown once."""

    message: str
    qr_code: Annotated[str, Field(description="The otpauth address as a PNG in a data URI.")]
    manual_entry_key: Annotated[str, Field(description="The same secret in base32, for typing.")]


class LoginView(View):
    """The password was right; the code is still to come."""

    message: Literal["Credentials valid, provide TOTP code"] = "Credentials valid, provide TOTP code"
    temp_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int
    mfa_required: Literal[True] = True
    enrolment_required: bool
    methods: list[str]


class UserView(View):
    """Who has signed in."""

    username: str
    email: str


class SignedInView(View):
    """Both factors were right."""

    message: Literal["Authentication successful"] = "Authentication successful"
    access_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int
    user: UserView


def _enrolment(enrolment: Enrolment, message: str) -> EnrolView:
    return EnrolView(message=message, qr_code=enrolment.qr_code, manual_entry_key=enrolment.secret)


@blueprint.post("/register")
@limited
@takes(RegisterBody)
@gives(200, EnrolView)
@refuses(errors.UserExists, errors.WeakPassword, errors.RegistrationClosed, errors.Busy, errors.RegistrationFailed)
def register(body: RegisterBody) -> EnrolView:
    """Make an account and its authenticator."""
    enrolment = services().accounts.register(body.username, body.password, body.email, client_info())
    return _enrolment(enrolment, "User registered successfully")


@blueprint.post("/login")
@limited
@takes(LoginBody)
@gives(200, LoginView)
@refuses(errors.InvalidCredentials, errors.Busy, errors.LoginFailed)
def login(body: LoginBody) -> LoginView:
    """Exchange a password for a token that is good for one thing: showing the second factor."""
    pending = services().login.begin(body.username, body.password, client_info())
    return LoginView(
        temp_token=pending.token,
        expires_in=pending.expires_in,
        enrolment_required=not pending.methods,
        methods=list(pending.methods),
    )


@blueprint.post("/verify-mfa")
@limited
@takes(VerifyBody)
@gives(200, SignedInView)
@refuses(errors.InvalidCode, errors.WrongStep, errors.InvalidPendingToken)
def verify_mfa(body: VerifyBody) -> SignedInView:
    """Exchange the pending token and a code for an access token. The first success confirms the authenticator."""
    signed_in = services().login.complete(body.temp_token, body.totp_code, client_info())
    user = UserView(username=signed_in.username, email=signed_in.email)
    return SignedInView(access_token=signed_in.access_token, expires_in=signed_in.expires_in, user=user)


@blueprint.post("/enrol")
@limited
@takes(EnrolBody)
@gives(200, EnrolView)
@refuses(errors.WrongStep, errors.InvalidPendingToken, errors.FactorExists)
def enrol(body: EnrolBody) -> EnrolView:
    """A new QR code for an account that has never shown a right code: a lost QR is no lost account."""
    return _enrolment(services().login.enrol(body.temp_token, client_info()), "Scan the QR code, then verify a code")
