import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pillsnap.core.errors import ImageError
from pillsnap.core.preprocessing import ClaheSpec, InferencePreprocessor, PreprocessingSpec, UnifiedPreprocessor

PLAIN = PreprocessingSpec(target_size=32, clahe=ClaheSpec(enabled=False))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_reference_configuration_is_that_of_the_specification():
    config = UnifiedPreprocessor().get_config()
    assert config == {
        "version": "1.1",
        "channel_order": "RGB",
        "orientation": "EXIF applied before the crop",
        "crop": "center_square",
        "alpha": "ignored",
        "animation": "first frame",
        "decoding": "exact",
        "target_size": 512,
        "interpolation": "linear",
        "clahe": {"enabled": True, "clip_limit": 2.0, "tile_grid": 8},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_steps_one_by_one():
    image = noise(60, 81)
    square = image[:, 10:70]
    resized = cv2.resize(square, (48, 48), interpolation=cv2.INTER_LINEAR)
    lab = cv2.cvtColor(resized, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[:, :, 0])
    expected = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    preprocessor = UnifiedPreprocessor(PreprocessingSpec(target_size=48))
    np.testing.assert_array_equal(preprocessor.to_model_input(image), expected)
    normalized = (expected / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = preprocessor.process(image)
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(result, normalized.transpose(2, 0, 1), atol=1e-5)


def test_a_picture_of_the_target_size_is_left_alone():
    image = noise(32, 32)
    np.testing.assert_array_equal(UnifiedPreprocessor(PLAIN).to_model_input(image), image)


@given(st.integers(1, 70), st.integers(1, 70))
def test_every_shape_becomes_a_square_and_the_input_stays(height, width):
    image = noise(height, width)
    before = image.copy()
    assert UnifiedPreprocessor(PLAIN).to_model_input(image).shape == (32, 32, 3)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ImageError, match="expected H×W×3 uint8"):
        UnifiedPreprocessor(PLAIN).process(image)


def test_inference_takes_the_same_way():
    """Both callers: pixels in training, bytes in serving."""
    images = [noise(40, 50, seed) for seed in range(3)]
    spec = PreprocessingSpec(target_size=32)
    batch = InferencePreprocessor(spec).prepare_batch([png(image) for image in images])
    assert batch.shape == (3, 32, 32, 3)
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, UnifiedPreprocessor(spec).to_model_input(image))
    np.testing.assert_array_equal(InferencePreprocessor(spec).prepare_for_model(png(images[0])), batch[:1])
    with pytest.raises(ImageError, match="at least one photo"):
        InferencePreprocessor(spec).prepare_batch([])
    with pytest.raises(ImageError, match="image 1"):
        InferencePreprocessor(spec).prepare_batch([png(images[0]), b"no picture"])


@pytest.mark.parametrize(
    "changes",
    [
        {"target_size": 511},
        {"interpolation": "area"},
        {"decoding": "reduced"},
        {"clahe": {"enabled": False}},
        {"clahe": {"clip_limit": 2.5}},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
    ],
)
def test_the_fingerprint_follows_every_value(changes):
    assert PreprocessingSpec.model_validate(changes).fingerprint != PreprocessingSpec().fingerprint
    assert PreprocessingSpec().fingerprint == PreprocessingSpec.model_validate({}).fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (float("nan"), 0, 0)},
        {"target_size": 0},
        {"interpolation": "cubic"},
        {"unknown": 1},
    ],
)
def test_senseless_values_are_refused(changes):
    with pytest.raises(ValidationError):
        PreprocessingSpec.model_validate(changes)
