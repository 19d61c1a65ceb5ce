"""Names that are guarded, and names that only look like them: the table of attacks on names. The store asks this."""

from __future__ import annotations

import pytest

from pillsnap.core.errors import GateRefusedError
from pillsnap.registry.rules import check_free_tag, former_champions_in, guarded_alias, is_gates_tag

TAGS = [
    "gate.verdict", "gate.top1", "gate.", "GATE.verdict", "gate.envelope2", " gate.verdict", "gate\u200b.verdict",
    "ｇａｔｅ.verdict", "gаte.verdict", "gate․verdict", "ɡate.verdict",
]  # fmt: skip
LOOK_ALIKES = [
    "Champion", "CHAMPION", "champıon", "ｃhampion", "сhampion", "chаmpion", "champi0n", "champіon", "𝐜hampion",
    "champion\n", "champion\u200d", "champ\u200bion", "chámpion", " champion", "champion ", "cham pion", "Challenger",
    "challénger", "chаllenger", "challеnger", "cha11enger",
]  # fmt: skip


@pytest.mark.parametrize("key", TAGS)
def test_attack_a_tag_of_the_gate(key: str) -> None:
    assert is_gates_tag(key)
    with pytest.raises(GateRefusedError, match="written by the gate alone"):
        check_free_tag(key)


@pytest.mark.parametrize("alias", LOOK_ALIKES)
def test_attack_an_alias_that_looks_like_a_guarded_one(alias: str) -> None:
    with pytest.raises(GateRefusedError, match="looks like"):
        guarded_alias(alias)


def test_other_names_are_free() -> None:
    for key in ("note", "gates", "gatekeeper.x", "mlflow.gate", "my gate.verdict"):
        check_free_tag(key)
    for alias in ("champions", "best", "candidate", "champion-2", "prod"):
        assert guarded_alias(alias) is None
    assert (guarded_alias("champion"), guarded_alias("challenger")) == ("champion", "challenger")


def test_former_champions() -> None:
    assert former_champions_in({}) == []
    assert former_champions_in({"gate.former_champions": '[3, "1"]'}) == ["3", "1"]
    with pytest.raises(ValueError):
        former_champions_in({"gate.former_champions": "["})
