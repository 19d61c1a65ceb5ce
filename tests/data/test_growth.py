"""A data set that grows, round after round: no picture ever changes its split, no twin is trained on."""

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pillsnap.data.earlier import EarlierSplits
from pillsnap.data.groups import near_duplicate_links, sitting_id
from pillsnap.data.ledger import writing_ledger
from pillsnap.data.selection import Rules, ledger_rows, select

KCODES = ("K-000059", "K-030864")
RULES = Rules(seed=0, ratio=0.7, minimum=0)
EVENTS = (
    "sitting",
    "burst",
    "twins",
    "bridge",
    "studio",
    "combination",
    "rename",
    "relabel",
    "lose",
    "return",
    "damage",
)


@dataclass(frozen=True)
class Shot:
    """One picture of the growing data set."""

    key: str
    scene: str
    name: str
    kcode: str
    domain: str = "real"
    flips: int = 0
    combination: bool = False
    bridge: str = ""
    """Another scene whose pHash it has."""
    fault: str = ""


class World:
    """Files that come, go, and are renamed; and the memory that every preparation leaves behind."""

    def __init__(self, shots, folder, seed):
        self.shots, self.rng, self.number = shots, random.Random(seed), 0
        self.present, self.away = [], []
        self.ledger = folder / "pictures.parquet"
        self.ever = {}

    def happen(self, event):
        self.number += 1
        rng, n, kcode = self.rng, self.number, self.rng.choice(KCODES)
        some = rng.sample(range(len(self.present)), min(len(self.present), rng.randint(1, 3)))
        match event:
            case "sitting":
                self._add_sitting(kcode, n)
            case "studio":
                b, s = rng.randrange(3), rng.randrange(2)
                for turn in rng.sample(range(0, 360, 20), 4):
                    name = self.shots.studio(b, s, 0, turn, kcode)
                    self.present.append(Shot(f"{n} {turn}", f"{n} {turn}", name, kcode, "studio"))
            case "burst":
                self.present += [
                    Shot(f"{n} {i}", f"{n}", f"{n}_{i}.jpg", kcode, flips=i) for i in range(rng.randint(1, 5))
                ]
            case "twins":
                for i in some:
                    one = self.present[i]
                    self.present.append(
                        replace(one, key=f"{n} {i}", name=f"{n}_{i}.jpg", flips=one.flips + 1, bridge="")
                    )
            case "bridge" if len(some) > 1:
                one, two = self.present[some[0]], self.present[some[1]]
                self.present.append(Shot(f"{n}", one.scene, f"{n}.jpg", one.kcode, flips=one.flips, bridge=two.scene))
            case "combination":
                for other in KCODES:
                    name = f"K-000059-030864_0_{n % 3}_0_0_90_000_200.png"
                    self.present.append(Shot(f"{n}", f"{n}", name, other, "studio", combination=True))
            case "rename":
                for i in some:
                    one = self.present[i]
                    if one.domain == "real":
                        named = self.shots.real(rng.randrange(5), rng.randrange(2), 0, 315, one.kcode)
                        self.present[i] = replace(one, name=rng.choice([named, f"renamed {n} {i}.jpg"]))
            case "relabel":
                for i in some:
                    if not self.present[i].combination:
                        self.present[i] = replace(self.present[i], kcode=kcode, name=f"moved {n} {i}.jpg")
            case "lose":
                self.away += [self.present.pop(i) for i in sorted(some, reverse=True)]
            case "return":
                self.present += self.away
                self.away.clear()
            case "damage":
                for i in some[:1]:
                    self.present[i] = replace(self.present[i], key=f"{n} broken", fault="truncated")

    def prepare(self):
        """One run; returns the selections and the ledger's rows."""
        earlier = EarlierSplits.load([self.ledger] if self.ledger.is_file() else [])
        selections, rows = [], []
        with writing_ledger(self.ledger, RULES.seed) as ledger:
            for kcode in KCODES:
                pictures = self._found(kcode)
                selection = select(kcode, [(p, r) for p, r, _ in pictures], RULES, earlier)
                selections.append(selection)
                rows.append(list(ledger_rows(selection, [(p, r) for p, r, _ in pictures])))
                ledger.add(rows[-1])
            ledger.carry_over([self.ledger] if self.ledger.is_file() else [])
        return selections, rows

    def check(self):
        selections, rows = self.prepare()
        for selection, of_class in zip(selections, rows, strict=True):
            self._check_no_twin_is_trained_on(selection)
            assert selection.used <= set(selection.splits)
            for one in selection.usable:
                split = selection.splits[one.path]
                assert self.ever.setdefault(one.sha256, split) == split
                assert split == "train" or not one.combination
            for row in of_class:
                assert (row["path"] in selection.splits) == (row["code"] is None)
                if row["sha256"] in self.ever:
                    assert row["split"] == self.ever[row["sha256"]]
        before = self.ledger.read_bytes()
        assert self.prepare()[1] == rows
        assert self.ledger.read_bytes() == before

    def _check_no_twin_is_trained_on(self, selection):
        """By hashes and by names, without a look at the groups."""
        usable = selection.usable
        for one, two in near_duplicate_links(usable).tolist():
            assert selection.splits[usable[one].path] == selection.splits[usable[two].path]
        sittings = {}
        for one in usable:
            if one.condition is not None and not one.combination:
                split = selection.splits[one.path]
                assert sittings.setdefault(sitting_id(one.kcode, one.domain, one.condition), split) == split

    def _add_sitting(self, kcode, n):
        b, s = self.rng.randrange(5), self.rng.randrange(2)
        for light in range(2):
            for turn in self.rng.sample(range(0, 360, 45), 2):
                name = self.shots.real(b, s, light, turn, kcode)
                self.present.append(Shot(f"{n} {light} {turn}", f"{n} {light} {turn}", name, kcode))

    def _found(self, kcode):
        """Sorted by path, one picture a path (as a file system has it)."""
        by_path = {}
        for one in self.present:
            if one.kcode == kcode:
                picture, reading = self.shots.found(
                    one.name, one.key, one.scene, kcode=kcode, domain=one.domain, flips=one.flips,
                    combination=one.combination, fault=one.fault,
                )  # fmt: skip
                if one.bridge:
                    reading = replace(reading, phash=self.shots.hashes(one.bridge)[1])
                by_path[picture.path] = (picture, reading, one)
        return [by_path[path] for path in sorted(by_path)]


