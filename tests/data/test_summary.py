import json

from pillsnap.core.manifest import ROW_SCHEMA, SPLITS
from pillsnap.data.earlier import EarlierSplits
from pillsnap.data.selection import Rules, select
from pillsnap.data.summary import Tally, class_rows, summarize

RULES = Rules(seed=0, ratio=0.7, minimum=10)


def tallied(shots, *classes):
    tally, selections = Tally(RULES), []
    for kcode, pictures in classes:
        selections.append(select(kcode, pictures, RULES, EarlierSplits.load([])))
        tally.add(selections[-1], f"약 {kcode}", len(pictures))
    return tally, selections


def pictures(shots, kcode, backgrounds=5):
    real = [
        shots.found(shots.real(b, s, light, 0, kcode), kcode=kcode)
        for b in range(backgrounds)
        for s in (0, 1)
        for light in range(3)
    ]
    studio = [
        shots.found(shots.studio(b, s, 0, turn, kcode), kcode=kcode, domain="studio")
        for b in range(3) for s in (0, 1) for turn in range(0, 80, 20)
    ]  # fmt: skip
    return [*real, *studio]


def test_counts_add_up(shots):
    broken = shots.found("broken.jpg", fault="truncated")
    copy = shots.found("copy.jpg", key=shots.real(0))
    classes = [("K-000059", [*pictures(shots, "K-000059"), broken, copy]), ("K-030864", pictures(shots, "K-030864", 1))]
    tally, selections = tallied(shots, *classes)
    summary, report = summarize(tally), tally.report(tally.found)
    # 30 real photos: 43 in all; 6 real photos: 10 in all, the minimum
    assert [entry["images"] for entry in summary["classes"].values()] == [43, 10]
    assert summary["total_images"] == 53 == sum(summary["splits"].values()) == sum(summary["domains"].values())
    assert summary["domains"] == {"studio": 17, "real": 36}
    assert {s: sum(summary["splits_by_domain"][s].values()) for s in SPLITS} == summary["splits"]
    assert summary["groups"] == len({s.groups[one.path] for s in selections for one in s.chosen()})
    for kcode, entry in summary["classes"].items():
        assert sum(entry[split] for split in SPLITS) == entry["images"] == entry["real"] + entry["studio_used"], kcode
    left_out = sum(len(paths) for paths in report["left_out"].values())
    used, copies = report["pictures_used"], len(report["duplicate"])
    assert report["pictures_found"] == used + report["studio_not_needed"] + left_out + copies
    assert (left_out, copies) == (1, 1)
    assert json.loads(json.dumps(report)) == report


def test_only_classes_that_lack_something_are_listed(shots):
    tally, _ = tallied(shots, ("K-000059", pictures(shots, "K-000059")), ("K-030864", pictures(shots, "K-030864", 1)))
    listed = tally.report(tally.found)["classes"]
    assert list(listed) == ["K-030864"]
    assert listed["K-030864"]["drug_name"] == "약 K-030864"
    assert listed["K-030864"]["missing_real"] == 1
    absent = [problem for problem in listed["K-030864"]["problems"] if problem.startswith("real photos: none on")]
    assert len(absent) == 4
    assert sum(entry["photos"] for entry in listed["K-030864"]["photograph_next"]) == 4 * 2 * 8
    assert tally.classes["K-030864"]["missing"] == listed["K-030864"]["empty_splits"] == ["test/studio", "val/real"]


def test_rows(shots):
    combination = shots.found("K-000059-030864_0_2_1_0_75_040_200.png", domain="studio", combination=True)
    _, (selection,) = tallied(
        shots, ("K-000059", [shots.found(shots.real(3, 1, 2, 45)), shots.found("a.jpg"), combination])
    )
    table = class_rows(selection, 7)
    assert table.schema == ROW_SCHEMA
    rows = {row["path"].rpartition("/")[2]: row for row in table.to_pylist()}
    named, plain, boxed = rows[shots.real(3, 1, 2, 45)], rows["a.jpg"], rows["K-000059-030864_0_2_1_0_75_040_200.png"]
    fields = ("background", "light", "side", "elevation", "rotation")
    assert [named[name] for name in fields] == [3, 2, 1, 90, 45]
    assert [plain[name] for name in fields] == [None] * 5
    assert [boxed[name] for name in fields] == [2, 0, 1, 75, 40]
    assert [boxed[f"box_{name}"] for name in ("x", "y", "width", "height")] == [1, 2, 30, 40]
    assert named["box_x"] is None
    assert {row["label"] for row in rows.values()} == {7}
    assert boxed["split"] == "train"
