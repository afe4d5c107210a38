"""Tells of each statement that units of work send: when it begins and ends, on which engine, and never its values."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from mfa_service.services.unit_of_work import SINGLE, WRITES


def watch_statements(
    engine: Engine, begin: Callable[[str], Any], end: Callable[[Any, BaseException | None], None]
) -> None:
    """Call `begin` with each statement's text, and `end` with what that gave and the driver's error, if there was one.

    A host's engine serves the host, too: a unit of ours is known by the options of its connection.
    """

    def before(connection: Connection, _cursor: Any, text: str, _values: Any, context: Any, _many: bool) -> None:
        if connection.get_execution_options().keys() & {WRITES, SINGLE}:
            context.mfa_watched = begin(text)

    def after(_connection: Connection, _cursor: Any, _text: str, _values: Any, context: Any, _many: bool) -> None:
        finish(context, None)

    def failed(failure: ExceptionContext) -> None:
        if failure.execution_context is not None:
            finish(failure.execution_context, failure.original_exception)

    def finish(context: Any, error: BaseException | None) -> None:
        if (watched := vars(context).pop("mfa_watched", None)) is not None:
            end(watched, error)

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "handle_error", failed)
