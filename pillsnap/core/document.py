"""Results that are stored as JSON files: what the evaluation and the gate leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pillsnap.core.errors import DataError, EvidenceError
from pillsnap.core.files import read_json, write_json


class StoredDocument(BaseModel):
    """A frozen document that refuses unknown keys and knows how it is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: ClassVar[str]
    """What a file of it is called in a message."""
    remedy: ClassVar[str]
    """What to do where it cannot be read."""

    def save(self, path: Path) -> None:
        """Write as JSON, the whole file or nothing. NaN is refused (ValueError)."""
        document: Any = self.model_dump(mode="json")
        write_json(path, document)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read one. Raises EvidenceError."""
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise EvidenceError(f"{path}: is not {cls.what} ({key}: {first['msg']}); {cls.remedy}") from error
        except DataError as error:
            raise EvidenceError(f"{error}; {cls.remedy}") from error
