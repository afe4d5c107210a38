"""What counts as the same client."""

import pytest
from flask import Flask

from mfa_service.web.client import client_info, client_network


@pytest.mark.parametrize(
    ("forwarded", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:50123", "192.0.2.7"),
        ("[2001:db8::7]:443", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix:", "unknown"),
        ("192.0.2.777:80", "unknown"),
    ],
)
def test_an_address_is_read_with_and_without_a_port(network: str, forwarded: str) -> None:
    with Flask(__name__).test_request_context(environ_overrides={"REMOTE_ADDR": forwarded}):
        assert client_network() == network
        assert client_info().network == network
