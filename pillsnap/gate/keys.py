"""The gate's keys: one private key that signs, and the ring of public keys that are trusted.

A private key is a PKCS 8 PEM file that only its owner can read; with ``PILLSNAP_GATE_KEY_PASSWORD`` it is encrypted.
A public key is a JSON file in ``registry/keys/``, named by its id (half of its sha256), with the time in
which it signs. Rotation: make a new pair, then end the old one with ``not_after``: what it has signed stays valid, what
it signs later is not. ``revoked`` makes all that it ever signed worthless: for a key that was stolen, whose thief
could date back.

Algorithm: Ed25519 (RFC 8032), by `cryptography`. Knows nothing of what is signed.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import AwareDatetime

from pillsnap.core.document import StoredDocument
from pillsnap.core.errors import ConfigError, TamperedError
from pillsnap.core.files import sha256_bytes
from pillsnap.core.process_environment import NO_HOME

PASSWORD_VARIABLE = "PILLSNAP_GATE_KEY_PASSWORD"  # noqa: S105 - the name of a variable
_ID_LENGTH = 32
_PRIVATE_FILE = Path("pillsnap/gate.key")


class PublicKey(StoredDocument):
    """A public key that the platform trusts, as it lies in ``registry/keys/KEY_ID.json``."""

    what: ClassVar[str] = "a public key of the gate"
    remedy: ClassVar[str] = "make a pair with: pillsnap registry keygen"

    key_id: str
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str
    """The 32 bytes in base64."""
    not_before: AwareDatetime
    not_after: AwareDatetime | None = None
    """It signs no longer; what it signed before stays valid."""
    revoked: AwareDatetime | None = None
    """Nothing that it signed is valid, whenever that was."""
    comment: str = ""

    def state(self, now: datetime) -> str:
        """In words: signs, begins to sign later, retired or revoked."""
        if self.revoked is not None:
            return f"revoked on {self.revoked:%Y-%m-%d %H:%M}: nothing that it signed is valid"
        if self.not_after is not None and self.not_after <= now:
            return f"retired on {self.not_after:%Y-%m-%d %H:%M}: what it signed before stays valid"
        if now < self.not_before:
            return f"begins to sign on {self.not_before:%Y-%m-%d %H:%M}"
        return "signs" if self.not_after is None else f"signs until {self.not_after:%Y-%m-%d %H:%M}"

    def ed25519(self) -> Ed25519PublicKey:
        """The key itself. Raises ConfigError: these are not the bytes of the key that the id names."""
        try:
            raw = base64.b64decode(self.public_key, validate=True)
            key = Ed25519PublicKey.from_public_bytes(raw)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"key {self.key_id}: public_key holds no Ed25519 key ({error})") from error
        if key_id_of(key) != self.key_id:
            raise ConfigError(f"key {self.key_id}: public_key is another key, {key_id_of(key)}; restore the file")
        return key


@dataclass(frozen=True)
class KeyRing:
    """The public keys that are trusted, by id."""

    keys: Mapping[str, PublicKey]

    @classmethod
    def load(cls, folder: Path) -> KeyRing:
        """Read ``folder``; no folder is an empty ring, which trusts nobody.

        Raises:
            ConfigError: a file there is no key, or not the one that it is named after.
            EvidenceError: a file there cannot be read.
        """
        keys = {}
        for path in sorted(folder.glob("*.json")):
            key = PublicKey.load(path)
            if path.stem != key.key_id:
                raise ConfigError(f"{path}: holds key {key.key_id}; name the file after its key")
            key.ed25519()
            keys[key.key_id] = key
        return cls(keys)

    def verify(self, key_id: str, signature: bytes, message: bytes, signed_at: datetime) -> None:
        """Accept what a trusted key signed while it was valid. Raises TamperedError with the reason."""
        key = self.keys.get(key_id)
        if key is None:
            known = ", ".join(self.keys) or "none"
            raise TamperedError(f"signed by key {key_id[:64]!r}, which is not trusted here (trusted: {known})")
        if key.revoked is not None:
            raise TamperedError(f"signed by key {key_id}, which was revoked on {key.revoked:%Y-%m-%d}; judge again")
        try:
            key.ed25519().verify(signature, message)
        except InvalidSignature as error:
            raise TamperedError(f"the signature is not that of key {key_id}: the text was changed or forged") from error
        if signed_at < key.not_before:
            raise TamperedError(f"dated {signed_at:%Y-%m-%d %H:%M}, before key {key_id} began to sign")
        if key.not_after is not None and signed_at > key.not_after:
            raise TamperedError(f"signed after key {key_id} had expired ({key.not_after:%Y-%m-%d %H:%M}); judge again")

    def with_revoked(self) -> KeyRing:
        """The ring of before any revocation: to tell what a revoked key signed from what nobody signed."""
        return KeyRing({key_id: key.model_copy(update={"revoked": None}) for key_id, key in self.keys.items()})

    def require_signing(self, key: Ed25519PrivateKey, now: datetime) -> None:
        """Refuse a private key whose word nobody would take now. Raises ConfigError with what is the matter."""
        key_id = key_id_of(key.public_key())
        public = self.keys.get(key_id)
        if public is None:
            raise ConfigError(
                f"the private key is {key_id}, which is not trusted here (trusted: {', '.join(self.keys) or 'none'}): "
                "nothing that it signs would be taken. Name the gate's key, or make a pair: pillsnap registry keygen"
            )
        if not public.state(now).startswith("signs"):
            raise ConfigError(f"the private key, {key_id}, does not sign now: {public.state(now)}; take another one")


def key_id_of(key: Ed25519PublicKey) -> str:
    """The id of a key: half of the sha256 (hex) of its 32 bytes."""
    return sha256_bytes(key.public_bytes(Encoding.Raw, PublicFormat.Raw))[:_ID_LENGTH]


def generate(private_file: Path, ring_folder: Path, *, now: datetime, comment: str = "") -> PublicKey:
    """Make a pair: the private key at ``private_file`` (mode 0600), the public one in ``ring_folder``.

    Raises:
        ConfigError: ``private_file`` is there already; a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    public = PublicKey(
        key_id=key_id_of(key.public_key()),
        public_key=base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode(),
        not_before=now,
        comment=comment,
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption())
    private_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(private_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{private_file}: a key lies there already and is never overwritten; name another") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
    try:
        public.save(ring_folder / f"{public.key_id}.json")
    except OSError:
        private_file.unlink()  # half a pair signs what nobody trusts, and would be in the way of the next try
        raise
    return public


def default_private_file() -> Path:
    """Where the gate's private key lies unless another file is named: ``~/.config/pillsnap/gate.key``.

    Raises:
        ConfigError: this user has no home folder.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG Base Directory Specification: a relative path is invalid and to be ignored.
    if base.startswith("/"):
        return Path(base) / _PRIVATE_FILE
    home = Path.home()
    if home == Path(NO_HOME):
        raise ConfigError(
            "this user has no home folder, where the gate's private key would lie: set HOME or XDG_CONFIG_HOME, or "
            "name the file (keygen --private FILE, judge and gate-service --key FILE)"
        )
    return home / ".config" / _PRIVATE_FILE


def retire(ring_folder: Path, key_id: str, *, now: datetime) -> PublicKey:
    """End a key: what it has signed stays valid, what it signs later is not.

    Raises:
        ConfigError: no such key, or it has ended already: an end is never moved.
    """
    key = _of_ring(ring_folder, key_id)
    if key.revoked is not None or (key.not_after is not None and key.not_after <= now):
        raise ConfigError(f"key {key_id} is {key.state(now)}; there is nothing to retire")
    return _change(ring_folder, key, not_after=now)


def revoke(ring_folder: Path, key_id: str, *, now: datetime) -> PublicKey:
    """Make all that a key ever signed worthless. Raises ConfigError: no such key, or it was revoked already."""
    key = _of_ring(ring_folder, key_id)
    if key.revoked is not None:
        raise ConfigError(f"key {key_id} was {key.state(now)}; there is nothing to revoke")
    return _change(ring_folder, key, revoked=now)


def _of_ring(ring_folder: Path, key_id: str) -> PublicKey:
    keys = KeyRing.load(ring_folder).keys
    if key_id not in keys:
        raise ConfigError(f"{key_id!r}: no such key in {ring_folder} (there: {', '.join(keys) or 'none'})")
    return keys[key_id]


def _change(ring_folder: Path, key: PublicKey, **ends: datetime) -> PublicKey:
    changed = key.model_copy(update=ends)
    changed.save(ring_folder / f"{key.key_id}.json")
    return changed


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the private key. Raises ConfigError: not there, readable by others, no key, or a wrong password."""
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the gate's private key cannot be read ({error.strerror}); make a pair with: pillsnap registry "
            f"keygen --private {path}"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: others may read the gate's private key; shut it with: chmod 600 {path}")
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        key: Any = load_pem_private_key(pem, password.encode() if password else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no private key, or {PASSWORD_VARIABLE} is not its password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is a key of another kind; the gate signs with Ed25519")
    return key


def _encryption() -> KeySerializationEncryption:
    password = os.environ.get(PASSWORD_VARIABLE)
    return BestAvailableEncryption(password.encode()) if password else NoEncryption()
