import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError

from pillsnap.core.boxes import Box, crop_to_box
from pillsnap.core.errors import ImageError
from pillsnap.core.preprocessing import InferencePreprocessor, UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import REDUCED_TOLERANCE_LEVELS, ClaheSpec, PreprocessingSpec

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
        {"decoding": "fast"},
        {"unknown": 1},
    ],
)
def test_senseless_values_are_refused(changes):
    with pytest.raises(ValidationError):
        PreprocessingSpec.model_validate(changes)


def test_what_the_net_gets_is_float32():
    """float64 out of the normalisation costs twice the memory, and other frameworks refuse it."""
    for spec in (None, PLAIN):
        assert UnifiedPreprocessor(spec).process(noise(40, 50)).dtype == np.float32


def photo_like(height, width, seed=0):
    """Light and shade (a sum of smooth noises), an imprint of sharp strokes, a sensor's noise."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120, np.float32)
    for cells in (3, 9, 27):
        field = rng.normal(0, 120 / cells**0.5, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image, 0, 255).astype(np.uint8)
    centre = (width // 2, height // 2)
    cv2.ellipse(image, centre, (height // 3, height // 4), 20, 0, 360, (225, 215, 190), -1, cv2.LINE_AA)
    cv2.putText(image, "PS 25", (centre[0] - height // 4, centre[1]), 0, height / 250, (70, 60, 60), height // 100)
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), height / 900) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image, quality=92):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (960, 720), (768, 768)])
def test_reduced_decoding_stays_within_its_tolerance(interpolation, height, width):
    """82 of 480 pixels is the ratio of 512 in 12 megapixels. The reference averages all pixels: it does not alias."""
    target = round(min(height, width) * 512 / 3000)
    plain = {"target_size": target, "clahe": ClaheSpec(enabled=False)}
    reduced = InferencePreprocessor(PreprocessingSpec(**plain, interpolation=interpolation, decoding="reduced"))
    exact = InferencePreprocessor(PreprocessingSpec(**plain, interpolation=interpolation))
    reference = InferencePreprocessor(PreprocessingSpec(**plain, interpolation="area"))
    for seed in range(3):
        data = jpeg(photo_like(height, width, seed))

        def off(preprocessor, data=data):
            return np.abs(preprocessor.prepare_for_model(data).astype(int) - reference.prepare_for_model(data)).mean()

        assert 0 < off(reduced) <= REDUCED_TOLERANCE_LEVELS
        if interpolation == "linear":
            assert off(reduced) < off(exact) / 2, "reduced decoding must alias far less than what it replaces"


def test_reduced_decoding_leaves_alone_what_is_not_large():
    """What the mobile client sends, and every PNG and WebP: the two ways are the same to the bit."""
    exact = InferencePreprocessor(PreprocessingSpec(target_size=64))
    reduced = InferencePreprocessor(PreprocessingSpec(target_size=64, decoding="reduced"))
    for data in (jpeg(photo_like(64, 64)), jpeg(photo_like(120, 127)), png(photo_like(256, 256))):
        np.testing.assert_array_equal(reduced.prepare_for_model(data), exact.prepare_for_model(data))
    large = jpeg(photo_like(256, 256))
    assert (reduced.prepare_for_model(large) != exact.prepare_for_model(large)).any()


@pytest.mark.parametrize("decoding", ["exact", "reduced"])
def test_eight_threads_see_what_one_sees(decoding):
    shared = InferencePreprocessor(PreprocessingSpec(target_size=64, decoding=decoding))
    photos = [jpeg(photo_like(128 + 16 * seed, 256, seed)) for seed in range(6)] * 8
    serial = [shared.prepare_for_model(photo) for photo in photos]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(serial, pool.map(shared.prepare_for_model, photos), strict=True):
            np.testing.assert_array_equal(one, other)


def test_exact_is_the_literal_steps_from_the_bytes():
    """Decode whole, RGB, turn, crop, resize, CLAHE: written out once more, by other functions where there are any."""
    block = Image.Exif()
    block[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(photo_like(150, 201)).save(buffer, "JPEG", quality=90, exif=block)
    whole = np.asarray(ImageOps.exif_transpose(Image.open(buffer)).convert("RGB"))
    assert whole.shape == (201, 150, 3)
    resized = cv2.resize(np.ascontiguousarray(whole[25:175]), (48, 48), interpolation=cv2.INTER_LINEAR)
    lab = cv2.cvtColor(resized, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[:, :, 0])
    prepared = InferencePreprocessor(PreprocessingSpec(target_size=48)).prepare_for_model(buffer.getvalue())
    np.testing.assert_array_equal(prepared[0], cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


@pytest.mark.parametrize("decoding", ["exact", "reduced"])
def test_a_box_crops_around_the_pill(decoding):
    spec = PreprocessingSpec(target_size=32, decoding=decoding)
    image, box = photo_like(256, 320), Box(100, 60, 80, 50)
    data = png(image)
    expected = UnifiedPreprocessor(spec).to_model_input(crop_to_box(image, box))
    np.testing.assert_array_equal(InferencePreprocessor(spec).prepare_for_model(data, box=box)[0], expected)
    with pytest.raises(ImageError, match=r"^x\.png: the pill's box") as refused:
        InferencePreprocessor(spec).prepare_for_model(data, "x.png", Box(300, 0, 40, 40))
    assert refused.value.code == "bad_box"


def test_refusals_have_codes():
    inference = InferencePreprocessor(PLAIN)
    for code, call in {
        "wrong_pixels": lambda: inference.preprocessor.process(np.zeros((4, 4), np.uint8)),
        "empty_batch": lambda: inference.prepare_batch([]),
        "empty": lambda: inference.prepare_for_model(b""),
    }.items():
        with pytest.raises(ImageError) as refused:
            call()
        assert refused.value.code == code
