from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pillsnap.core.bundle import BundleClass, BundleMetadata, Provenance
from pillsnap.core.errors import BundleError
from pillsnap.core.preprocessing_spec import PreprocessingSpec


def metadata_of(**changes: Any) -> BundleMetadata:
    spec = PreprocessingSpec(target_size=64)
    values: dict[str, Any] = {
        "classes": (BundleClass(kcode="K-000001", drug_name="가상정", manufacturer="가상제약"),),
        "preprocessing": spec,
        "preprocessing_fingerprint": spec.fingerprint,
        "temperature": 1.25,
        "provenance": Provenance(
            manifest_hash="m", backbone="toy", git_commit="g", run_id="", pillsnap_version="0.1.0"
        ),
    }
    return BundleMetadata(**{**values, **changes})


def test_props_and_back() -> None:
    metadata = metadata_of()
    props = metadata.to_props()
    assert all(isinstance(value, str) for value in props.values())
    assert BundleMetadata.from_props(props, "model.onnx") == metadata
    assert "가상정" in props["pillsnap"]
    assert (props["pillsnap.classes"], props["pillsnap.input_size"], props["pillsnap.backbone"]) == ("1", "64", "toy")


def test_retired_classes_are_said_and_the_others_are_written_as_before() -> None:
    entry = {"kcode": "K-000001", "drug_name": "가상정", "manufacturer": "가상제약"}
    metadata = metadata_of(classes=(BundleClass(**entry), BundleClass(**{**entry, "kcode": "K-000002"}, retired=True)))
    assert BundleMetadata.from_props(metadata.to_props(), "m") == metadata
    assert metadata.retired_indices == (1,)
    first, second = json.loads(metadata.to_props()["pillsnap"])["classes"]
    assert first == entry
    assert second["retired"] is True


def test_another_engine_is_said_and_the_usual_one_is_written_as_before() -> None:
    usual = metadata_of()
    assert usual.engine == "onnxruntime"
    assert "engine" not in json.loads(usual.to_props()["pillsnap"])
    assert "pillsnap.engine" not in usual.to_props()
    other = metadata_of(engine="openvino-bf16")
    assert other.to_props()["pillsnap.engine"] == "openvino-bf16"
    assert BundleMetadata.from_props(other.to_props(), "m") == other
    with pytest.raises(ValidationError, match="openvino"):
        metadata_of(engine="tensorrt")


def test_other_keys_of_the_file_do_not_matter() -> None:
    assert BundleMetadata.from_props({**metadata_of().to_props(), "producer": "x"}, "m") == metadata_of()


def test_an_onnx_file_without_metadata_is_no_bundle() -> None:
    with pytest.raises(BundleError, match=r"model\.onnx: .*pillsnap export"):
        BundleMetadata.from_props({"producer": "x"}, "model.onnx")


def test_another_bundle_version_is_refused() -> None:
    with pytest.raises(BundleError, match="bundle version 9"):
        BundleMetadata.from_props({**metadata_of().to_props(), "pillsnap.bundle_version": "9"}, "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_damaged_metadata_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="metadata cannot be read"):
        BundleMetadata.from_props({**metadata_of().to_props(), "pillsnap": text}, "m")


def test_metadata_without_its_main_key_is_refused() -> None:
    props = metadata_of().to_props()
    del props["pillsnap"]
    with pytest.raises(BundleError, match="metadata cannot be read"):
        BundleMetadata.from_props(props, "m")


def test_an_unknown_field_is_refused() -> None:
    props = metadata_of().to_props()
    props["pillsnap"] = json.dumps({**json.loads(props["pillsnap"]), "surprise": 1})
    with pytest.raises(BundleError, match="surprise"):
        BundleMetadata.from_props(props, "m")


def test_another_preprocessing_is_refused() -> None:
    props = metadata_of(preprocessing_fingerprint="0" * 16).to_props()
    with pytest.raises(BundleError, match="made for preprocessing 0000000000000000"):
        BundleMetadata.from_props(props, "m")


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValidationError):
        metadata_of(temperature=temperature)
