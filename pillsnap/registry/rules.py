"""What the registry guards: names of tags and aliases, and every public method of MLflow's store. Pure.

A look-alike of a guarded name is refused, not taken for another name: a person who reads ``Champion`` in a list means
the champion.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from enum import StrEnum

from pillsnap.core.errors import GateRefusedError
from pillsnap.gate.admission import CANDIDATE, NEEDED
from pillsnap.gate.envelope import ENVELOPE_TAG, RecordHead

TAG_PREFIX = "gate."
DECISION_TAG = "gate.decision"
"""Of a version: the verdict. A version's page shows tags in the order of their names, the list of versions in that in
which they were written: this one is the first in both, and the envelope, which fills the page, the last."""
FIGURES_TAG = "gate.details"
"""What was measured, in a line."""
HASHES_TAG = "gate.digests"
"""Of bundle, manifest and policy, and the id of the decision."""
HISTORY_TAG = "gate.done_by"
"""Who did what with the version, and when (`pillsnap.registry.version_page`)."""
REASONS_TAG = "gate.defects"
"""Why it is not PROMOTE; a version that is has none."""
FORMER_CHAMPIONS_TAG = "gate.former_champions"
"""Of the registered model: JSON list of versions that were champion, the newest first."""
SERVICE_SEEN_TAG = "gate.service_seen"
"""Of a registered model: when the gate service looked last, by the registry's clock. One model's stands for all."""
RECORD_TAG = "gate.record"
"""Of every registered model, when it is asked for: where the record ends now. Nobody writes it; the gate signs it."""
_NO = {"", "no", "false", "0"}
"""A tag ``candidate`` with such a value asks for nothing."""
STAGES = {"Production": "champion", "Staging": "challenger"}
"""A stage of MLflow 2 → the alias whose rules it follows."""
_LOOKALIKES = str.maketrans(
    {
        **dict(
            zip(
                "асһеіӏпроԁгтмɡӕ",
                ["a", "c", "h", "e", "i", "l", "n", "p", "o", "d", "r", "t", "m", "g", "ae"],
                strict=True,
            )
        ),
        **dict(zip("αοριηετν", "aopinetv", strict=True)),
        **dict(zip("ɑıǀոցօ01|·。", "ailngooll..", strict=True)),
    }
)
"""Letters, digits and dots that are drawn like the letters of the guarded words."""


class Kind(StrEnum):
    """How a method of the store stands to the gate."""

    READ = "read"
    PLAIN = "plain"
    """Writes what the gate does not care for."""
    GUARDED = "guarded"
    """Asks the gate, refuses, or tells the gate what it signs."""
    BUILT = "built"
    """MLflow makes it of guarded and plain methods of the same store."""


METHODS: dict[str, Kind] = {
    "copy_model_version": Kind.GUARDED,
    "create_model_version": Kind.GUARDED,
    "create_prompt": Kind.BUILT,
    "create_prompt_version": Kind.BUILT,
    "create_registered_model": Kind.GUARDED,
    "create_webhook": Kind.PLAIN,
    "delete_model_version": Kind.GUARDED,
    "delete_model_version_tag": Kind.GUARDED,
    "delete_prompt": Kind.BUILT,
    "delete_prompt_alias": Kind.BUILT,
    "delete_prompt_tag": Kind.BUILT,
    "delete_prompt_version": Kind.BUILT,
    "delete_prompt_version_tag": Kind.BUILT,
    "delete_registered_model": Kind.GUARDED,
    "delete_registered_model_alias": Kind.GUARDED,
    "delete_registered_model_tag": Kind.GUARDED,
    "delete_webhook": Kind.PLAIN,
    "get_latest_versions": Kind.READ,
    "get_model_version": Kind.READ,
    "get_model_version_by_alias": Kind.READ,
    "get_model_version_download_uri": Kind.READ,
    "get_prompt": Kind.READ,
    "get_prompt_version": Kind.READ,
    "get_prompt_version_by_alias": Kind.READ,
    "get_registered_model": Kind.GUARDED,
    "get_webhook": Kind.READ,
    "link_prompt_version_to_model": Kind.PLAIN,
    "link_prompt_version_to_run": Kind.PLAIN,
    "link_prompts_to_trace": Kind.PLAIN,
    "list_webhooks": Kind.READ,
    "list_webhooks_by_event": Kind.READ,
    "rename_registered_model": Kind.GUARDED,
    "search_model_versions": Kind.READ,
    "search_prompt_versions": Kind.READ,
    "search_prompts": Kind.READ,
    "search_registered_models": Kind.READ,
    "set_model_version_tag": Kind.GUARDED,
    "set_prompt_alias": Kind.BUILT,
    "set_prompt_tag": Kind.BUILT,
    "set_prompt_version_tag": Kind.BUILT,
    "set_registered_model_alias": Kind.GUARDED,
    "set_registered_model_tag": Kind.GUARDED,
    "test_webhook": Kind.PLAIN,
    "transition_model_version_stage": Kind.GUARDED,
    "update_model_version": Kind.PLAIN,
    "update_registered_model": Kind.PLAIN,
    "update_webhook": Kind.PLAIN,
}
"""Every public method of MLflow's store. A test fails where an MLflow has another one."""


def asks_for_judgement(name: str, value: str = "yes") -> bool:
    """Whether an alias, or a tag with its value, is the mark ``candidate``."""
    return name.casefold() == CANDIDATE and value.casefold() not in _NO


def former_champions_in(tags: Mapping[str, str]) -> list[str]:
    """Versions that were champion, the newest first, by a registered model's tags. Raises ValueError: a broken tag."""
    return [str(version) for version in json.loads(tags.get(FORMER_CHAMPIONS_TAG, "[]"))]


def record_head_in(tags: Mapping[str, str]) -> RecordHead | None:
    """Where the record ends, by a registered model's tags; None: they do not say it."""
    number, _, digest = tags.get(RECORD_TAG, "").partition(" ")
    return RecordHead(number=int(number), hash=digest) if number.isdecimal() and digest else None


def skeleton(name: str) -> str:
    """A name without what the eye does not tell apart: width, case, marks, blanks, foreign look-alikes."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    kept = (
        letter for letter in folded if unicodedata.category(letter) not in {"Cf", "Cc", "Mn", "Me", "Zs", "Zl", "Zp"}
    )
    return "".join(kept).translate(_LOOKALIKES)


def guarded_alias(alias: str) -> str | None:
    """The guarded alias that this is; None: MLflow's business. Raises GateRefusedError: it only looks like one."""
    if alias in NEEDED:
        return alias
    looks = skeleton(alias)
    for name in NEEDED:
        if looks == name:
            raise GateRefusedError(f"alias {alias!r} looks like {name!r} and is not: write {name!r}")
    return None


def is_gates_tag(key: str) -> bool:
    """Whether a tag's key is one of the gate's, or looks like one."""
    return skeleton(key).startswith(TAG_PREFIX)


def check_free_tag(key: str) -> None:
    """Refuse a key that only the gate writes. Raises GateRefusedError."""
    if is_gates_tag(key):
        raise GateRefusedError(
            f"tag {key[:80]!r}: the tags {TAG_PREFIX}* are written by the gate alone, from what it has signed "
            f"({ENVELOPE_TAG}); mark the version as candidate to have it judged"
        )