@pytest.fixture
def world(shots, tmp_path_factory):
    return lambda seed: World(shots, tmp_path_factory.mktemp("world"), seed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 1000),
    st.lists(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=6), min_size=2, max_size=6),
)
@example(41, [["twins", "bridge", "lose"], ["studio", "studio", "twins", "twins", "rename", "sitting"]])
def test_whatever_happens_no_picture_changes_its_split(world, seed, rounds):
    growing = world(seed)
    for _ in range(4):
        for event in ("sitting", "burst", "studio"):
            growing.happen(event)
    for events in rounds:
        for event in events:
            growing.happen(event)
        growing.check()


def test_what_was_away_comes_back_into_its_split(world):
    growing = world(1)
    for _ in range(12):
        growing.happen("burst")
    growing.check()
    before = dict(growing.ever)
    growing.away, growing.present = growing.present, []
    for _ in range(12):
        growing.happen("burst")
    growing.check()
    growing.happen("return")
    growing.check()
    selections, _ = growing.prepare()
    now = {one.sha256: selection.splits[one.path] for selection in selections for one in selection.usable}
    assert {digest: now[digest] for digest in before} == before
    assert "test" in before.values()


def test_a_new_bridge_is_left_out_and_everything_else_stays(world):
    growing = world(2)
    for _ in range(30):
        growing.happen("burst")
    growing.check()
    first = growing.prepare()[0][0]
    by_name = {shot.name: shot for shot in growing.present}
    shots_of = {split: by_name[path.rpartition("/")[2]] for path, split in first.splits.items()}
    train, test = shots_of["train"], shots_of["test"]
    growing.present.append(Shot("bridge", train.scene, "bridge.jpg", KCODES[0], flips=train.flips, bridge=test.scene))
    growing.check()
    second = growing.prepare()[0][0]
    found = {finding.path: finding for finding in second.findings}
    assert list(found) == [f"real_photos/{KCODES[0]}/bridge.jpg"]
    assert found[f"real_photos/{KCODES[0]}/bridge.jpg"].code == "bridges_splits"
    assert second.splits == first.splits
