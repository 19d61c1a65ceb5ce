"""Everything that PillSnap refuses, as one tree.

    PillSnapError              exit status 1: refused or failed, with a reason
    ├── ConfigError            exit status 2: wrong use (an option, a YAML key, a type)
    ├── DataError              the input data cannot be used as it is
    │   ├── CatalogError       the drug list
    │   ├── ImageError         one picture: missing, truncated, not an image
    │   └── ManifestError      a manifest that is missing, damaged or of another version
    ├── TamperedError          bytes are not those that were recorded (sha256 differs)
    ├── BundleError            an ONNX file that is not a PillSnap bundle, or one that this version cannot read
    │   └── EngineError        its engine is not installed here, or not for this processor
    ├── EvidenceError          evidence that cannot be read or does not belong to the bundle
    ├── TrainingError          training cannot start or go on (NaN, no weights)
    ├── StoreError             MLflow's tracking store or registry cannot be reached or said no
    └── GateRefusedError       the gate has spoken: no promotion

Each message names the file, the key or the value, and says what to do next.
"""

from __future__ import annotations


class PillSnapError(Exception):
    """Base of all errors that a user can act on. ``exit_status`` is what the command line ends with."""

    exit_status = 1


class ConfigError(PillSnapError):
    """Misconfigured: an unknown key, a wrong type, an option that makes no sense."""

    exit_status = 2


class DataError(PillSnapError):
    """The input data cannot be used as it is."""


class CatalogError(DataError):
    """The drug list is wrong: a K-CODE without digits, twice the same drug, a missing field."""


class ImageError(DataError):
    """One picture cannot be used: missing, truncated, or not an image at all.

    ``code`` is for programs (``truncated``, ``too_many_pixels``, …); the message is for people.
    """

    def __init__(self, message: str, code: str = "undecodable") -> None:
        super().__init__(message)
        self.code = code


class ManifestError(DataError):
    """A manifest is missing, damaged, or of another version."""


class TamperedError(PillSnapError):
    """A file's bytes are not those that were recorded."""


class BundleError(PillSnapError):
    """An ONNX file is not a PillSnap bundle, or not one that this version can read."""


class EngineError(BundleError):
    """What a bundle needs is not on this machine. It says nothing against the bundle."""


class EvidenceError(PillSnapError):
    """Evidence cannot be read, or belongs to something else."""


class TrainingError(PillSnapError):
    """Training cannot start or go on."""


class StoreError(PillSnapError):
    """MLflow's tracking store or registry cannot be reached, or said no."""


class GateRefusedError(PillSnapError):
    """The gate refused; the message lists the reasons with their numbers."""
