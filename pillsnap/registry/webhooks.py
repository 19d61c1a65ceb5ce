"""Whether a message really comes from the registry's server: signature, age, and not the same twice.

MLflow signs ``DELIVERY_ID.TIMESTAMP.BODY`` with HMAC-SHA256 (after https://www.standardwebhooks.com). Knows
nothing of what is in a message: it only wakes the gate, which looks for itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from collections import OrderedDict
from collections.abc import Mapping

from pillsnap.core.errors import TamperedError

SIGNATURE = "x-mlflow-signature"
TIMESTAMP = "x-mlflow-timestamp"
DELIVERY_ID = "x-mlflow-delivery-id"
LARGEST = 200_000
"""Bytes of a body."""
TOLERANCE_S = 300
_REMEMBERED = 10_000


class Inbox:
    """Checks messages and remembers those that came. Safe to share between threads."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._mutex = threading.Lock()

    def check(self, headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
        """True for a message that is new, False for one that came before. Raises TamperedError: not the server's."""
        if len(body) > LARGEST:
            raise TamperedError(f"a message of {len(body)} bytes; at most {LARGEST} are taken")
        delivery, timestamp = headers.get(DELIVERY_ID, ""), headers.get(TIMESTAMP, "")
        content = f"{delivery}.{timestamp}.".encode("utf-8", "replace") + body
        digest = hmac.new(self._secret, content, hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(digest).decode()
        if not delivery or not hmac.compare_digest(
            expected.encode(), headers.get(SIGNATURE, "").encode("utf-8", "replace")
        ):
            raise TamperedError("a message that the registry's server has not signed")
        if not timestamp.isascii() or not timestamp.isdigit() or abs(now_s - int(timestamp)) > TOLERANCE_S:
            raise TamperedError("a message that is too old or of the future")
        with self._mutex:
            if delivery in self._seen:
                return False
            self._seen[delivery] = None
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return True
