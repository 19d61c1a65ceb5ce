"""The signed word of the gate on one model version, and the envelope that it travels in.

The statement binds a verdict to the version (name, number, time of creation), to the file (sha256), to what it was
measured on (manifest, evidence) and to the policy. It also holds where the registry's record ended when it was signed,
so that nobody without the key can write the history before it anew. The envelope is a DSSE (Dead Simple Signing
Envelope, version 1.0.2: https://github.com/secure-systems-lab/dsse): the signature covers the type of the payload and
its very bytes, so nothing is parsed before it is verified. Knows nothing of registries; whether a statement opens a
door is `gate.admission`.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pillsnap.core.errors import TamperedError
from pillsnap.core.files import canonical_json
from pillsnap.gate.decision import Verdict
from pillsnap.gate.keys import KeyRing, key_id_of

ENVELOPE_TAG = "gate.envelope"
"""The tag of a model version that carries it."""
PAYLOAD_TYPE = "application/vnd.pillsnap.decision+json; version=2"
_EARLIER = {"application/vnd.pillsnap.decision+json; version=1"}
LONGEST_ENVELOPE = 100_000
"""Characters; also what a tag of the MLflow registry can hold."""
Digest = str


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ChampionRef(_Frozen):
    """The champion that a candidate was compared with."""

    version: str
    bundle_sha256: Digest


class RecordHead(_Frozen):
    """The end of the registry's record at one time."""

    number: int = Field(ge=0)
    """Of the last row; 0: there was none."""
    hash: Digest
    """Of that row, which covers all rows before it."""


class Statement(_Frozen):
    """What the gate says of one model version."""

    statement_version: Literal[2] = 2
    decision_id: str
    replaces: str | None
    """The ``decision_id`` that stood at the version before, None: none. The registry takes no other: of two gates that
    judge at once one wins, and an old envelope cannot be played again."""
    issued_at_ms: int = Field(ge=0)
    """Milliseconds since 1970, UTC."""

    model_name: str
    model_version: str
    created_at_ms: int
    """When the registry made the version: a version that was deleted and made again is another one."""
    bundle_sha256: Digest
    """Of ``model.onnx``."""
    artifact_sha256: Digest
    """Of all files of the version's MLflow model (`pillsnap.tracking.fetching.model_digests`): whoever loads it through
    MLflow runs what ``MLmodel`` says, so that may not change either."""
    manifest_hash: Digest
    policy_sha256: Digest
    evidence_sha256: Digest
    """Of ``evidence.json``."""
    champion: ChampionRef | None
    """The champion at that time; None: there was none."""
    record: RecordHead | None
    """Where the registry's record ended; None: a registry that keeps none."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why it is not PROMOTE."""
    figures: dict[str, str]
    """As people read them: ``top1`` → ``92.5 %``."""
    evidence_run_id: str
    """MLflow run that holds evidence, report and this envelope."""
    code: str
    """Version and commit of the code that judged."""

    @property
    def issued_at(self) -> datetime:
        """When it was signed."""
        return datetime.fromtimestamp(self.issued_at_ms / 1000, UTC)


def seal(statement: Statement, key: Ed25519PrivateKey) -> str:
    """Sign a statement: the envelope as JSON text."""
    document: Any = statement.model_dump(mode="json")
    payload = canonical_json(document).encode()
    return _envelope(payload, key_id_of(key.public_key()), key.sign(_pre_authentication(payload)))


def open_envelope(text: str, ring: KeyRing) -> Statement:
    """The statement of an envelope that a trusted key has signed.

    Raises:
        TamperedError: no envelope, forged, changed, or by a key that is not trusted; with the reason.
    """
    if len(text) > LONGEST_ENVELOPE:
        raise TamperedError(f"an envelope of {len(text)} characters; the gate's have at most {LONGEST_ENVELOPE}")
    try:
        envelope = json.loads(text)
        if envelope["payloadType"] in _EARLIER:
            raise TamperedError("was made by an earlier version: judge again")
        if set(envelope) != {"payloadType", "payload", "signatures"} or envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError("other fields or another payloadType")
        (signed,) = envelope["signatures"]
        key_id = str(signed["keyid"])
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(signed["sig"], validate=True)
        if text != _envelope(payload, key_id, signature):  # one envelope has one text: no spare bits, no second key
            raise ValueError("written in another way than the gate writes it")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise TamperedError(f"is not an envelope of the gate ({error})") from error
    issued_at = _issued_at(payload)
    ring.verify(key_id, signature, _pre_authentication(payload), issued_at)
    try:
        return Statement.model_validate_json(payload)
    except ValidationError as error:
        raise TamperedError(f"a signed statement of another form ({error.errors()[0]['msg']}); judge again") from error


def _envelope(payload: bytes, key_id: str, signature: bytes) -> str:
    return canonical_json(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _pre_authentication(payload: bytes) -> bytes:
    """PAE of the DSSE protocol: lengths and bytes of type and payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _issued_at(payload: bytes) -> datetime:
    """The date of a payload that is not verified yet: only to ask whether its key signed at that time."""
    try:
        return datetime.fromtimestamp(json.loads(payload)["issued_at_ms"] / 1000, UTC)
    except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError) as error:
        raise TamperedError(f"an envelope without a date ({error})") from error
