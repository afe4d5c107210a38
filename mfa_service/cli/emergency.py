"""For bad days: a stolen key, a restored backup."""

import click

from mfa_service.cli.group import as_json, confirm, mfa, needs_why, open_services, operator, show_one, yes


@mfa.command("revoke-all")
@needs_why
@yes
@as_json
def revoke_all(reason: str, yes: bool, is_json: bool) -> None:
    """End every session, remembered device, pending token and ticket of everybody.

    After a signing key was stolen: take its file out of the folder of signing keys first.
    """
    confirm("Sign everybody out, everywhere?", yes=yes)
    with open_services() as services:
        show_one(services.emergency.revoke_all(operator().client, reason=reason), is_json=is_json)


@mfa.command("after-restore")
@click.option("--burn-recovery-codes", is_flag=True, help="Use up all recovery codes: some were used since the backup.")
@yes
@as_json
def after_restore(burn_recovery_codes: bool, yes: bool, is_json: bool) -> None:
    """Make a restored backup safe, before the service starts on it: nothing used since then works again."""
    confirm("Sign everybody out, and use up time steps until now?", yes=yes)
    with open_services() as services:
        ended = services.emergency.after_restore(operator().client, burns_recovery_codes=burn_recovery_codes)
    show_one(ended, is_json=is_json)
