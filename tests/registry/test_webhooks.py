"""Messages that wake the gate: signed by the server, fresh, and each once."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.webhooks.delivery import _generate_hmac_signature

from pillsnap.core.errors import TamperedError
from pillsnap.registry.webhooks import DELIVERY_ID, LARGEST, SIGNATURE, TIMESTAMP, Inbox

NOW = 1_800_000_000
SECRET = "s3cret"
BODY = b'{"entity": "model_version_alias", "data": {"alias": "candidate"}}'


def message(body: bytes = BODY, *, secret: str = SECRET, at: int = NOW, delivery: str = "d-1") -> dict[str, str]:
    signature = _generate_hmac_signature(secret, delivery, str(at), body.decode())
    return {SIGNATURE: signature, TIMESTAMP: str(at), DELIVERY_ID: delivery}


def test_what_mlflow_signs_is_taken_once() -> None:
    inbox = Inbox(SECRET)
    assert inbox.check(message(), BODY, NOW) is True
    assert inbox.check(message(), BODY, NOW + 60) is False, "delivered twice"
    assert inbox.check(message(delivery="d-2"), BODY, NOW) is True


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, BODY, "has not signed"),
        (message(secret="other"), BODY, "has not signed"),
        (message(), BODY + b" ", "has not signed"),
        ({**message(), DELIVERY_ID: "d-2"}, BODY, "has not signed"),
        ({**message(), TIMESTAMP: str(NOW + 1)}, BODY, "has not signed"),
        ({**message(), SIGNATURE: "v1,é"}, BODY, "has not signed"),
        (message(at=NOW - 301), BODY, "too old"),
        (message(at=NOW + 301), BODY, "of the future"),
        (message(), b"x" * (LARGEST + 1), "at most"),
    ],
)
def test_attack_forged_late_and_oversize_messages(headers: dict[str, str], body: bytes, said: str) -> None:
    with pytest.raises(TamperedError, match=said):
        Inbox(SECRET).check(headers, body, NOW)


def test_attack_a_time_that_is_no_number() -> None:
    digest = hmac.new(SECRET.encode(), b"d-1.never." + BODY, hashlib.sha256).digest()
    headers = {SIGNATURE: "v1," + base64.b64encode(digest).decode(), TIMESTAMP: "never", DELIVERY_ID: "d-1"}
    with pytest.raises(TamperedError, match="too old"):
        Inbox(SECRET).check(headers, BODY, NOW)


def test_attack_replay_after_ten_thousand_others_is_too_old_by_then() -> None:
    inbox = Inbox(SECRET)
    inbox.check(message(), BODY, NOW)
    with pytest.raises(TamperedError, match="too old"):
        inbox.check(message(), BODY, NOW + 301)


@given(st.binary(max_size=200), st.dictionaries(st.sampled_from([SIGNATURE, TIMESTAMP, DELIVERY_ID]), st.text()))
def test_attack_any_other_message_is_refused(body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(TamperedError):
        Inbox(SECRET).check(headers, body, NOW)
