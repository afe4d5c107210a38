"""The handler of the log on a pipe: it waits once, loses whole lines, says how many, and mends a torn one."""

import copy
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from mfa_service.web.logs import LineHandler


@pytest.mark.faults("Q21")
def test_a_long_line_is_written_whole_and_one_that_is_torn_is_ended_before_the_next(log: "Log") -> None:
    log.write("x" * 6000)
    assert log.read() == ["x" * 6000]
    log.write("a" * 10_000)  # the pipe holds two pages
    log.write("b")
    assert log.read() == ["a" * 8192]
    log.write("c")
    assert log.read() == ["", "2 lines of this log are lost: nobody took them", "c"]


@pytest.mark.faults("Q21")
def test_whoever_is_second_to_find_it_full_does_not_wait(log: "Log") -> None:
    log.write("x" * 8191)
    log.write("lost")
    began = time.monotonic()
    for _ in range(50):
        log.write("lost as well")
    assert time.monotonic() - began < 0.5
    log.read()
    log.write("written")
    assert log.read() == ["51 lines of this log are lost: nobody took them", "written"]


@pytest.mark.faults("Q21")
def test_whoever_is_overtaken_by_another_process_does_not_wait_for_ever(log: "Log") -> None:
    late = log.overtaken()
    writing = threading.Thread(target=late.write, args=("lost",), daemon=True)
    writing.start()
    writing.join(5)
    assert not writing.is_alive()
    log.read()
    late.write("written")
    assert log.read()[:2] == ["1 lines of this log are lost: nobody took them", "written"]


class Overtaken(LineHandler):
    """Once, between its look and its write, somebody else fills the pipe."""

    is_first = True

    def _has_room(self) -> bool:
        has_room = super()._has_room()
        if self.is_first:
            self.is_first = False
            os.write(self.stream.fileno(), b"x" * 8192)
        return has_room


class Log:
    """A handler that writes into a pipe of two pages."""

    def __init__(self) -> None:
        self._out, into = os.pipe()
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 8192)
        self._handler = LineHandler()
        self._handler.stream = os.fdopen(into, "w", buffering=1)

    def overtaken(self) -> "Log":
        """The same pipe, written by a handler that another process overtakes."""
        late = copy.copy(self)
        late._handler = Overtaken()
        late._handler.stream = self._handler.stream
        return late

    def write(self, message: str) -> None:
        self._handler.handle(logging.LogRecord("test", logging.INFO, "", 0, message, None, None))

    def read(self) -> list[str]:
        return os.read(self._out, 100_000).decode().splitlines()

    def close(self) -> None:
        os.close(self._out)
        self._handler.stream.close()


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()
