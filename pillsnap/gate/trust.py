"""Where trust comes from: the folder with the gate's policy, the public keys and the roles.

It is the project's ``registry/``, apart from the code; an installation without a checkout (an image) has it under its
working folder, and who runs a server may name another one in ``PILLSNAP_TRUST_ROOT``. Everything is read anew at each
question: a key that is revoked is revoked at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pillsnap.core.errors import ConfigError
from pillsnap.gate.keys import KeyRing
from pillsnap.gate.policy import DEFAULT_PATH, Policy

VARIABLE = "PILLSNAP_TRUST_ROOT"
_OF_THE_PROJECT = Path(__file__).parents[2] / DEFAULT_PATH.parent


@dataclass(frozen=True)
class TrustRoot:
    """The folder."""

    folder: Path

    @classmethod
    def find(cls) -> TrustRoot:
        """The folder that holds here. Raises ConfigError: the one that ``PILLSNAP_TRUST_ROOT`` names is not there."""
        named = os.environ.get(VARIABLE)
        if named:
            if not Path(named).is_dir():
                raise ConfigError(f"{VARIABLE}={named}: no such folder; it holds {DEFAULT_PATH.name} and keys/")
            return cls(Path(named).absolute())
        here = Path.cwd() / DEFAULT_PATH.parent
        return cls(_OF_THE_PROJECT if (_OF_THE_PROJECT / DEFAULT_PATH.name).is_file() else here)

    @property
    def keys_folder(self) -> Path:
        """One JSON file a public key."""
        return self.folder / "keys"

    @property
    def roles_file(self) -> Path:
        """Who may do what on a server."""
        return self.folder / "roles.yaml"

    def policy(self) -> Policy:
        """The policy that promotions are judged by. Raises ConfigError."""
        return Policy.load(self.folder / DEFAULT_PATH.name)

    def ring(self) -> KeyRing:
        """The public keys that are trusted. Raises ConfigError, EvidenceError."""
        return KeyRing.load(self.keys_folder)
