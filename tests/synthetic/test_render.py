"""Single pictures: repeatable, complete in the frame, readable, and a studio that is not a phone."""

from __future__ import annotations

from collections import Counter
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pillsnap.synthetic import render
from pillsnap.synthetic.conditions import (
    RealCondition,
    StudioCondition,
    choose_real,
    choose_studio,
)
from pillsnap.synthetic.drugs import design_drugs
from pillsnap.synthetic.pill import LONG_PX, build_surface, shade
from pillsnap.synthetic.render import PillModel, build_model, draw_sitting, render_real, render_studio
from pillsnap.synthetic.strokes import LOGOS, draw_text, drawable
from pillsnap.synthetic.vocabulary import Shape

U8 = NDArray[np.uint8]
DESIGNS = design_drugs(100)


@cache
def _model(index: int) -> PillModel:
    return build_model(DESIGNS[index])


def _small(image_HWC_u8: U8, side_px: int = 64) -> NDArray[np.float32]:
    height, width = image_HWC_u8.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image_HWC_u8[top : top + side, left : left + side]
    return cv2.resize(square, (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32)


def test_pictures_have_the_sizes_of_the_protocol_and_repeat() -> None:
    model = _model(0)
    studio, real = StudioCondition(0, 0, 1, 60, 40), RealCondition(4, 2, 1, 45)
    first, second = render_studio(model, studio, 0), render_studio(build_model(DESIGNS[0]), studio, 0)
    assert first.shape == (320, 244, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    photo, quality = render_real(model, real, 0)
    again, _ = render_real(build_model(DESIGNS[0]), real, 0)
    assert photo.shape == (300, 400, 3)
    assert np.array_equal(photo, again)
    assert 50 <= quality <= 95
    other_seed, _ = render_real(model, real, 1)
    assert not np.array_equal(photo, other_seed)


def test_every_shape_can_be_built() -> None:
    for shape in Shape:
        design = next(d for d in DESIGNS if d.shape is shape)
        surface = build_surface(design, 0)
        rows, columns = np.nonzero(surface.coverage_HW_u8)
        assert abs((columns.max() - columns.min() + 1) - LONG_PX) <= 4
        expected_px = LONG_PX * design.short_mm / design.long_mm
        assert abs((rows.max() - rows.min() + 1) - expected_px) <= 6
        assert np.allclose(np.linalg.norm(surface.normal_HWC_f32, axis=-1), 1, atol=1e-4)


def test_every_logo_leaves_ink() -> None:
    for logo in LOGOS:
        mask = np.zeros((60, 60), dtype=np.uint8)
        draw_text(mask, logo, (30, 30, 50, 50))
        assert 0.05 < (mask > 127).mean() < 0.7
    assert not drawable("가")
    assert not drawable("")


def test_light_from_the_other_side_moves_the_bright_edge() -> None:
    surface = build_surface(DESIGNS[0], 0)
    from_left = shade(surface, (-1.0, 0.0, 1.0), 0.4)[..., :3].astype(int).sum(axis=2)
    from_right = shade(surface, (1.0, 0.0, 1.0), 0.4)[..., :3].astype(int).sum(axis=2)
    inside = surface.coverage_HW_u8 > 250
    left_half = inside & (np.arange(inside.shape[1]) < inside.shape[1] / 2 - 60)
    assert from_left[left_half].mean() > from_right[left_half].mean() + 20


def test_low_camera_foreshortens() -> None:
    """The white half of an upright capsule, which has no side wall, shrinks with the sine of the elevation."""
    model = _model(next(d.index for d in DESIGNS if d.colors == ("green", "white")))

    def height_px(elevation_deg: int) -> float:
        image = render_studio(model, StudioCondition(2, 0, 0, elevation_deg, 80), 0).astype(int)
        rows = np.nonzero((image.min(axis=2) > 150).any(axis=1))[0]
        return float(rows.max() - rows.min())

    assert height_px(60) < 0.93 * height_px(90)


@pytest.mark.parametrize("index", range(0, 100, 9))
def test_whole_pill_is_in_the_centre_crop(index: int) -> None:
    model = _model(index)
    shares = []
    for condition in choose_real(0, index, 30):
        sitting = draw_sitting(model, condition, 0)
        reach_px = model.surfaces[0].reach_px * sitting.long_px / LONG_PX
        assert np.hypot(*sitting.offset_xy) + reach_px <= 0.47 * 300 + 1e-6
        shares.append(sitting.long_px / 300)
    assert 0.45 <= min(shares) < max(shares) - 0.1
    assert max(shares) <= 0.85


def test_a_window_changes_nothing_outside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pill and shadows are drawn in a part of the photo only: that part holds all of them."""
    model, condition = _model(4), RealCondition(2, 1, 0, 90)
    photo, _ = render_real(model, condition, 0)
    monkeypatch.setattr(render, "_window", lambda *_: (0, 0, render.REAL_SIZE_WH))
    whole, _ = render_real(model, condition, 0)
    assert np.abs(photo.astype(int) - whole.astype(int)).max() <= 2


def test_one_sitting_shares_what_other_sittings_do_not() -> None:
    model = _model(3)
    first = draw_sitting(model, RealCondition(1, 1, 0, 0), 0)
    assert first == draw_sitting(model, RealCondition(1, 1, 0, 315), 0)
    for other in (RealCondition(2, 1, 0, 0), RealCondition(1, 2, 0, 0), RealCondition(1, 1, 1, 0)):
        changed = draw_sitting(model, other, 0)
        assert changed.phase_deg != first.phase_deg
        assert changed.gain_rgb != first.gain_rgb


def test_studio_and_phone_differ_while_led_levels_order_the_brightness() -> None:
    model = _model(5)
    corner_spread: dict[str, list[float]] = {"studio": [], "real": []}
    for condition in choose_studio(0, 5, 12):
        corner_spread["studio"].append(float(render_studio(model, condition, 0)[:40, :40].std()))
    levels: list[float] = []
    for light in range(3):
        photos = [render_real(model, RealCondition(b, light, 0, 0), 0)[0] for b in range(5)]
        corner_spread["real"] += [float(photo[:40, :40].std()) for photo in photos]
        levels.append(float(np.mean([photo.mean() for photo in photos])))
    assert np.median(corner_spread["real"]) > 2 * np.median(corner_spread["studio"])
    assert levels == sorted(levels)
    assert levels[2] > 1.25 * levels[0]


def test_imprints_of_look_alikes_survive_64_pixels() -> None:
    """Two look-alikes under one studio condition differ far more than one pill under two noises."""
    condition = StudioCondition(1, 0, 0, 90, 0)
    group = [i for i, d in enumerate(DESIGNS) if d.look_alike_group == "LA-02"]
    first, second = (_small(render_studio(_model(i), condition, 0)) for i in group[:2])
    repeat = _small(render_studio(_model(group[0]), condition, 1))
    shift_tolerant = cv2.blur(first - second, (3, 3))
    noise = cv2.blur(first - repeat, (3, 3))
    assert np.square(shift_tolerant).mean() > 2 * np.square(noise).mean()


def test_choices_are_balanced_and_without_repeats() -> None:
    for count in (2, 7, 36):
        studio = choose_studio(0, 1, count)
        assert len(set(studio)) == count
        fronts = sum(condition.side == 0 for condition in studio)
        assert fronts == (count + 1) // 2
    real = choose_real(0, 1, 65)
    assert len(set(real)) == 65
    assert len({condition.sitting_key() for condition in real}) == 30
    each = Counter(condition.sitting_key() for condition in real)
    assert Counter(each.values()) == {2: 25, 3: 5}
    assert len(set(choose_real(0, 1, 240))) == 240
