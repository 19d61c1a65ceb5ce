"""Whether a server can listen where it is told to."""

from __future__ import annotations

import socket

from pillsnap.core.errors import PillSnapError


def web_address(host: str, port: int) -> str:
    """``http://127.0.0.1:8000``; an IPv6 address in brackets, as RFC 3986 wants it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_free(host: str, port: int, option: str = "--port") -> None:
    """Refuse an address on which nobody can listen, before a server is started there.

    Uvicorn would end without a reason that people understand, and several workers would be restarted for ever.

    Args:
        host: address or name.
        port: number.
        option: the command's option for the port.

    Raises:
        PillSnapError: nobody can listen there.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))  # nobody listens: who connects now must be refused, and not left hanging
    except OSError as error:
        where = web_address(host, port).removeprefix("http://")
        raise PillSnapError(
            f"{where}: cannot listen there ({error.strerror or error}); give another --host or {option}"
        ) from error
