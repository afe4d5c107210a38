"""What lets a user in without everything being shown again: sessions, remembered devices, pending tokens."""

from dataclasses import dataclass

from mfa_service.services.challenges import Challenges
from mfa_service.services.devices import Devices
from mfa_service.services.sessions import Sessions


@dataclass(frozen=True)
class Trust:
    """All of it, to be ended at once."""

    sessions: Sessions
    devices: Devices
    challenges: Challenges

    def end(self, user_id: str, *, keep: str = "") -> None:
        """End all of it but the session `keep`. The caller holds the user's row, so nothing is begun meanwhile."""
        self.sessions.revoke_all(user_id, keep=keep)
        self.devices.forget_all(user_id)
        self.challenges.close_all(user_id)
