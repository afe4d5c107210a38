"""A deadline in JSON: a date, or days from the first login under the rule."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field

from mfa_service.errors import InvalidRequest
from mfa_service.services.policy import MAX_DAYS, Deadline
from mfa_service.web.contract import Body, Time, View


class DeadlineBody(Body):
    """From when a rule holds: `at` a date, or `days` after a user's first login under it. One of the two."""

    at: Time | None = None
    days: Annotated[int | None, Field(ge=1, le=MAX_DAYS)] = None

    @property
    def deadline(self) -> Deadline:
        """What was meant. Raises InvalidRequest for both or neither."""
        if (self.at is None) == (self.days is None):
            raise InvalidRequest(fields={"deadline": "takes either at or days"})
        return Deadline(self.at, self.days)


class DeadlineView(View):
    """From when a rule holds."""

    at: datetime | None = None
    days: int | None = None

    @classmethod
    def of(cls, deadline: Deadline) -> Self | None:
        """The deadline, or None for a rule that holds at once."""
        return None if deadline == Deadline() else cls(at=deadline.at, days=deadline.days)
