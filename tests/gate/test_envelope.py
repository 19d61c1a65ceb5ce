from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import TamperedError
from pillsnap.core.files import canonical_json
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import (
    LONGEST_ENVELOPE,
    PAYLOAD_TYPE,
    ChampionRef,
    RecordHead,
    Statement,
    open_envelope,
    seal,
)
from pillsnap.gate.keys import KeyRing, PublicKey, key_id_of

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
ISSUED = datetime(2026, 11, 24, tzinfo=UTC)
STATEMENT = Statement(
    decision_id="d-1",
    replaces=None,
    issued_at_ms=int(ISSUED.timestamp() * 1000),
    model_name="알약",
    model_version="3",
    created_at_ms=1_700_000_000_000,
    bundle_sha256="b" * 64,
    artifact_sha256="a" * 64,
    manifest_hash="c" * 64,
    policy_sha256="e" * 64,
    evidence_sha256="f" * 64,
    champion=ChampionRef(version="2", bundle_sha256="9" * 64),
    record=RecordHead(number=4, hash="d" * 64),
    verdict=Verdict.PROMOTE,
    reasons=(),
    figures={"top1": "92.5 %"},
    evidence_run_id="r",
    code="1 abc",
)


def a_key(**ends: datetime) -> SimpleNamespace:
    private = Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key_id = key_id_of(private.public_key())
    public = PublicKey(key_id=key_id, public_key=base64.b64encode(raw).decode(), not_before=BEGAN, **ends)
    return SimpleNamespace(private=private, id=key_id, ring=KeyRing({key_id: public}))


KEY = a_key()
TEXT = seal(STATEMENT, KEY.private)


def sealed_payload(payload: bytes, key: Any = KEY, kind: str = PAYLOAD_TYPE) -> str:
    """What a key holder could write: any payload, rightly signed."""
    signature = key.private.sign(b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload))
    signed = {"keyid": key.id, "sig": base64.b64encode(signature).decode()}
    return canonical_json({"payloadType": kind, "payload": base64.b64encode(payload).decode(), "signatures": [signed]})


def changed(**changes: Any) -> str:
    return canonical_json({**json.loads(TEXT), **changes})


def refused(text: str, match: str = ".", ring: KeyRing = KEY.ring) -> None:
    with pytest.raises(TamperedError, match=match):
        open_envelope(text, ring)


def test_what_is_sealed_is_opened() -> None:
    assert open_envelope(TEXT, KEY.ring) == STATEMENT
    assert STATEMENT.issued_at == ISSUED
    first = STATEMENT.model_copy(update={"champion": None, "reasons": ("a", "b"), "verdict": Verdict.HOLD})
    assert open_envelope(seal(first, KEY.private), KEY.ring) == first


def test_the_signature_is_that_of_dsse() -> None:
    document: Any = STATEMENT.model_dump(mode="json")
    assert sealed_payload(canonical_json(document).encode()) == TEXT


def test_attack_by_every_flipped_bit_of_an_envelope() -> None:
    data = TEXT.encode()
    opened = []
    for place in range(len(data)):
        for bit in range(7):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                open_envelope(flipped.decode(), KEY.ring)
                opened.append((place, bit))
            except TamperedError:
                pass
    assert opened == []


@given(st.text(max_size=200) | st.sampled_from(["null", "[]", "1", "{}", '""', "NaN", '{"payload": null}', "\ud800"]))
def test_attack_by_any_text(text: str) -> None:
    refused(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["payloadType", "payload", "signatures", "more"]),
)
def test_attack_by_any_json_in_a_field(value: Any, field: str) -> None:
    if json.loads(TEXT).get(field) != value:
        refused(json.dumps({**json.loads(TEXT), field: value}))


@pytest.mark.parametrize("kind", ["", "application/json", PAYLOAD_TYPE.replace("2", "3"), PAYLOAD_TYPE + " "])
def test_attack_by_another_payload_type(kind: str) -> None:
    document: Any = STATEMENT.model_dump(mode="json")
    refused(sealed_payload(canonical_json(document).encode(), kind=kind), "another payloadType")
    refused(changed(payloadType=kind), "another payloadType")


def test_an_envelope_of_an_earlier_version_says_so() -> None:
    refused(changed(payloadType=PAYLOAD_TYPE.replace("2", "1")), "made by an earlier version: judge again")


