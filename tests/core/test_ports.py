"""A port that is taken is said before a server starts."""

from __future__ import annotations

import socket

import pytest

from pillsnap.core.errors import PillSnapError
from pillsnap.core.ports import check_free, web_address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PillSnapError, match=rf"{port}: cannot listen there \(.+\); give another --host or --port"):
            check_free(host, port)
    check_free(host, port)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("name", "http://name:80")],
)
def test_an_address_can_be_opened(host: str, address: str) -> None:
    assert web_address(host, 80) == address
