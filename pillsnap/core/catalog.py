"""The drug catalog: which drugs there are, and which index each one has.

Reads the "top 100" list (or a list of any other length); knows nothing of pictures. ``class_mapping.json``
(class_to_idx, idx_to_class, num_classes, metadata per drug, version) is its published form. An index belongs to one
K-CODE for ever: a drug that leaves the list is retired in its place, a new one gets the next free index.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator

from pillsnap.core.errors import CatalogError
from pillsnap.core.files import canonical_json, read_json, write_json
from pillsnap.core.text import Line

CLASS_MAPPING_VERSION = "1.0"
CLASS_MAPPING_FILE = "class_mapping.json"
DRUG_LIST_FILE = "drugs.json"
_KCODE = re.compile(r"(?:K *-? *)?([0-9]{1,6})", re.IGNORECASE | re.ASCII)
_EDI_CODE = re.compile(r"[0-9]{8,9}")
_PLAIN = str.maketrans("０１２３４５６７８９Ｋｋ－‐‑‒–—―−，、\u3000\u00a0", "0123456789Kk--------,,  ")
"""How digits, dashes, commas and blanks are typed on a Korean keyboard or pasted from a table."""


def normalize_kcode(text: str) -> str:
    """Bring a K-CODE to the form ``K-030864``.

    Full-width characters, other dashes, blanks around the dash, a lower-case k, a missing dash, a missing K and
    missing zeros are put right; blanks between digits are not.

    >>> normalize_kcode(" k30864 ")
    'K-030864'

    Raises:
        CatalogError: no digits, more than six, or anything else around them.
    """
    match = _KCODE.fullmatch(str(text).translate(_PLAIN).strip())
    if match is None:
        raise CatalogError(
            f"K-CODE {text!r} is not of the form K-030864 (K, a dash and up to six digits){_foreign_letter(text)}"
        )
    return f"K-{int(match[1]):06d}"


def _foreign_letter(text: str) -> str:
    """Of a letter that only looks like a K, or a digit that is none: what it is. Not of Korean."""
    for character in str(text):
        name = unicodedata.name(character, "no known letter")
        if not character.isascii() and character.isalnum() and not name.startswith("HANGUL"):
            return f"; {character} is {name} (U+{ord(character):04X})"
    return ""


def edi_codes(text: str | int | None) -> tuple[str, ...]:
    """The insurance codes of one field, which may hold several: ``"645100070, 645100071"``.

    Args:
        text: codes of 8 or 9 digits, separated by commas; empty or None where a drug has none.

    Raises:
        CatalogError: a part that is not a code.
    """
    parts = [part.strip() for part in str("" if text is None else text).translate(_PLAIN).split(",")]
    codes = [part for part in parts if part]
    for code in codes:
        if not _EDI_CODE.fullmatch(code):
            raise CatalogError(f"EDI code {code!r} (of {text!r}) is not 8 or 9 digits; separate several by commas")
    return tuple(dict.fromkeys(codes))


class TrainingWeight(BaseModel):
    """``training_config`` of a drug in the list. Other fields are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    weight: float = Field(default=1.0, gt=0, le=100)
    """Weight of the class in the training loss; 1 is neutral."""


