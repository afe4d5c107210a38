"""Headers and framing that two readers could read in two ways, on raw sockets."""

import json
import re

import pytest

from tests.attacks.case import case
from tests.attacks.target import Target

SMUGGLED = b"GET /api/profile HTTP/1.1\r\nHost: %s\r\n\r\n"
#: Read as a body it is answered 401 as well, where bodies are read at all; with a wrong length it is not.
BODY = b'{"refreshToken":"x"}'
SECONDS = 2


def head_to(path: bytes, host: bytes) -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: application/json\r\n"


def requests(host: bytes) -> dict[str, bytes]:
    """Each is wrong in one way; what comes after it, where there is something, must not be read as a request.

    Signing out wants a token before it looks at a body or counts: whoever takes such a request answers 401 to it,
    wherever the body may end, and however often it is asked. Only what is wrong in a body goes to where one is read.
    """
    head, inner = head_to(b"/auth/logout", host), SMUGGLED % host
    chunked = b"0\r\n\r\n" + inner
    length = b"Content-Length: %d\r\n" % len(chunked)
    reads = head_to(b"/auth/refresh", host) + b"Transfer-Encoding: chunked\r\n\r\n"
    after = b"\r\n" + BODY + b"\r\n0\r\n\r\n" + inner
    end, body = b"\r\n", BODY
    return {
        "length and chunks": head + length + b"Transfer-Encoding: chunked\r\n" + end + chunked,
        "chunks and length": head + b"Transfer-Encoding: chunked\r\n" + length + end + chunked,
        "xchunked": head + b"Transfer-Encoding: xchunked\r\n" + length + end + chunked,
        "chunked, identity": head + b"Transfer-Encoding: chunked, identity\r\n" + length + end + chunked,
        "a space before the colon": head + b"Transfer-Encoding : chunked\r\n" + length + end + chunked,
        "two lengths": head + b"Content-Length: 20\r\nContent-Length: 5\r\n" + end + body,
        "a signed length": head + b"Content-Length: +20\r\n" + end + body,
        "a list of lengths": head + b"Content-Length: 20, 20\r\n" + end + body,
        "a negative length": head + b"Content-Length: -1\r\n" + end + body,
        "a length in hex": head + b"Content-Length: 0x14\r\n" + end + body,
        "a folded header": head + b"X-A: b\r\n c\r\nContent-Length: 20\r\n" + end + body,
        "NUL in a header": head + b"X-A: b\0c\r\nContent-Length: 20\r\n" + end + body,
        "a space in a name": head + b"X A: b\r\nContent-Length: 20\r\n" + end + body,
        "a wrong chunk": reads + b"zz" + after,
        "a signed chunk": reads + b"+14" + after,
        "a carriage return alone": head + b"X-A: b\rContent-Length: 20\r\n" + end + body,
        "a folded length": head + b"Content-Length:\r\n 20\r\n" + end + body,
        "a folded first header": head.replace(b"\r\n", b"\r\n X: y\r\n", 1) + b"Content-Length: 20\r\n" + end + body,
        "a vertical tab before chunked": head + b"Transfer-Encoding:\x0bchunked\r\n" + length + end + chunked,
        "two encodings": head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n" + end + chunked,
        "two hosts": b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\nHost: evil.example\r\n\r\n",
        "the same host twice": b"GET /healthz HTTP/1.1" + (b"\r\nHost: " + host) * 2 + b"\r\n\r\n",
        "no version": b"GET /healthz\r\n\r\n",
        "another version": b"GET /healthz HTTP/3.7\r\nHost: " + host + b"\r\n\r\n",
        "chunks in HTTP/1.0": head.replace(b"HTTP/1.1", b"HTTP/1.0")
        + b"Transfer-Encoding: chunked\r\n"
        + end
        + chunked,
    }


def line_feeds(host: bytes) -> dict[str, bytes]:
    """Line feeds where both characters of a line's end should be, and once a request for whoever reads on too early."""
    head, body, inner, end = head_to(b"/auth/logout", host), BODY, SMUGGLED % host, b"\r\n"
    chunks = head_to(b"/auth/refresh", host) + b"Transfer-Encoding: chunked\r\n" + end
    return {
        "a line feed alone before a header": head + b"X-A: b\nContent-Length: 20\r\n" + end + body,
        "a line feed alone after the length": head + b"Content-Length: 20\n" + end + body,
        "line feeds alone everywhere": (head + b"Content-Length: 20\r\n" + end).replace(b"\r\n", b"\n") + body,
        "line feeds alone at the end of the head": head + b"Content-Length: 20\n\n" + body,
        "a length that only one reader sees": head + b"X-A: b\nContent-Length: %d\r\n" % len(inner) + end + inner,
        "a line feed alone after the size of a chunk": chunks + b"14\n" + body + b"\r\n0\r\n\r\n",
        "a line feed alone after a chunk": chunks + b"14\r\n" + body + b"\n0\r\n\r\n",
        "a line feed alone after the last chunk": chunks + b"0\n\n" + inner,
    }


