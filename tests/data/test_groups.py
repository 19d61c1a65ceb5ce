import random

import cv2
import numpy as np
import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.groups import Usable, capture_groups, drop_duplicates, near_duplicate_components
from pillsnap.data.names import parse_condition
from pillsnap.data.scan import perceptual_hashes


def usable(path, sha256, kcode="K-000059", domain="real", **hashes):
    return Usable(path, kcode, domain, parse_condition(path.rpartition("/")[2], domain), sha256, **hashes)


def scene(background_seed, angle_deg):
    """A small pill that turns on a large surface, as phones take it."""
    rng = np.random.default_rng(background_seed)
    coarse = rng.integers(60, 220, (6, 6), np.uint8)
    image = cv2.cvtColor(cv2.resize(coarse, (128, 128), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB)
    cv2.ellipse(image, (64, 64), (12, 5), angle_deg, 0, 360, (200, 120, 90), -1)
    return image


def test_a_sitting_is_everything_but_the_rotation():
    names = [
        f"K-000059_{b}_{light}_{s}_0_90_{r:03d}_200.jpg"
        for b in (0, 1)
        for light in (0, 1)
        for s in (0, 1)
        for r in (0, 45)
    ]
    groups = capture_groups([usable(name, name) for name in names])
    assert len(set(groups.values())) == 8
    assert groups["K-000059_1_0_1_0_90_000_200.jpg"] == "K-000059/real/b1-l0-s1-e90"


def test_near_duplicates_hang_together_and_others_do_not():
    hashes = [perceptual_hashes(scene(seed, angle)) for seed in (1, 2, 3) for angle in (0, 30, 60, 90)]
    components = near_duplicate_components([h[0] for h in hashes], [h[1] for h in hashes])
    assert len(set(components[:4])) == len(set(components[4:8])) == 1
    assert len(set(components)) == 3


def test_groups_do_not_hang_on_order_or_place():
    pictures = []
    for index, (seed, angle) in enumerate((s, a) for s in (1, 2, 3) for a in (0, 30, 60)):
        dhash, phash = perceptual_hashes(scene(seed, angle))
        pictures.append(usable(f"IMG_{index}.jpg", f"{index * 7 % 9:064d}", dhash=dhash, phash=phash))
    shuffled = pictures.copy()
    random.Random(3).shuffle(shuffled)
    assert capture_groups(shuffled) == capture_groups(pictures)
    assert all(name.startswith("K-000059/real/n") for name in capture_groups(pictures).values())


def test_classes_and_domains_are_never_joined():
    same = {"dhash": "0" * 16, "phash": "0" * 16}
    pictures = [
        usable("a.jpg", "a", **same),
        usable("b.jpg", "b", kcode="K-030864", **same),
        usable("c.jpg", "c", domain="studio", **same),
        usable("d.jpg", "d", **same),
    ]
    groups = capture_groups(pictures)
    assert groups["a.jpg"] == groups["d.jpg"]
    assert len(set(groups.values())) == 3


def test_same_bytes_in_one_class_are_kept_once():
    known = "K-000059_0_0_0_0_90_000_200.jpg"
    kept, dropped = drop_duplicates(
        [usable("real/a.jpg", "x"), usable("studio/b.jpg", "x", domain="studio"), usable("one.jpg", "y")]
    )
    assert [picture.path for picture in kept] == ["one.jpg", "studio/b.jpg"]
    assert dropped == {"real/a.jpg": "studio/b.jpg"}
    kept, _ = drop_duplicates([usable("a.jpg", "x", domain="studio"), usable(known, "x")])
    assert [picture.path for picture in kept] == [known]


def test_same_bytes_under_two_drugs_are_a_label_error():
    with pytest.raises(DataError, match=r"a\.jpg = b\.jpg"):
        drop_duplicates([usable("a.jpg", "x"), usable("b.jpg", "x", kcode="K-030864")])
