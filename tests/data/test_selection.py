from collections import Counter
from typing import ClassVar

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data import selection as selection_module
from pillsnap.data.capture_groups import Grouping, capture_groups
from pillsnap.data.earlier import EarlierSplits
from pillsnap.data.ledger import writing_ledger
from pillsnap.data.selection import Rules, ledger_rows, select

NOTHING = EarlierSplits.load([])
RULES = Rules(seed=0, ratio=0.7, minimum=0)


@pytest.fixture
def protocol(shots):
    """10 sittings of 6 real photos, 12 of 4 studio pictures."""
    real = [
        shots.found(shots.real(b, s, light, turn))
        for b in range(5)
        for s in (0, 1)
        for light in range(3)
        for turn in (0, 45)
    ]
    studio = [
        shots.found(shots.studio(b, s, light, turn), domain="studio")
        for b in range(3) for s in (0, 1) for light in range(2) for turn in (0, 20, 40, 60)
    ]  # fmt: skip
    return [*real, *studio]


def choose(pictures, rules=RULES, earlier=NOTHING, kcode="K-000059"):
    return select(kcode, pictures, rules, earlier)


def test_groups_are_split_before_studio_pictures_are_chosen(protocol):
    chosen = choose(protocol)
    assert len(chosen.splits) == 60 + 48
    # 60 / 0.7 = 85.7
    assert (chosen.mix.wanted, chosen.mix.studio_used, len(chosen.used)) == (86, 26, 86)
    studio = Counter(chosen.splits[path] for path in chosen.used if path.startswith("studio"))
    assert studio == {"train": 21, "val": 3, "test": 2}
    real = Counter(chosen.splits[path] for path in chosen.used if path.startswith("real"))
    assert real == {"train": 48, "val": 6, "test": 6}


def test_more_real_photos_choose_more_studio_pictures_of_the_same_splits(protocol, shots, tmp_path):
    before = choose(protocol)
    with writing_ledger(tmp_path / "ledger", 0) as ledger:
        ledger.add(ledger_rows(before, protocol))
    more = [shots.found(f"IMG_{index}.jpg") for index in range(30)]
    after = choose([*protocol, *more], Rules(7, 0.7, 0), EarlierSplits.load([tmp_path / "ledger"]))
    assert after.mix.studio_used > before.mix.studio_used
    assert {path: after.splits[path] for path in before.splits} == before.splits
    assert set(after.splits) - set(before.splits) == {picture.path for picture, _ in more}


def test_the_ledger_has_every_picture_once(protocol, shots):
    pictures = [
        *protocol,
        shots.found("broken.jpg", fault="truncated"),
        shots.found("copy.jpg", key=shots.real(0)),
        shots.found("elsewhere.jpg"),
    ]
    wrong = {"real_photos/K-000059/elsewhere.jpg": "is the same file as x"}
    selection = choose(pictures, Rules(0, 0.7, 0, wrong=wrong))
    rows = {row["path"]: row for row in ledger_rows(selection, pictures)}
    assert len(rows) == len(pictures)
    assert {path for path, row in rows.items() if row["used"]} == selection.used
    assert [rows[f"real_photos/K-000059/{name}.jpg"]["code"] for name in ("broken", "copy", "elsewhere")] == [
        "truncated", "duplicate", "duplicate_across_classes",
    ]  # fmt: skip
    not_needed = [row for row in rows.values() if not row["used"] and row["code"] is None]
    assert not_needed
    assert all(row["domain"] == "studio" and row["split"] for row in not_needed)
    kept = rows[f"real_photos/K-000059/{shots.real(0)}"]
    copy = rows["real_photos/K-000059/copy.jpg"]
    assert copy["split"] == kept["split"]
    assert copy["reason"] == f"is the same file as {kept['path']}"
    assert rows["real_photos/K-000059/broken.jpg"]["split"] is None