def refused(target: Target, what: str, request: bytes) -> None:
    """Refused is one answer that is about the request's form, or a closed connection; silence is neither."""
    answered = target.raw(request, SECONDS)
    if not answered and target.exchanges[-1][1].seconds >= SECONDS:
        raise TimeoutError(f"{what}: neither answered nor closed within {SECONDS} s")
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answered)
    if found and found[1] == b"429":
        pytest.skip(f"not run: {what}: the target's limit is used up")
    assert answered.count(b"HTTP/1.") <= 1, f"{what}: two answers to one request"
    # nginx answers some with its page alone, as to HTTP/0.9.
    is_refusal = found[1] in (b"400", b"501", b"505") if found else answered.startswith(b"<")
    assert not answered or is_refusal, f"{what}: the request was taken: {answered[:60]!r}"
    is_read = b" /auth/refresh " in request  # a body that can't be read is the service's to refuse
    assert is_read or code_of(answered) != "invalid_request", f"{what}: the request was taken, its body was not"


def code_of(answered: bytes) -> str:
    try:
        return str(json.loads(answered.partition(b"\r\n\r\n")[2])["code"])
    except (ValueError, KeyError, TypeError):
        return ""


@case(
    "R2",
    holds="a request that can be read in two ways is refused, and nothing after it is read",
    stems_from="CVE-2024-1135, CVE-2024-6827",
    broken_by="sloppy_framing reads_by_length",
)
def test_ambiguous_framing_is_refused(target: Target) -> None:
    for what, request in requests(target.host.encode()).items():
        refused(target, what, request)


@case(
    "R2b",
    holds="past the proxy, too",
    stems_from="CVE-2024-1135, CVE-2024-6827",
    broken_by="sloppy_framing reads_by_length",
    needs=("direct",),
)
def test_ambiguous_framing_is_refused_past_the_proxy(target: Target) -> None:
    assert target.direct
    host = target.direct.host.encode()
    for what, request in (requests(host) | line_feeds(host)).items():
        refused(target.direct, what, request)


@case(
    "R2d",
    holds="a line that ends in a line feed alone ends for proxy and service alike: one request, one answer",
    stems_from="RFC 9112 sections 2.2 and 7.1, CVE-2025-22871",
    broken_by="sloppy_framing",
    needs=("proxy",),
)
def test_a_line_feed_alone_smuggles_nothing(target: Target) -> None:
    requests_ = line_feeds(target.host.encode())
    # To whoever takes such an end for the last chunk's, a second request comes after it, and is answered rightly.
    del requests_["a line feed alone after the last chunk"]
    for what, request in requests_.items():
        answered = target.raw(request, 0.7)
        assert answered.count(b"HTTP/1.") <= 1, f"{what}: two answers to one request"
        assert not answered or answered.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), f"{what}: {answered[:60]!r}"


@case(
    "R2c",
    holds="the proxy answers to its own name alone",
    stems_from="RFC 9112 section 3.2",
    broken_by="any_host",
    needs=("proxy",),
)
def test_the_proxy_wants_a_host(target: Target) -> None:
    for lines in (
        b"HTTP/1.1\r\n",
        b"HTTP/1.1\r\nHost: evil.example\r\n",
        b"HTTP/1.0\r\n",
        b"HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    ):
        answered = target.raw(b"GET /healthz " + lines + b"Connection: close\r\n\r\n")
        assert not answered or answered.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answered[:60]


@case(
    "N13",
    holds="too many, too long and too many parameters of headers and lines are refused, and the service lives",
    stems_from="ASVS 4.1.3",
    broken_by="huge_headers",
)
def test_huge_heads_are_refused(target: Target) -> None:
    host = target.host.encode()
    start = b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n"
    for request in (
        start + b"A: " + b"x" * 70000 + b"\r\n\r\n",
        start + b"".join(b"A%d: x\r\n" % number for number in range(2000)) + b"\r\n",
        b"GET /healthz?" + b"x" * 70000 + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n",
    ):
        answered = target.raw(request)
        target.shows()
        assert not answered.startswith(b"HTTP/1.1 2"), answered[:60]
        assert b"HTTP/1.1 5" not in answered
    assert target.get("/healthz").status == 200


@case(
    "M23",
    holds="nothing that a client sends becomes a header of the answer",
    stems_from="CWE-113",
    broken_by="reflects_any_id",
)
def test_no_header_is_split(target: Target) -> None:
    for value in ("a\tb<script>", "x" * 300, "<b>", '"x"', "short", "é" * 9, "a;b=c,d/e?f"):
        answer = target.get("/healthz", headers={"X-Request-Id": value})
        assert answer.get("x-request-id") != value, f"{value!r} is repeated"
    for path in ("/healthz%0d%0aX-Evil:%201", "/auth/login%0d%0aSet-Cookie:%20a=b", "/docs?next=%0d%0aX-Evil:1"):
        assert not target.get(path).get("x-evil")
        assert "a=b" not in target.get(path).get("set-cookie")
