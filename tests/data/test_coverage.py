from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pillsnap.data.coverage import BACKGROUNDS, LIGHTS, ROTATIONS, SIDES, class_coverage, in_words, photograph_next
from pillsnap.data.mixing import mix_class
from pillsnap.data.names import Condition

CELLS = [
    Condition(b, light, s, 90, turn)
    for b in range(5)
    for light in range(3)
    for s in (0, 1)
    for turn in range(0, 360, 45)
]


def cell(entry):
    return BACKGROUNDS["real"].index(entry["background"]), LIGHTS.index(entry["light"]), SIDES.index(entry["side"])


@given(st.lists(st.sampled_from(CELLS), max_size=300), st.integers(0, 300))
def test_a_plan_asks_for_what_is_missing_and_fits_the_protocol(there, missing):
    plan = photograph_next(there, missing)
    taken = Counter((c.background, c.light, c.side) for c in there)
    assert all(entry["photos"] > 0 for entry in plan)
    assert all(taken[cell(entry)] + entry["photos"] <= ROTATIONS for entry in plan)
    room = sum(max(ROTATIONS - taken[b, light, s], 0) for b in range(5) for light in range(3) for s in (0, 1))
    assert sum(entry["photos"] for entry in plan) == min(missing, room)
    assert len({cell(entry) for entry in plan}) == len(plan)


@given(st.lists(st.sampled_from(CELLS), max_size=60), st.integers(1, 100))
def test_sittings_that_do_not_exist_come_first(there, missing):
    sittings = {(c.background, c.side) for c in there}
    planned = [(cell(entry)[0], cell(entry)[2]) in sittings for entry in photograph_next(there, missing)]
    assert planned == sorted(planned)


def test_a_plan_goes_over_sittings_and_lights():
    plan = [cell(entry) for entry in photograph_next([], 10 * ROTATIONS)]
    assert len({(b, s) for b, _, s in plan}) == 10
    assert {light for _, light, _ in plan} == {0, 1, 2}
    assert plan[0] == (0, 1, 0)


def test_in_words():
    assert in_words([]) == ""
    assert in_words(photograph_next([], 10)) == "8× front on palm, normal; 2× back on palm, bright"
    assert in_words(photograph_next([], 240)).endswith("; and 24 more")


def coverage(shots, real, studio, minimum=10):
    pictures = [shots.usable(name) for name in real] + [shots.usable(name, domain="studio") for name in studio]
    mix = mix_class(len(real), len(studio), 0.7, minimum)
    splits = {one.path: "train" for one in pictures}
    return class_coverage(pictures, [one.path for one in pictures], splits, mix, 0.7, minimum)


def test_what_is_missing(shots):
    found = coverage(shots, [shots.real(0)], [shots.studio(0), shots.studio(1)])
    assert (found["missing_real"], found["missing_studio"]) == (6, 1)
    # more than the 6 that are missing by number: a back and four backgrounds have no photo at all
    assert sum(entry["photos"] for entry in found["photograph_next"]) == 9 * 8
    assert len({(e["background"], e["side"]) for e in found["photograph_next"]}) == 9
    assert all((e["background"], e["side"]) != ("palm", "front") for e in found["photograph_next"])
    assert found["empty_splits"] == ["val/studio", "test/studio", "val/real", "test/real"]
    needed = "6 more real photos and 1 more studio pictures needed"
    assert f"3 of 10 images, real share 33% (70% wanted): {needed}" in found["problems"]
    assert "real photos: no back side" in found["problems"]
    assert "real photos: none on checked pattern" in found["problems"]
    assert "studio pictures: none on background 2" in found["problems"]


def test_a_domain_that_is_not_there(shots):
    found = coverage(shots, [], [shots.studio(0)])
    assert "no real photos" in found["problems"]
    assert sum(entry["photos"] for entry in found["photograph_next"]) == found["missing_real"] == 7
    assert "no studio pictures" in coverage(shots, [shots.real(0)], [])["problems"]


def test_plain_names_miss_no_condition(shots):
    found = coverage(shots, [f"IMG_{n}.jpg" for n in range(7)], [f"{n}.png" for n in range(3)])
    assert (found["problems"], found["missing_real"], found["photograph_next"]) == ([], 0, [])
