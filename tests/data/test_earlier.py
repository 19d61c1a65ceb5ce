import json

import pytest

from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.errors import CatalogError, ConfigError, DataError, ManifestError
from pillsnap.data.earlier import EarlierSplits, check_previous, load_earlier
from pillsnap.data.ledger import writing_ledger


def remember(shots, folder, splits, seed=0, kcodes=("K-000059", "K-030864"), **groups):
    folder.mkdir(exist_ok=True)
    with writing_ledger(folder / "pictures.parquet", seed) as ledger:
        ledger.add(
            {
                "path": key, "kcode": "K-000059", "domain": "real", "sha256": shots.digest(key), "used": True,
                "split": split, "group": groups.get(key, "K-000059/real/n0"), "code": None, "reason": None,
            }
            for key, split in splits.items()
        )  # fmt: skip
    drugs = tuple(Drug(kcode=kcode, drug_name=kcode) for kcode in kcodes)
    Catalog(version="1", drugs=drugs).write_class_mapping(folder / "class_mapping.json")
    (folder / "manifest.json").write_text("{}")
    return folder


def test_splits_of_pictures_and_sittings(shots, tmp_path):
    folder = remember(shots, tmp_path / "a", {"x": "train", "y": "test", "z": None}, y="K-000059/real/b1-s0-e90")
    earlier = load_earlier([folder], 0)
    wanted = [shots.digest(key) for key in "xyzw"]
    assert earlier.splits.of([*wanted, ""]) == {wanted[0]: "train", wanted[1]: "test"}
    assert earlier.splits.sittings == {"K-000059/real/b1-s0-e90": "test"}
    assert EarlierSplits.load([]).of(wanted) == {}


def test_every_sitting_is_remembered_whatever_its_group(shots, tmp_path):
    """A copy ties two sittings into one group; a picture that is left out has none."""
    first, second, left_out = (f"real/K-000059_{background}_0_0_0_90_000_200.jpg" for background in (1, 2, 3))
    pills = "real/K-000059-010224_0_4_0_0_90_000_200.png"
    splits = {first: "test", second: "test", left_out: "val", pills: "train", "real/IMG_1.jpg": "train"}
    tied = "K-000059/real/b1-s0-e90"
    folder = remember(shots, tmp_path / "a", splits, **{first: tied, second: tied, left_out: None})
    assert load_earlier([folder], 0).splits.sittings == {
        tied: "test",
        "K-000059/real/b2-s0-e90": "test",
        "K-000059/real/b3-s0-e90": "val",
    }
    # A picture that was renamed into a tested sitting, and left out for it, comes first and has no say.
    renamed = first.replace("_000_", "_045_")
    folder = remember(shots, tmp_path / "b", {renamed: "train", first: "test"}, **{renamed: None, first: tied})
    assert load_earlier([folder], 0).splits.sittings == {tied: "test"}


def test_indices_stay(shots, tmp_path):
    earlier = load_earlier([remember(shots, tmp_path / "a", {})], 0)
    new_list = Catalog(version="2", drugs=tuple(Drug(kcode=k, drug_name=k) for k in ("K-000001", "K-030864")))
    catalog = earlier.catalog(new_list)
    assert catalog.class_to_idx == {"K-000059": 0, "K-030864": 1, "K-000001": 2}
    assert [drug.kcode for drug in catalog.active] == ["K-030864", "K-000001"]


def test_no_data_set_fixes_nothing(tmp_path):
    earlier = load_earlier([tmp_path, tmp_path / "none"], 0)
    assert (earlier.mapping, earlier.ledgers, earlier.splits.sittings) == (None, (), {})


def test_two_data_sets_together(shots, tmp_path):
    one = remember(shots, tmp_path / "a", {"x": "train"})
    two = remember(shots, tmp_path / "b", {"x": "train", "y": "val"}, kcodes=("K-000059", "K-030864", "K-000001"))
    earlier = load_earlier([two, one], 0)
    assert set(earlier.splits.of([shots.digest("x"), shots.digest("y")]).values()) == {"train", "val"}
    assert earlier.mapping.kcodes[-1] == "K-000001"
    remember(shots, tmp_path / "b", {"x": "test"})
    with pytest.raises(ManifestError, match=r"1 pictures are in two splits.*another --out"):
        load_earlier([two, one], 0)
    remember(shots, tmp_path / "b", {"x": "train"}, kcodes=("K-030864", "K-000059"))
    with pytest.raises(DataError, match=r"K-000059 has index 0 in one.*--previous"):
        load_earlier([two, one], 0)


def test_another_seed(shots, tmp_path):
    folder = remember(shots, tmp_path / "a", {"x": "train"}, seed=4)
    with pytest.raises(ConfigError, match="was split with seed 4, not 0; keep --seed 4, or split anew with --fresh"):
        load_earlier([folder], 0)


def test_a_data_set_of_an_older_version_fixes_no_split(shots, tmp_path):
    folder = remember(shots, tmp_path / "a", {"x": "train"})
    (folder / "pictures.parquet").unlink()
    (folder / "manifest.json").write_text('{"manifest_version": "1.0"}')
    assert load_earlier([folder], 0).splits.of(["x"]) == {}


def test_lost_and_damaged_parts(shots, tmp_path):
    folder = remember(shots, tmp_path / "a", {"x": "train"})
    ledger, mapping = folder / "pictures.parquet", folder / "class_mapping.json"
    whole = ledger.read_bytes()
    for damage in (b"", b"PAR1 nonsense", whole[: len(whole) // 2]):
        ledger.write_bytes(damage)
        with pytest.raises(
            ManifestError, match=r"pictures\.parquet: cannot be read .*backup, or split anew with --fresh"
        ):
            load_earlier([folder], 0)
    ledger.unlink()
    with pytest.raises(ManifestError, match=r"pictures\.parquet: is lost, .*backup, or split anew with --fresh"):
        load_earlier([folder], 0)
    ledger.write_bytes(whole)
    mapping.unlink()
    with pytest.raises(ManifestError, match=r"class_mapping\.json: is lost, so indices could change"):
        load_earlier([folder], 0)
    mapping.write_text(json.dumps({"version": "1", "drugs": []}))
    with pytest.raises(CatalogError, match="is a drug list"):
        load_earlier([folder], 0)


@pytest.mark.parametrize("rest", ["rows.parquet", "splits.json"])
def test_a_data_set_that_lost_both_ledger_and_manifest(tmp_path, rest):
    (tmp_path / rest).write_text("{}")
    with pytest.raises(ManifestError, match=r"pictures\.parquet: is lost, .*backup, or split anew with --fresh"):
        load_earlier([tmp_path], 0)


def test_who_had_a_place(shots, tmp_path):
    folder = remember(shots, tmp_path / "a", {"x": "train", "y": "test", "z": None}, y=None)
    splits = load_earlier([folder], 0).splits
    assert splits.placed([*map(shots.digest, "xyzw"), ""]) == {shots.digest("x")}


def test_previous_must_be_a_data_set(shots, tmp_path):
    with pytest.raises(DataError, match=r"holds no pictures\.parquet; give the folder of a prepared data set"):
        check_previous(tmp_path)
    check_previous(remember(shots, tmp_path / "a", {}))
