"""Who must have a second factor. So far the answer is: everybody."""

from typing import Literal

from mfa_service.errors import MFARequired


class Policy:
    """The rules about going without a second factor."""

    mode: Literal["required", "optional"] = "required"

    def ensure_may_go_without(self, user_id: str) -> None:
        """Raise MFARequired unless this user may remove the second factor."""
        raise MFARequired
