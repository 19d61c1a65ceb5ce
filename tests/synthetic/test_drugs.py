"""The invented drugs: their papers, their looks, and that no two can be mistaken on paper."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest

from pillsnap.core.errors import ConfigError
from pillsnap.synthetic.drugs import PillDesign, design_drugs, drug_list_document
from pillsnap.synthetic.imprints import canonical
from pillsnap.synthetic.strokes import drawable


def _groups(designs: tuple[PillDesign, ...]) -> dict[str, list[PillDesign]]:
    groups: dict[str, list[PillDesign]] = defaultdict(list)
    for design in designs:
        if design.look_alike_group is not None:
            groups[design.look_alike_group].append(design)
    return groups


def test_same_seed_same_drugs_and_another_seed_other_drugs() -> None:
    assert design_drugs(30, 3) == design_drugs(30, 3)
    assert design_drugs(30, 3) != design_drugs(30, 4)


@pytest.mark.parametrize("count", [2, 5, 12, 17, 100])
def test_smaller_count_is_a_prefix_with_a_look_alike_pair(count: int) -> None:
    designs, many = design_drugs(count), design_drugs(200)
    assert [d.kcode for d in designs] == [d.kcode for d in many[:count]]
    assert [d.front for d in designs] == [d.front for d in many[:count]]
    groups = _groups(designs)
    assert groups
    assert all(len(members) >= 2 for members in groups.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_hundred_drugs_thirty_two_differ_from_three_others_by_the_imprint_only(seed: int) -> None:
    groups = _groups(design_drugs(100, seed))
    assert [len(members) for members in groups.values()] == [4] * 8
    for members in groups.values():
        looks = {(d.shape, d.colors, d.long_mm, d.short_mm, d.glossy, d.speckled, d.front.ink) for d in members}
        assert len(looks) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_imprint_is_used_twice_even_turned_or_blurred(seed: int) -> None:
    designs = design_drugs(200, seed)
    texts = [canonical(mark.text) for d in designs for mark in (d.front, d.back)]
    assert len(set(texts)) == len(texts) == 400
    appearances = [(d.shape, d.colors, d.mark(side).text) for d in designs for side in (0, 1)]
    assert len(set(appearances)) == len(appearances)


def test_every_imprint_can_be_drawn_and_is_short() -> None:
    for design in design_drugs(200):
        for mark in (design.front, design.back):
            assert drawable(mark.text)
            assert len(mark.text) <= 4


def test_papers_are_unique_and_plainly_invented() -> None:
    designs = design_drugs(200)
    for field in ("kcode", "edi_code", "drug_name"):
        assert len({getattr(d, field) for d in designs}) == 200
    assert all(re.fullmatch(r"K-99\d{4}", d.kcode) for d in designs)
    assert all(re.fullmatch(r"\d{9}", d.edi_code) for d in designs)


def test_sizes_are_those_of_pills() -> None:
    for design in design_drugs(200):
        assert 6 <= design.long_mm <= 20
        assert 2 <= design.thick_mm <= design.short_mm <= design.long_mm


def test_drug_list_has_every_field_of_the_published_format() -> None:
    document = drug_list_document(design_drugs(6))
    assert document["total_drugs"] == len(document["drugs"]) == 6
    assert document["created_date"] == "2026-11-01"
    assert {"version", "statistics"} <= document.keys()
    wanted = {
        "rank", "kcode", "edi_code", "drug_name", "manufacturer", "form", "shape", "color", "size_mm", "markings",
        "usage_stats", "collection_requirements", "training_config", "look_alike_group",
    }  # fmt: skip
    for rank, drug in enumerate(document["drugs"], start=1):
        assert drug.keys() == wanted
        assert drug["rank"] == rank
        assert drug["markings"].keys() == {"front", "back"}
        assert drug["training_config"].keys() == {"weight", "augmentation_level", "target_accuracy"}
        assert isinstance(drug["color"], list)
    assert json.loads(json.dumps(document, ensure_ascii=False)) == document


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (201, 0), (10, -1)])
def test_out_of_range_is_refused(count: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        design_drugs(count, seed)
