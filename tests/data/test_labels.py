import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.boxes import Box
from pillsnap.core.errors import DataError
from pillsnap.data.labels import disagreements, parse_label
from pillsnap.data.names import Condition

NAMED = Condition(background=0, light=1, side=0, elevation=75, rotation=300)


def label(boxes=([1, 2, 3, 4],), **image):
    image = {"drug_N": "K-000573", "camera_la": 75, "camera_lo": 300, "di_edi_code": "645100070"} | image
    return parse_label(json.dumps({"images": [image], "annotations": [{"bbox": box} for box in boxes]}))


def test_what_a_label_says():
    said = label()
    assert (said.kcode, said.box, said.elevation, said.rotation) == ("K-000573", Box(1, 2, 3, 4), 75, 300)
    assert disagreements(said, NAMED) == ()


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("645100070,645100071", ("645100070", "645100071")),
        ("645100070, 645100071,", ("645100070", "645100071")),
        (645100070, ("645100070",)),
        (None, ()),
        ("", ()),
        ("없음", ()),
    ],
)
def test_several_edi_codes_in_one_field(text, codes):
    assert label(di_edi_code=text).edi_codes == codes


def test_the_code_of_a_combination_is_not_that_of_its_pill():
    said = label(drug_N="K-001900-010224-016551-031705", dl_mapping_code="K-001900")
    assert said.kcode == "K-001900"
    assert label(drug_N=None).kcode is None


def test_where_it_contradicts_the_name():
    assert disagreements(label(camera_la=90), NAMED) == ("the label says elevation 90, the name 75",)
    assert disagreements(label(camera_la="90", camera_lo=0), NAMED) == (
        "the label says elevation 90, the name 75",
        "the label says rotation 0, the name 300",
    )
    assert disagreements(label(camera_la=None, camera_lo="?"), NAMED) == ()
    assert disagreements(label(camera_la=10**400, camera_lo=1e400), NAMED) == ()
    assert disagreements(label(camera_la=90), None) == ()


@pytest.mark.parametrize(
    "boxes", [(), ([1, 2, 3, 4], [5, 6, 7, 8]), (["a", 2, 3, 4],), ([1, 2, 3],), ([1, 2, 3, 1e400],)]
)
def test_no_box_or_several_is_none(boxes):
    assert label(boxes).box is None


def test_a_box_that_ends_at_the_edge_still_does_when_it_is_rounded():
    box = label([[1.5, 1.5, 973.5, 1279.5]]).box
    assert box is not None
    assert box.lies_within(975, 1281)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"images": []}',
        '{"images": [3]}',
        '{"images": [{}], "annotations": 3}',
        b"\xff",
        "[" * 9999,
    ],
)
def test_what_is_no_label_is_said(text):
    with pytest.raises(DataError, match="is not a label of the studio data set"):
        parse_label(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["bbox", "a"]), inner, max_size=2),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["drug_N", "camera_la", "camera_lo", "di_edi_code"], _JSON)), _JSON
)
def test_no_json_makes_it_fail_otherwise(image, annotations):
    text = json.dumps({"images": [image], "annotations": annotations})
    with contextlib.suppress(DataError):
        disagreements(parse_label(text), NAMED)
