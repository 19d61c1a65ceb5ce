import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pillsnap.core.image_codes import DOUBTS, Refusal
from pillsnap.core.image_quality import Figures
from pillsnap.data.audit import JUDGEMENTS, NOTES, QUARANTINE, AuditLimits, Finding, judge, odd_sizes, size_note
from pillsnap.data.reading import Reading, read_picture
from pillsnap.data.sources import Picture

LIMITS = AuditLimits()
SOUND = Figures(darkest=20, brightest=200, mean=90, sharpness=50, shape=1)


def reading(figures=SOUND, side_px=64, **more):
    return Reading("a.jpg", "0" * 64, width=side_px + 10, height=side_px, figures=figures, **more)


def codes(reading, limits=LIMITS):
    return [(finding.code, finding.quarantines) for finding in judge(reading, limits)]


@pytest.mark.parametrize(
    ("code", "over", "inside"),
    [
        ("too_small", {"side_px": 63}, {"side_px": 64}),
        ("too_dark", {"figures": Figures(0, 47.9, 9, 50, 1)}, {"figures": Figures(0, 48, 9, 50, 1)}),
        ("too_bright", {"figures": Figures(225.1, 255, 240, 50, 1)}, {"figures": Figures(225, 255, 240, 50, 1)}),
        ("blank", {"figures": Figures(100, 111.9, 105, 50, 1)}, {"figures": Figures(100, 112, 105, 50, 1)}),
        ("blurred", {"figures": Figures(20, 200, 90, 2.49, 1)}, {"figures": Figures(20, 200, 90, 2.5, 1)}),
        ("noise", {"figures": Figures(20, 200, 90, 50, 0.149)}, {"figures": Figures(20, 200, 90, 50, 0.15)}),
    ],
)
def test_each_limit_from_both_sides_and_allowed(code, over, inside):
    assert codes(reading(**over)) == [(code, True)]
    assert codes(reading(**inside)) == []
    assert codes(reading(**over), AuditLimits(allow=frozenset({code}))) == [(code, False)]


def pill(center=(120, 120), light=230, ground=30, side_px=256, blur_px=0.0):
    """A drawn picture: a pill on an even ground."""
    image_HWC_u8 = np.full((side_px, side_px, 3), ground, np.uint8)
    cv2.ellipse(image_HWC_u8, center, (side_px // 8, side_px // 12), 30, 0, 360, (light, light, light), -1)
    if blur_px:
        return cv2.GaussianBlur(image_HWC_u8, (0, 0), blur_px)
    return image_HWC_u8


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (pill(), []),
        (pill(ground=250, light=150), []),  # a white paper is not too bright
        (pill(light=10, ground=4), ["too_dark"]),
        (pill(light=255, ground=245), ["too_bright"]),
        (pill(center=(-99, -99), ground=120), ["blank"]),
        (pill(blur_px=12), ["blurred"]),
        (pill(side_px=60, center=(30, 30)), ["too_small"]),
    ],
)
def test_each_judgement_on_a_picture_that_has_it(tmp_path, image, expected):
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), image)
    found = read_picture(Picture("a.png", path, "K-000059", "real"))
    assert [code for code, _ in codes(found)] == expected


def test_a_fault_is_a_finding_by_itself():
    broken = Reading("a.jpg", fault_code="truncated", fault="is cut off")
    assert list(judge(broken, LIMITS)) == [Finding("a.jpg", "truncated", "is cut off", True)]


def test_notes_of_the_label_keep_the_picture():
    (finding,) = judge(reading(notes=("one", "two")), LIMITS)
    assert finding == Finding("a.jpg", "label_disagrees", "one; two", False)


def test_only_judgements_can_be_allowed():
    AuditLimits(allow=frozenset(JUDGEMENTS))
    with pytest.raises(ValidationError, match="blured: not among too_small, too_dark"):
        AuditLimits(allow=frozenset({"blured"}))
    with pytest.raises(ValidationError):
        AuditLimits(dark_below=float("nan"))


def test_every_code_has_a_meaning():
    assert set(Refusal) | set(DOUBTS) | set(JUDGEMENTS) <= set(QUARANTINE)
    assert not set(QUARANTINE) & set(NOTES)


def test_sizes_that_stand_out():
    assert odd_sizes({(4000, 3000): 995, (1280, 960): 5}) == {(1280, 960)}
    assert odd_sizes({(4000, 3000): 990, (1280, 960): 10}) == frozenset()  # 1 % is no exception
    assert odd_sizes({(4000, 3000): 790, (1280, 960): 205, (640, 480): 5}) == frozenset()  # there is no usual size
    assert odd_sizes({(4000, 3000): 800, (1280, 960): 195, (640, 480): 5}) == {(640, 480)}
    assert odd_sizes({}) == frozenset()


def test_an_odd_size_is_noted_lying_or_upright():
    odd = {"real": frozenset({(74, 64)}), "studio": frozenset()}
    note = size_note(reading(), "real", odd)
    assert note == Finding("a.jpg", "odd_size", "74×64 px", False)
    upright = Reading("a.jpg", width=64, height=74, figures=SOUND)
    assert size_note(upright, "real", odd) is not None
    assert size_note(reading(), "studio", odd) is None
