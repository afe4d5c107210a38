"""Many requests at the very same time, over raw sockets, from one process."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Call:
    """A request that is to be made; `token` goes into the Authorization header."""

    path: str
    body: dict[str, Any] = field(default_factory=dict)
    token: str = ""
    method: str = "POST"


@dataclass(frozen=True)
class Answer:
    status: int
    json: dict[str, Any]


def burst(address: str, path: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """POST all bodies on connections of their own, all at once."""
    return together(address, [Call(path, body) for body in bodies])


def insistent(address: str, path: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """The same, for what has to succeed: who is told to come again, on a busy machine, has spent nothing and does."""
    answers = burst(address, path, bodies)
    for _ in range(5):
        assert {answer.status for answer in answers} <= {200, 503}, answers
        again = [place for place, answer in enumerate(answers) if answer.status == 503]
        if not again:
            return answers
        for place, answer in zip(again, burst(address, path, [bodies[place] for place in again]), strict=True):
            answers[place] = answer
    raise AssertionError(f"{len(again)} were told to come again, five times")


def post(address: str, path: str, body: dict[str, Any], token: str = "") -> Answer:
    """One request. Raises ConnectionError if the server dies over it."""
    return together(address, [Call(path, body, token)])[0]


def together(address: str, calls: Sequence[Call]) -> list[Answer]:
    """Make all calls on connections of their own: everything but the last bytes first, then the last ones together."""
    requests = [_request(address, call) for call in calls]
    connections = [_connect(address) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request[:-1])
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request[-1:])
    return [_answer(connection) for connection in connections]


def _connect(address: str) -> socket.socket:
    url = urlsplit(address)
    return socket.create_connection((url.hostname, url.port), timeout=30)


def _request(address: str, call: Call) -> bytes:
    content = json.dumps(call.body).encode()
    lines = [
        f"{call.method} {call.path} HTTP/1.1",
        f"Host: {urlsplit(address).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    lines += [f"Authorization: Bearer {call.token}"] if call.token else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _answer(connection: socket.socket) -> Answer:
    with connection, connection.makefile("rb") as stream:
        first = stream.readline()
        if not first:
            raise ConnectionResetError("the server hung up without an answer")
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
        return Answer(int(first.split()[1]), json.loads(stream.read(int(headers.get("content-length", 0))) or b"{}"))
