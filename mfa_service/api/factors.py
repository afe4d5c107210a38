"""The signed-in user's second factors. Changing them needs one within the last five minutes."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from mfa_service import errors
from mfa_service.api.blueprint import blueprint
from mfa_service.guard import REFUSALS, STEP_UP_SECONDS, current_identity, require_login, require_mfa
from mfa_service.web import services
from mfa_service.web.client import client_info
from mfa_service.web.contract import Body, Empty, View, gives, limited, refuses, takes


class ConfirmBody(Body):
    """A code of the new authenticator."""

    totp_code: Annotated[str, Field(description="Six digits; anything else is a wrong code.")]


class FactorsView(View):
    """Which second factors the account has."""

    methods: list[str]
    recovery_codes_left: int
    roles: list[str]
    policy: Literal["required", "optional"]
    mfa_required: Annotated[bool, Field(description="A rule is about you, whether its deadline has come or not.")]
    mfa_deadline: Annotated[datetime | None, Field(description="From when policy wants a second factor of you.")] = None


class NewTOTPView(View):
    """An authenticator to add, shown once. The old one works until this one is confirmed."""

    qr_code: Annotated[str, Field(description="The otpauth address as a PNG in a data URI.")]
    manual_entry_key: Annotated[str, Field(description="The same secret in base32, for typing.")]
    expires_in: Annotated[int | None, Field(description="Seconds in which it has to be confirmed.")] = None


class RecoveryCodesView(View):
    """New recovery codes, shown once; the old ones are dead."""

    recovery_codes: list[str]


@blueprint.get("/mfa")
@require_login
@gives(200, FactorsView)
@refuses(*REFUSALS)
def show_factors() -> FactorsView:
    """Which second factors you have, and how many recovery codes are left."""
    summary = services().factors.summary(current_identity.user_id)
    return FactorsView(
        methods=list(summary.methods),
        recovery_codes_left=summary.recovery_codes_left,
        roles=list(summary.roles),
        policy=summary.policy,
        mfa_required=summary.is_required,
        mfa_deadline=summary.deadline,
    )


@blueprint.delete("/mfa")
@require_mfa(max_age=STEP_UP_SECONDS)
@limited("sessions")
@gives(204, Empty)
@refuses(*REFUSALS, errors.StepUpRequired, errors.MFARequired)
def remove_factors() -> Empty:
    """Go without a second factor, where policy lets. All sessions end, this one too."""
    services().factors.remove(current_identity, client_info())
    return Empty()


@blueprint.post("/mfa/totp")
@require_mfa(max_age=STEP_UP_SECONDS)
@limited("sessions")
@gives(200, NewTOTPView)
@refuses(*REFUSALS, errors.StepUpRequired)
def replace_totp() -> NewTOTPView:
    """Begin to replace the authenticator. The old one works until the new one is confirmed."""
    enrolment = services().factors.replace(current_identity, client_info())
    return NewTOTPView(qr_code=enrolment.qr_code, manual_entry_key=enrolment.secret, expires_in=enrolment.expires_in)


@blueprint.post("/mfa/totp/confirm")
@require_mfa(max_age=STEP_UP_SECONDS)
@limited("credentials")
@takes(ConfirmBody)
@gives(204, Empty)
@refuses(*REFUSALS, errors.StepUpRequired, errors.InvalidCode, errors.NothingToConfirm)
def confirm_totp(body: ConfirmBody) -> Empty:
    """Put the new authenticator in place of the old one. Remembered devices and pending tokens end."""
    services().factors.confirm_replacement(current_identity, body.totp_code, client_info())
    return Empty()


@blueprint.post("/mfa/recovery-codes")
@require_mfa(max_age=STEP_UP_SECONDS)
@limited("sessions")
@gives(200, RecoveryCodesView)
@refuses(*REFUSALS, errors.StepUpRequired)
def renew_recovery_codes() -> RecoveryCodesView:
    """Ten new recovery codes, shown once."""
    codes = services().factors.renew_recovery_codes(current_identity, client_info())
    return RecoveryCodesView(recovery_codes=list(codes))