def test_a_cut_sitting_fails(protocol, monkeypatch):
    """Groups as somebody might make them who forgot the sittings."""

    def one_each(pictures, *_):
        return Grouping({one.path: one.path for one in pictures}, {})

    monkeypatch.setattr(selection_module, "capture_groups", one_each)
    with pytest.raises(DataError, match=r"capture group K-000059/.* would leak"):
        choose(protocol)


@pytest.mark.parametrize("named", [True, False], ids=["by sittings", "by near-duplicates"])
def test_a_random_split_fails(protocol, shots, monkeypatch, named):
    """Also where no name tells the sitting, and the group is all that holds the pictures together."""

    def by_picture(usable, groups, pinned, seed):
        return {one.path: ("train", "val", "test")[index % 3] for index, one in enumerate(usable)}

    alike = [shots.found(f"{flips}.jpg", scene="a", flips=flips) for flips in range(3)]
    monkeypatch.setattr(selection_module, "_split", by_picture)
    with pytest.raises(DataError, match=r"capture group K-000059/.* would leak"):
        choose(protocol if named else alike)


def test_near_duplicates_in_two_splits_fail(shots, monkeypatch):
    pictures = [shots.found(f"{scene}{flips}.jpg", scene=scene, flips=flips) for scene in "abc" for flips in range(3)]

    def one_each(pictures, *_):
        return Grouping({one.path: one.path for one in pictures}, {})

    assert len(set(choose(pictures).groups.values())) == 3
    monkeypatch.setattr(selection_module, "capture_groups", one_each)
    with pytest.raises(DataError, match=r"pairs of near-duplicates lie in two splits.* = .*--fresh"):
        choose(pictures)


def test_a_picture_that_would_change_its_split_fails(protocol, monkeypatch):
    """Groups as somebody might make them who forgot what was split before."""
    splits = choose(protocol).splits
    trained = next(reading.sha256 for picture, reading in protocol if splits[picture.path] == "train")

    class Memory:
        sittings: ClassVar = {}

        def of(self, sha256):
            return {trained: "test"}

        placed = of

    assert choose(protocol, earlier=Memory()).splits != splits
    monkeypatch.setattr(selection_module, "capture_groups", lambda pictures, links, *_: capture_groups(pictures, links))
    with pytest.raises(DataError, match="1 pictures would change their split"):
        choose(protocol, earlier=Memory())


def test_combinations_only_train_and_do_not_count(protocol, shots):
    name = "K-000059-030864_0_{}_0_0_90_000_200.png"
    singles = [*protocol, *(shots.found(f"single {n}.png", domain="studio") for n in range(60))]
    pictures = [*singles, *(shots.found(name.format(b), domain="studio", combination=True) for b in range(3))]
    pictures += [shots.found(f"{n}.png", domain="studio", combination=True) for n in range(40)]
    selection = choose(pictures, Rules(0, 0.2, 0))
    combinations = [one for one in selection.usable if one.combination]
    assert len(combinations) == 43
    assert {selection.splits[one.path] for one in combinations} == {"train"}
    assert all(one.box is not None for one in combinations)
    single = Counter(
        selection.splits[one.path] for one in selection.usable if one.domain == "studio" and not one.combination
    )
    assert single["val"]
    assert single["test"]
    assert single == Counter(choose(singles).splits[p.path] for p, _ in singles if p.domain == "studio")


def test_front_and_back_of_a_plain_pill(shots):
    """Every picture hashes alike: that must not fail, nor make one group of what names tell apart."""
    pictures = [shots.found(shots.real(b, s, light), key=f"{b}{s}{light}", scene="white", flips=(b + s + light) % 2 * 9)
                for b in range(5) for s in (0, 1) for light in range(3)]  # fmt: skip
    assert set(choose(pictures).splits.values()) >= {"train"}
    plain = [shots.found(f"{n}.jpg", scene="white", flips=n % 4) for n in range(30)]
    assert set(choose(plain).splits.values()) == {"train"}


def test_an_empty_class(shots):
    selection = choose([shots.found("a.jpg", fault="truncated")])
    assert (selection.usable, selection.used, selection.mix.images) == ((), frozenset(), 0)
