"""Who is asking: the client's address and network, its agent, the id of the request."""

import ipaddress
import re
import secrets

from flask import Flask, Response, g, request

from mfa_service.services.audit import ClientInfo

_WITH_PORT = re.compile(r"(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}", re.ASCII)


def install_request_ids(app: Flask) -> None:
    """Give every request an id, the caller's where that is safe to repeat, and echo it."""
    app.before_request(assign_request_id)
    app.after_request(echo_request_id)


def assign_request_id() -> None:
    """Take the caller's id if it is safe, or make one."""
    offered = request.headers.get("X-Request-Id", "")
    g.mfa_request_id = offered if _SAFE_ID.fullmatch(offered) else secrets.token_hex(16)


def echo_request_id(response: Response) -> Response:
    """Let the caller know the id."""
    response.headers["X-Request-Id"] = request_id()
    return response


def request_id() -> str:
    """The id of this request."""
    return str(g.get("mfa_request_id", ""))


def client_info() -> ClientInfo:
    """What audit and sessions keep of the client. Anything but printable characters is dropped from its agent."""
    agent = "".join(character for character in request.user_agent.string if character.isprintable())
    return ClientInfo(str(client_address() or "unknown"), client_network(), agent[:256], request_id())


def client_network() -> str:
    """The key of the rate limits: an IPv4 address, or the /64 of an IPv6 one, however it is spelled.

    Never empty, since an empty key would skip the limit: whoever has no readable address shares one bucket.
    """
    address = client_address()
    if address is None:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


def client_address() -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The client's address, if it can be read; some balancers forward it with a port."""
    text = (request.remote_addr or "").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        match = _WITH_PORT.fullmatch(text)
    try:
        return ipaddress.ip_address(match["address"].strip("[]")) if match else None
    except ValueError:
        return None