class Drug(BaseModel):
    """One drug of the list. Fields that are not named here are kept byte for byte, and shown nowhere."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kcode: str
    drug_name: Annotated[Line, Field(min_length=1)]
    manufacturer: Line = ""
    form: Line = ""
    training_config: TrainingWeight = TrainingWeight()
    retired: StrictBool = Field(default=False, exclude_if=lambda value: not value)
    """No longer on the list; it keeps its index, has no pictures and is never answered."""

    @field_validator("kcode", mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> str:
        return normalize_kcode(str(value))


class Catalog(BaseModel):
    """The drugs in the order of their indices 0..K-1, the retired ones in their places."""

    model_config = ConfigDict(frozen=True)

    version: str
    created_date: str = ""
    drugs: tuple[Drug, ...]

    @property
    def kcodes(self) -> tuple[str, ...]:
        """K-CODE per index, retired ones too."""
        return tuple(drug.kcode for drug in self.drugs)

    @property
    def active(self) -> tuple[Drug, ...]:
        """The drugs in use, in the order of their indices: those that need pictures."""
        return tuple(drug for drug in self.drugs if not drug.retired)

    @property
    def retired_indices(self) -> tuple[int, ...]:
        """Indices that are never answered."""
        return tuple(index for index, drug in enumerate(self.drugs) if drug.retired)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Index per K-CODE."""
        return {kcode: index for index, kcode in enumerate(self.kcodes)}

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Weight of each class in the training loss, by index; 0 for a retired one."""
        return tuple(0.0 if drug.retired else drug.training_config.weight for drug in self.drugs)

    def updated(self, new_list: Catalog) -> Catalog:
        """This mapping, brought up to a new drug list. No index changes its K-CODE, none is used again.

        A known drug keeps its index and takes its new metadata (a retired one is in use again); a drug that is not
        in the list is retired and keeps its old metadata; new drugs get the next free indices in the list's order.
        """
        fresh = {drug.kcode: drug for drug in new_list.active}
        known = [fresh.pop(drug.kcode, drug.model_copy(update={"retired": True})) for drug in self.drugs]
        drugs = (*known, *fresh.values())
        return Catalog(version=new_list.version, created_date=new_list.created_date, drugs=drugs)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a drug list, a ``class_mapping.json``, or the one in a folder (the mapping, if it holds both).

        Raises:
            CatalogError: neither, or a faulty one.
            DataError: no such file, or not JSON.
        """
        path = find_catalog_file(Path(path))
        return cls.from_class_mapping(path) if is_class_mapping(path) else cls.from_drug_list(path)

    @classmethod
    def from_drug_list(cls, path: Path) -> Self:
        """Read the "top 100" JSON list.

        Raises:
            CatalogError: not the format, a K-CODE that is none, twice the same drug, or another number of drugs
                than ``total_drugs`` says.
        """
        document = _read(path)
        if not isinstance(document, dict) or not isinstance(document.get("drugs"), list):
            raise CatalogError(f'{path}: expected an object with a list under "drugs"')
        entries = document["drugs"]
        drugs = [_drug(entry, f"{path}: drug {position}") for position, entry in enumerate(entries, start=1)]
        total = document.get("total_drugs", len(drugs))
        if type(total) is not int or total != len(drugs):
            raise CatalogError(
                f"{path}: total_drugs is {total!r}, but the list holds {len(drugs)} drugs; complete the list, or "
                f"write total_drugs as the number {len(drugs)}"
            )
        retired = [drug.kcode for drug in drugs if drug.retired]
        if retired:
            raise CatalogError(f"{path}: {retired[0]}: retired: a list holds drugs in use; take this one off the list")
        return cls._checked(path, document, drugs)

    @classmethod
    def from_class_mapping(cls, path: Path) -> Self:
        """Read a ``class_mapping.json`` that `write_class_mapping` wrote. Raises CatalogError."""
        document = _read(path)
        try:
            kcodes = _kcodes_by_index(document["class_to_idx"], document["idx_to_class"])
            metadata = dict(document["metadata"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CatalogError(f"{path}: is not a class_mapping.json ({type(error).__name__}: {error})") from error
        if metadata.keys() != set(kcodes):
            odd = ", ".join(sorted(map(str, metadata.keys() ^ set(kcodes)))[:5])
            raise CatalogError(f"{path}: class_to_idx and metadata do not hold the same K-CODEs (only in one: {odd})")
        drugs = [_drug(metadata[kcode], f"{path}: metadata.{kcode}") for kcode in kcodes]
        for kcode, drug in zip(kcodes, drugs, strict=True):
            if kcode != drug.kcode:
                raise CatalogError(f"{path}: metadata.{kcode}: kcode is {drug.kcode}; the two must be the same")
        if document.get("num_classes", len(drugs)) != len(drugs):
            raise CatalogError(
                f"{path}: num_classes is {document['num_classes']!r}, but class_to_idx has {len(drugs)} indices"
            )
        return cls._checked(path, document, drugs)

    @classmethod
    def _checked(cls, path: Path, document: dict[str, Any], drugs: list[Drug]) -> Self:
        in_use = sum(not drug.retired for drug in drugs)
        if in_use < 2:
            raise CatalogError(f"{path}: at least 2 drugs are needed, {in_use} found")
        seen: dict[str, int] = {}
        for position, drug in enumerate(drugs, start=1):
            if drug.kcode in seen:
                raise CatalogError(f"{path}: {drug.kcode} is listed twice (drugs {seen[drug.kcode]} and {position})")
            seen[drug.kcode] = position
        return cls(
            version=str(document.get("version", "1.0")),
            created_date=str(document.get("created_date") or ""),
            drugs=tuple(drugs),
        )

    def class_mapping(self) -> dict[str, Any]:
        """The published form: class_to_idx, idx_to_class, num_classes, metadata per drug, version.

        ``num_classes`` counts indices. Where drugs are retired there are also ``num_active`` and ``retired``
        (K-CODEs); where none is, the form is what it was before drugs could be retired.
        """
        retired = [drug.kcode for drug in self.drugs if drug.retired]
        return {
            "mapping_version": CLASS_MAPPING_VERSION,
            "version": self.version,
            "created_date": self.created_date,
            "num_classes": len(self.drugs),
            **({"num_active": len(self.active), "retired": retired} if retired else {}),
            "class_to_idx": self.class_to_idx,
            "idx_to_class": {str(index): kcode for index, kcode in enumerate(self.kcodes)},
            "metadata": {drug.kcode: drug.model_dump(mode="json") for drug in self.drugs},
        }

    def write_class_mapping(self, path: Path) -> None:
        """Write ``class_mapping.json`` as a whole or not at all."""
        write_json(path, self.class_mapping())


def find_catalog_file(path: Path) -> Path:
    """The catalog's file in a folder (the mapping, if it holds a list too), or the file itself. Raises CatalogError."""
    if not path.is_dir():
        return path
    for name in (CLASS_MAPPING_FILE, DRUG_LIST_FILE):
        if (path / name).is_file():
            return path / name
    raise CatalogError(f"{path}: holds neither {CLASS_MAPPING_FILE} nor {DRUG_LIST_FILE}; name the file")


def is_class_mapping(path: Path) -> bool:
    """Whether a JSON file holds a class mapping and not a drug list. Raises DataError where it is neither."""
    document = read_json(path)
    keys = document.keys() if isinstance(document, dict) else set()
    if "class_to_idx" not in keys and "drugs" not in keys:
        raise CatalogError(f'{path}: neither a drug list (a list under "drugs") nor a class mapping ("class_to_idx")')
    return "class_to_idx" in keys


def _read(path: Path) -> Any:
    """A JSON document that can be written again as it is: no key twice, no NaN, no half characters."""
    document = read_json(path, unique_keys=True)
    try:
        canonical_json(document).encode("utf-8")
    except ValueError as error:
        raise CatalogError(f"{path}: holds a value that JSON in UTF-8 cannot hold ({error})") from error
    return document


def _drug(entry: Any, where: str) -> Drug:
    try:
        return Drug.model_validate(entry)
    except CatalogError as error:
        raise CatalogError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CatalogError(f"{where}: {key}: {first['msg']}") from error


def _kcodes_by_index(class_to_idx: dict[str, Any], idx_to_class: dict[str, Any]) -> list[str]:
    """The K-CODEs in the order of their indices. Raises ValueError where the two tables do not agree."""
    kcodes = sorted(class_to_idx, key=lambda kcode: int(class_to_idx[kcode]))
    whole = all(type(index) is int for index in class_to_idx.values())  # True and 1.0 are equal to 1
    if not whole or [class_to_idx[kcode] for kcode in kcodes] != list(range(len(kcodes))):
        raise ValueError(f"the indices of class_to_idx must be 0 to {len(kcodes) - 1}, each one once")
    expected = {str(index): kcode for index, kcode in enumerate(kcodes)}
    for index in sorted(expected.keys() | idx_to_class.keys()):
        if expected.get(index) != idx_to_class.get(index):
            raise ValueError(
                f"index {index} is {expected.get(index)} in class_to_idx and {idx_to_class.get(index)} in idx_to_class"
            )
    return kcodes
