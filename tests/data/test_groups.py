import random
from dataclasses import replace

import cv2
import numpy as np
import pytest

from pillsnap.core.image_quality import small_grey
from pillsnap.data import groups
from pillsnap.data.capture_groups import capture_groups
from pillsnap.data.groups import (
    COPY_DHASH_BITS,
    DHASH_BITS,
    drop_duplicates,
    near_duplicate_links,
    straddling,
)
from pillsnap.data.names import parse_condition
from pillsnap.data.reading import perceptual_hashes


def grouped(pictures, before=None, sittings=None):
    return capture_groups(pictures, near_duplicate_links(pictures), before, sittings)


def together(pictures, before=None):
    """Sets of file names."""
    members = {}
    for path, group in grouped(pictures, before).groups.items():
        members.setdefault(group, set()).add(path.rpartition("/")[2])
    return sorted(map(sorted, members.values()))


def turned(one, start, stop):
    """The dHash with these bits turned."""
    return f"{int(one.dhash, 16) ^ sum(1 << bit for bit in range(start, stop)):016x}"


def scene(background_seed, angle_deg):
    """A small pill that turns on a large surface, as phones take it."""
    rng = np.random.default_rng(background_seed)
    coarse = rng.integers(60, 220, (6, 6), np.uint8)
    image = cv2.cvtColor(cv2.resize(coarse, (128, 128), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB)
    cv2.ellipse(image, (64, 64), (12, 5), angle_deg, 0, 360, (200, 120, 90), -1)
    return image


def test_a_sitting_is_everything_but_the_rotation_and_the_light(shots):
    names = [shots.real(b, s, light, turn) for b in (0, 1) for light in (0, 1, 2) for s in (0, 1) for turn in (0, 45)]
    grouping = grouped([shots.usable(name) for name in names])
    assert len(set(grouping.groups.values())) == 4
    assert grouping.groups[f"real_photos/{shots.KCODE}/{names[-1]}"] == "K-000059/real/b1-s1-e90"
    assert (grouping.pinned, grouping.bridges) == ({}, ())


def test_studio_and_real_sittings_are_apart(shots):
    pictures = [shots.usable(shots.real(0)), shots.usable(shots.studio(0), domain="studio")]
    assert len(together(pictures)) == 2


def test_near_duplicates_hang_together_and_others_do_not(shots):
    pictures = []
    for seed in (1, 2, 3):
        for angle in (0, 30, 60, 90):
            dhash, phash = perceptual_hashes(small_grey(scene(seed, angle)))
            pictures.append(replace(shots.usable(f"IMG_{seed}_{angle}.jpg"), dhash=dhash, phash=phash))
    assert [len(members) for members in together(pictures)] == [4, 4, 4]


def test_the_threshold_of_near_duplicates(shots):
    assert len(together([shots.usable("a.jpg", scene="x"), shots.usable("b.jpg", scene="x", flips=DHASH_BITS)])) == 1
    assert len(together([shots.usable("a.jpg", scene="x"), shots.usable("b.jpg", scene="x", flips=13)])) == 2


def test_a_chain_is_one_group(shots):
    a = shots.usable("a.jpg", scene="x")
    b = replace(shots.usable("b.jpg"), dhash=turned(a, 0, 10))
    c = replace(shots.usable("c.jpg"), dhash=turned(a, 0, 20))
    assert len(together([a, c])) == 2
    assert len(together([a, b, c])) == 1


def test_names_are_believed_where_they_tell_something(shots):
    """Front and back of a plain pill on one surface hash alike and are two sittings all the same."""
    front, back = shots.usable(shots.real(0, 0), scene="x"), shots.usable(shots.real(0, 1), scene="x", flips=10)
    assert len(together([front, back])) == 2


def test_copies_are_linked_whatever_their_names_say(shots):
    named = shots.usable(shots.real(0), scene="x")
    copy = shots.usable("IMG_1.jpg", scene="x", flips=COPY_DHASH_BITS)
    other_domain = shots.usable("x.png", scene="x", flips=2, domain="studio")
    assert len(together([named, copy])) == 1
    assert len(together([named, other_domain])) == 1
    assert len(together([named, shots.usable(shots.real(3), scene="x", flips=2)])) == 1
    shows_something_else = replace(shots.usable(shots.real(3), scene="x", flips=2), thumb=bytes(256))
    assert len(together([named, shows_something_else])) == 2


def test_a_plain_name_joins_the_nearest_sitting_only(shots):
    """A photo of a sitting under the phone's own name is a twin; it must not join every sitting on that surface."""
    near = shots.usable(shots.real(0, 0), scene="x", flips=7)
    farther = shots.usable(shots.real(0, 1), scene="x", flips=9)
    plain = shots.usable("IMG_1.jpg", scene="x")
    assert together([near, farther, plain]) == sorted(
        [sorted([shots.real(0, 0), "IMG_1.jpg"]), [shots.real(0, 1)]],
    )
    studio = shots.usable("x.png", scene="x", domain="studio", flips=6)
    assert len(together([near, studio])) == 2


def test_groups_do_not_hang_on_order_or_place(shots):
    pictures = [shots.usable(f"IMG_{n}.jpg", scene=f"s{n // 3}", flips=n % 3) for n in range(9)]
    pictures += [shots.usable(shots.real(b, 0, light), scene=f"r{b}{light}") for b in range(3) for light in range(2)]
    pictures.append(shots.usable("copy.jpg", scene="r10"))
    shuffled = pictures.copy()
    random.Random(3).shuffle(shuffled)
    assert grouped(shuffled).groups == grouped(pictures).groups
    assert len(set(grouped(pictures).groups.values())) == 6


def test_more_pictures_than_a_block(shots, monkeypatch):
    pictures = [shots.usable(f"IMG_{n:02d}.jpg", scene=f"s{n % 5}", flips=n // 5) for n in range(25)]
    expected = near_duplicate_links(pictures).tolist()
    monkeypatch.setattr("pillsnap.data.groups._BLOCK", 4)
    assert near_duplicate_links(pictures).tolist() == expected
    assert len(together(pictures)) == 5


def test_many_pictures_that_are_all_alike_are_compared_a_few_at_a_time(shots, monkeypatch):
    """A thousand are a million pairs, each with two pictures and a tone curve."""
    pictures = [shots.usable(shots.real(n % 5, n % 2, n // 10), scene="x") for n in range(30)]
    whole = near_duplicate_links(pictures).tolist()
    assert len(whole) == 30 * 29 / 2
    seen = []
    toned = groups.toned_difference
    monkeypatch.setattr(groups, "toned_difference", lambda one, two: (seen.append(len(one)), toned(one, two))[1])
    monkeypatch.setattr("pillsnap.data.turned._PIECE", 100)
    assert near_duplicate_links(pictures).tolist() == whole
    assert max(seen) == 100 < sum(seen)


@pytest.mark.parametrize("count", [0, 1])
def test_no_picture_and_one(shots, count):
    pictures = [shots.usable("a.jpg")][:count]
    assert near_duplicate_links(pictures).shape == (0, 2)
    assert len(grouped(pictures).groups) == count


def test_same_bytes_are_kept_once(shots):
    def kept(*pictures):
        return [one.path.rpartition("/")[2] for one in drop_duplicates(pictures)[0]]

    plain, studio = shots.usable("a.jpg", "x"), shots.usable("b.png", "x", domain="studio")
    one = shots.usable("one.jpg")
    assert drop_duplicates([plain, studio, one])[1] == {plain.path: studio.path}
    assert kept(plain, studio, one) == ["one.jpg", "b.png"]
    assert kept(studio, shots.usable(shots.real(0), "x")) == [shots.real(0)]
    combination = shots.usable("0.png", "x", domain="studio", combination=True)
    assert kept(combination, shots.usable("z.png", "x", domain="studio")) == ["z.png"]


class TestGrowing:
    """Pictures that were split before, and new ones."""

    def test_a_new_twin_follows_its_group(self, shots):
        old = shots.usable("a.jpg", scene="x")
        grouping = grouped([old, shots.usable("b.jpg", scene="x", flips=5)], {old.sha256: "test"})
        assert list(grouping.pinned.values()) == ["test"]
        assert len(set(grouping.groups.values())) == 1

    def test_a_bridge_is_left_out_and_nothing_else(self, shots):
        left, right = shots.usable("a.jpg", scene="x"), shots.usable("c.jpg", scene="x", flips=20)
        mates = [shots.usable("b.jpg", scene="x", flips=1)]
        before = {left.sha256: "train", right.sha256: "test"}
        bridge = replace(shots.usable("bridge.jpg"), dhash=left.dhash, phash=right.phash)
        assert len(set(grouped([left, right, *mates], before).groups.values())) == 2
        grouping = grouped([left, right, *mates, bridge], before)
        assert grouping.bridges == (bridge.path,)
        assert set(grouping.groups) == {left.path, right.path, mates[0].path}

    def test_a_chain_of_new_ones_between_two_splits_is_cut(self, shots):
        left, right = shots.usable("a.jpg", scene="x"), shots.usable("b.jpg", scene="y")
        one = replace(shots.usable("n1.jpg"), dhash=turned(left, 0, 10))
        two = replace(shots.usable("n2.jpg"), dhash=turned(left, 0, 20), phash=right.phash)
        before = {left.sha256: "train", right.sha256: "test"}
        grouping = grouped([left, right, one, two], before)
        assert len(grouping.bridges) == 1
        assert {left.path, right.path} < set(grouping.groups)
        assert sorted(grouping.pinned.values()) == ["test", "train"]

    def test_who_was_left_out_stays_out(self, shots):
        """The newer twins of what was left out must not outvote those that had a place."""
        tested = shots.usable("a.jpg", scene="x")
        left_out = replace(shots.usable("b.jpg"), dhash=turned(tested, 0, 10))
        twins = [replace(shots.usable(f"n{n}.jpg"), dhash=turned(tested, 0, 20)) for n in range(3)]
        pictures = [tested, left_out, *twins]
        before = {tested.sha256: "test"} | {one.sha256: "train" for one in pictures[1:]}
        links = near_duplicate_links(pictures)
        assert capture_groups(pictures, links, before).bridges == (tested.path,)
        placed = {one.sha256 for one in (tested, *twins)}
        assert left_out.path in capture_groups(pictures, links, before, placed=placed).bridges

    def test_a_sitting_holds_together_without_its_first_picture(self, shots):
        """The first picture is a bridge; its sitting must not fall into pieces that land in two splits."""
        first, *others = [shots.usable(shots.real(2, rotation=turn), f"new {turn}") for turn in (0, 45, 90)]
        trained, tested = shots.usable("a.jpg", scene=f"new {0}", flips=2), shots.usable("z.jpg", scene="z")
        copy_of_tested = shots.usable(shots.real(2, rotation=135), "new 135", "z", flips=1)
        before = {trained.sha256: "train", tested.sha256: "test"}
        pictures = [first, *others, copy_of_tested, trained, tested]
        grouping = grouped(pictures, before)
        splits = {path: grouping.pinned.get(group) for path, group in grouping.groups.items()}
        assert not straddling(pictures, near_duplicate_links(pictures), splits)
        assert len({splits[one.path] for one in others if one.path in splits}) <= 1

    def test_a_renamed_picture_does_not_take_its_new_sitting_along(self, shots):
        """Its name now says that it belongs to a sitting of another split."""
        sitting = [shots.usable(shots.real(1, rotation=turn)) for turn in (0, 45, 90)]
        renamed = shots.usable(shots.real(1, rotation=135), "renamed")
        before = {**{one.sha256: "train" for one in sitting}, renamed.sha256: "test"}
        grouping = grouped([*sitting, renamed], before)
        assert grouping.bridges == (renamed.path,)
        assert {grouping.pinned[grouping.groups[one.path]] for one in sitting} == {"train"}

    def test_of_two_that_turn_out_to_be_twins_the_tested_one_stays(self, shots):
        one, two = shots.usable("a.jpg", scene="x"), shots.usable("b.jpg", scene="x", flips=2)
        grouping = grouped([one, two], {one.sha256: "train", two.sha256: "test"})
        assert list(grouping.bridges) == [one.path]

    def test_a_sitting_that_is_shot_anew_keeps_its_split(self, shots):
        again = shots.usable(shots.real(1), "other bytes")
        grouping = grouped([again], {}, {"K-000059/real/b1-s0-e90": "test"})
        assert grouping.pinned == {"K-000059/real/b1-s0-e90": "test"}
        tied = shots.usable("a.jpg", scene="other bytes")
        grouping = grouped([again, tied], {tied.sha256: "train"}, {"K-000059/real/b1-s0-e90": "test"})
        assert list(grouping.bridges) == [again.path]

    def test_combinations_only_train(self, shots):
        name = "K-000059-030864_0_0_0_0_90_000_200.png"
        combination = shots.usable(name, domain="studio", combination=True)
        assert combination.condition == parse_condition(name, "studio")
        single = shots.usable(shots.studio(0), domain="studio")
        grouping = grouped([combination, single])
        assert grouping.pinned == {"combination:K-000059/studio/b0-s0-e90": "train"}
        copy = shots.usable(shots.studio(1), scene=name, domain="studio", flips=1)
        assert grouped([combination, copy]).pinned == {"K-000059/studio/b1-s0-e90": "train"}
        grouping = grouped([combination, copy], {copy.sha256: "test"})
        assert list(grouping.bridges) == [combination.path]
        assert list(grouped([combination], {combination.sha256: "val"}).bridges) == [combination.path]