def test_attack_by_several_signatures_or_none() -> None:
    [signed] = json.loads(TEXT)["signatures"]
    for signatures in ([], [signed, signed], [{**signed, "sig": ""}, signed]):
        refused(changed(signatures=signatures), "is not an envelope")
    refused(changed(signatures=[{**signed, "more": 1}]), "another way")


def test_attack_by_keys_that_stand_twice() -> None:
    forged = base64.b64encode(b"{}").decode()
    refused(TEXT.replace('{"payload":', f'{{"payload":"{forged}","payload":', 1), "another way")
    refused(TEXT[:-1] + ',"payloadType":"' + PAYLOAD_TYPE + '"}', "another way")


@pytest.mark.parametrize("text", [" " + TEXT, TEXT + "\n", TEXT.replace(":", ": ", 1), "\ufeff" + TEXT])
def test_attack_by_another_spelling(text: str) -> None:
    refused(text)


def test_attack_by_spare_bits_of_base64() -> None:
    [signed] = json.loads(TEXT)["signatures"]
    spare = signed["sig"][:-3] + chr(ord(signed["sig"][-3]) + 1) + "=="
    assert base64.b64decode(spare) == base64.b64decode(signed["sig"])
    refused(changed(signatures=[{**signed, "sig": spare}]), "another way")


def test_attack_oversize() -> None:
    refused("x" * (LONGEST_ENVELOPE + 1), f"at most {LONGEST_ENVELOPE}")
    refused(TEXT + " " * LONGEST_ENVELOPE, "characters")


@pytest.mark.parametrize("brackets", ["[", '{"a":', '[{"a":'])
def test_attack_by_deep_nesting(brackets: str) -> None:
    refused(brackets * (90_000 // len(brackets)))
    refused(sealed_payload(brackets.encode() * 10_000), "without a date")


@pytest.mark.parametrize(
    "date", ["NaN", "1e400", "-1e400", "9" * 400, "9" * 5000, '"now"', "null", "[]", "1e18", "-1e18", "{}"]
)
def test_attack_by_strange_dates(date: str) -> None:
    refused(sealed_payload(b'{"issued_at_ms":%b}' % date.encode()), "without a date")


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"[]", b"null", b"1", b"{}", b"not json"])
def test_attack_by_another_payload(payload: bytes) -> None:
    refused(sealed_payload(payload), "without a date")


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "YES"},
        {"statement_version": 1},
        {"extra": 1},
        {"issued_at_ms": STATEMENT.issued_at_ms + 0.5},
        {"model_version": 3},
        {"champion": {"version": "2"}},
        {"reasons": "none"},
        {"figures": {"top1": 1}},
    ],
)
def test_a_signed_statement_of_another_form(changes: dict[str, Any]) -> None:
    document: Any = STATEMENT.model_dump(mode="json")
    refused(sealed_payload(canonical_json({**document, **changes}).encode()), "statement of another form")


def test_attack_by_changing_the_verdict_after_signing() -> None:
    held = STATEMENT.model_copy(update={"verdict": Verdict.HOLD, "reasons": ("top1 is low",)})
    document: Any = STATEMENT.model_dump(mode="json")
    envelope = json.loads(seal(held, KEY.private))
    envelope["payload"] = base64.b64encode(canonical_json(document).encode()).decode()
    refused(canonical_json(envelope), "changed or forged")


def test_attack_with_a_key_that_nobody_trusts() -> None:
    thief = a_key()
    refused(seal(STATEMENT, thief.private), "not trusted here")
    [theirs] = json.loads(seal(STATEMENT, thief.private))["signatures"]
    refused(changed(signatures=[{**theirs, "keyid": KEY.id}]), "changed or forged")


def test_attack_with_an_expired_revoked_or_future_key() -> None:
    expired = a_key(not_after=ISSUED - timedelta(seconds=1))
    refused(seal(STATEMENT, expired.private), "expired", expired.ring)
    retired_later = a_key(not_after=ISSUED + timedelta(seconds=1))
    assert open_envelope(seal(STATEMENT, retired_later.private), retired_later.ring) == STATEMENT
    revoked = a_key(revoked=ISSUED + timedelta(days=1))
    refused(seal(STATEMENT, revoked.private), "revoked", revoked.ring)
    early = STATEMENT.model_copy(update={"issued_at_ms": int(BEGAN.timestamp() * 1000) - 1})
    refused(seal(early, KEY.private), "began to sign")
