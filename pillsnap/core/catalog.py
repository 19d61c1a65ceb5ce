"""The drug catalog: which drugs there are, and which index each one has.

Reads the "top 100" list; knows nothing of pictures. ``class_mapping.json`` (class_to_idx, idx_to_class,
num_classes, metadata per drug, version) is its published form.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pillsnap.core.errors import CatalogError
from pillsnap.core.files import read_json, write_json

CLASS_MAPPING_VERSION = "1.0"
_KCODE = re.compile(r"^(?:K-?)?(\d{1,6})$", re.IGNORECASE)


def normalize_kcode(text: str) -> str:
    """Bring a K-CODE to the form ``K-030864``.

    >>> normalize_kcode(" k30864 ")
    'K-030864'

    Raises:
        CatalogError: no digits, more than six, or anything else around them.
    """
    match = _KCODE.match(str(text).strip())
    if match is None:
        raise CatalogError(f"K-CODE {text!r} is not of the form K-030864 (K, a dash and up to six digits)")
    return f"K-{int(match[1]):06d}"


class TrainingWeight(BaseModel):
    """``training_config`` of a drug in the list. Other fields are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of the class in the training loss; 1 is neutral."""


class Drug(BaseModel):
    """One drug of the list. Fields that are not named here are kept byte for byte."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kcode: str
    drug_name: str = Field(min_length=1)
    manufacturer: str = ""
    form: str = ""
    training_config: TrainingWeight = TrainingWeight()

    @field_validator("kcode", mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> str:
        return normalize_kcode(str(value))


class Catalog(BaseModel):
    """The drugs in the order of their indices 0..K-1 (the order of the list)."""

    model_config = ConfigDict(frozen=True)

    version: str
    created_date: str = ""
    drugs: tuple[Drug, ...]

    @property
    def kcodes(self) -> tuple[str, ...]:
        """K-CODE per index."""
        return tuple(drug.kcode for drug in self.drugs)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Index per K-CODE."""
        return {kcode: index for index, kcode in enumerate(self.kcodes)}

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Weight of each class in the training loss, by index."""
        return tuple(drug.training_config.weight for drug in self.drugs)

    @classmethod
    def from_drug_list(cls, path: Path) -> Self:
        """Read the "top 100" JSON list.

        Raises:
            CatalogError: not the format, a K-CODE that is none, or twice the same drug.
        """
        document = read_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("drugs"), list):
            raise CatalogError(f'{path}: expected an object with a list under "drugs"')
        drugs = []
        for position, entry in enumerate(document["drugs"], start=1):
            try:
                drugs.append(Drug.model_validate(entry))
            except CatalogError as error:
                raise CatalogError(f"{path}: drug {position}: {error}") from error
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in first["loc"])
                raise CatalogError(f"{path}: drug {position}: {key}: {first['msg']}") from error
        return cls._checked(path, document, drugs)

    @classmethod
    def from_class_mapping(cls, path: Path) -> Self:
        """Read a ``class_mapping.json`` that `write_class_mapping` wrote. Raises CatalogError."""
        document = read_json(path)
        try:
            drugs = [Drug.model_validate(document["metadata"][kcode]) for kcode in document["class_to_idx"]]
            indices = list(document["class_to_idx"].values())
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CatalogError(f"{path}: is not a class_mapping.json ({error})") from error
        if indices != list(range(len(drugs))):
            raise CatalogError(f"{path}: the indices of class_to_idx must run from 0 to {len(drugs) - 1} in order")
        return cls._checked(path, document, drugs)

    @classmethod
    def _checked(cls, path: Path, document: dict[str, Any], drugs: list[Drug]) -> Self:
        if len(drugs) < 2:
            raise CatalogError(f"{path}: at least 2 drugs are needed, {len(drugs)} found")
        seen: dict[str, int] = {}
        for position, drug in enumerate(drugs, start=1):
            if drug.kcode in seen:
                raise CatalogError(f"{path}: {drug.kcode} is listed twice (drugs {seen[drug.kcode]} and {position})")
            seen[drug.kcode] = position
        return cls(
            version=str(document.get("version", "1.0")),
            created_date=str(document.get("created_date", "")),
            drugs=tuple(drugs),
        )

    def class_mapping(self) -> dict[str, Any]:
        """The published form: class_to_idx, idx_to_class, num_classes, metadata per drug, version."""
        return {
            "mapping_version": CLASS_MAPPING_VERSION,
            "version": self.version,
            "created_date": self.created_date,
            "num_classes": len(self.drugs),
            "class_to_idx": self.class_to_idx,
            "idx_to_class": {str(index): kcode for index, kcode in enumerate(self.kcodes)},
            "metadata": {drug.kcode: drug.model_dump(mode="json") for drug in self.drugs},
        }

    def write_class_mapping(self, path: Path) -> None:
        """Write ``class_mapping.json`` as a whole or not at all."""
        write_json(path, self.class_mapping())
