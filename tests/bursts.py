"""Many requests at the very same time, over raw sockets, from one process."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    json: dict[str, Any]


def burst(address: str, path: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """POST all bodies on connections of their own: everything but the last bytes first, then the last ones together."""
    requests = [_request(address, path, body) for body in bodies]
    connections = [_connect(address) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request[:-1])
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request[-1:])
    return [_answer(connection) for connection in connections]


def post(address: str, path: str, body: dict[str, Any]) -> Answer:
    """One request."""
    return burst(address, path, [body])[0]


def _connect(address: str) -> socket.socket:
    url = urlsplit(address)
    return socket.create_connection((url.hostname, url.port), timeout=30)


def _request(address: str, path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(address).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _answer(connection: socket.socket) -> Answer:
    with connection, connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
        return Answer(status, json.loads(stream.read(int(headers["content-length"]))))
