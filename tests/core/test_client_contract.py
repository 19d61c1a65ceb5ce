from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import STEPS, ClientContract, ConfigDifference, check_client_config
from pillsnap.core.preprocessing_spec import PreprocessingSpec

OURS = ClientContract().get_config()


def test_the_published_values_are_those_of_the_specification():
    assert {key: OURS[key] for key in ("target_size", "jpeg_quality", "interpolation", "crop")} == {
        "target_size": 512,
        "jpeg_quality": 85,
        "interpolation": "linear",
        "crop": "center",
    }
    assert OURS["version"] == "1.0"


def test_the_file_is_the_contract():
    """Where this fails: write `ClientContract().document()` to the file, raise the version, draw the vectors anew."""
    assert json.loads((FOLDER / "contract.json").read_text(encoding="utf-8")) == ClientContract().document()
    assert len({step for step, _ in STEPS}) == len(STEPS)


def test_a_client_and_the_server_share_size_and_interpolation():
    spec = PreprocessingSpec()
    assert (OURS["target_size"], OURS["interpolation"]) == (spec.target_size, spec.interpolation)


def test_an_agreeing_client_has_no_differences_also_after_a_trip_as_json():
    assert check_client_config(json.loads(json.dumps(OURS))) == []
    other = ClientContract(target_size=384)
    assert check_client_config(other.get_config(), other) == []


@pytest.mark.parametrize("key", OURS)
def test_each_value_counts(key):
    without = {k: v for k, v in OURS.items() if k != key}
    assert check_client_config(without) == [ConfigDifference(key, "missing", OURS[key], None)]
    assert check_client_config({**OURS, key: "else"}) == [ConfigDifference(key, "differs", OURS[key], "else")]


@pytest.mark.parametrize(
    "changes",
    [{"target_size": 511}, {"jpeg_quality": 84}],
)
def test_the_fingerprint_follows_the_values(changes):
    assert ClientContract(**changes).fingerprint != ClientContract().fingerprint


def test_every_difference_is_named_at_once():
    published = {**OURS, "jpeg_quality": 70, "crop": "none", "sharpen": 1.5}
    del published["orientation"]
    lines = [str(difference) for difference in check_client_config(published)]
    assert lines == [
        "jpeg_quality: the client has 70, the contract says 85",
        "crop: the client has 'none', the contract says 'center'",
        "orientation: not published, the contract says 'exif_applied_and_dropped'",
        "'sharpen': 1.5 is not part of contract 1.0",
    ]


@pytest.mark.parametrize("value", ["512", 512.0, [512], None, float("nan")])
def test_another_type_is_a_difference(value):
    assert [difference.key for difference in check_client_config({**OURS, "target_size": value})] == ["target_size"]


def test_one_is_not_true():
    assert [difference.key for difference in check_client_config({**OURS, "upscale": 1})] == ["upscale"]


scalars = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=60)


@given(st.dictionaries(st.text(max_size=60), scalars | st.lists(scalars, max_size=9), max_size=3))
def test_nothing_that_is_published_raises_or_fills_the_log(published):
    for difference in check_client_config({**published, "long": "x" * 10_000}):
        assert len(str(difference)) < 260
        assert "\n" not in str(difference)


@pytest.mark.parametrize("changes", [{"target_size": 8}, {"jpeg_quality": 0}, {"crop": "top"}, {"sharpen": 1}])
def test_senseless_contracts_are_refused(changes):
    with pytest.raises(ValidationError):
        ClientContract.model_validate(changes)
