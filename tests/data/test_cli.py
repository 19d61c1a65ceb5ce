"""``pillsnap data``: options, lines and exit statuses, in this process."""

import pytest

from pillsnap.core.manifest import Manifest


@pytest.fixture
def prepare(call, raw, tmp_path):
    """The command on tiny pictures."""

    def run(*arguments):
        return call("data", "prepare", "--raw", raw, "--out", tmp_path / "out", "--min-side", 16, *arguments)

    return run


def test_prepare_and_verify(call, prepare, raw, tmp_path):
    status, out, err = prepare()
    assert status == 0, err
    manifest = Manifest.load(tmp_path / "out")
    lines = out.splitlines()
    # 16 real photos and 24 studio pictures a class, at least 50 are wanted
    assert lines[0] == "pillsnap: 80 images of 2 drugs"
    assert [line.split()[0] for line in lines[1:4]] == ["train", "val", "test"]
    assert "  capture groups: 16, none in two splits" in lines
    assert "  lacking something: 2" in lines
    assert any(
        "40 of 50 images, real share 40% (70% wanted): 19 more real photos needed; photograph next: 8×" in line
        for line in lines
    )
    assert f"audit: {tmp_path / 'out' / 'audit.html'}" in lines
    assert f"manifest {manifest.hash[:16]} written: {tmp_path / 'out'}" in lines[-2]
    assert lines[-1].startswith(f"next: pillsnap run --data {tmp_path / 'out'} --config ")
    status, out, _ = prepare()
    assert (status, "reused, nothing has changed" in out) == (0, True)
    assert call("data", "verify", tmp_path / "out")[0] == 0
    next((raw / "real_photos" / "K-000059").iterdir()).unlink()
    status, out, err = call("data", "verify", tmp_path / "out")
    assert status == 1
    assert "missing: real_photos/K-000059/" in out
    assert "0 changed, 1 missing, 0 extra" in err


def test_what_is_left_out_is_said(prepare, raw):
    folder = raw / "real_photos" / "K-000059"
    first, second = sorted(folder.iterdir())[:2]
    first.write_bytes(b"")
    (folder / "copy.jpg").write_bytes(second.read_bytes())
    status, out, err = prepare()
    assert status == 0, err
    assert f"  quarantined as empty: 1\n    real_photos/K-000059/{first.name}: " in out
    assert f"  dropped as copies: 1\n    real_photos/K-000059/copy.jpg = real_photos/K-000059/{second.name}" in out


def test_the_experiment_file_goes_into_the_manifest(prepare, tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text("preprocessing: {target_size: 64}\naugmentation: {rotation_degrees: 5}\n")
    assert prepare("--config", config)[0] == 0
    summary = Manifest.load(tmp_path / "out").summary
    assert summary["preprocessing"]["target_size"] == 64
    assert summary["augmentation"]["train"]["rotation_degrees"] == 5


def test_names_workers_and_trees(call, raw, tmp_path):
    status, _, err = call(
        "data", "prepare", "--drugs", raw / "drugs.json", "--studio", raw / "studio", "--real", raw / "real_photos",
        "--out", tmp_path / "out", "--name", "mine", "--workers", 1, "--min-side", 16, "--seed", 3,
    )  # fmt: skip
    assert status == 0, err
    summary = Manifest.load(tmp_path / "out").summary
    assert (summary["name"], summary["seed"]) == ("mine", 3)


def test_limits_of_the_audit(call, raw, tmp_path):
    arguments = ("data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    status, _, err = call(*arguments)
    assert (status, "40 too_small" in err) == (1, True)
    status, out, _ = call(*arguments, "--allow", "too_small")
    assert (status, "noted, too_small: 80" in out) == (0, True)
    assert call(*arguments, "--allow", "wrong_folder")[0] == 2
    assert call(*arguments, "--min-side", 0)[0] == 2


def test_the_share_of_damage(prepare, raw, tmp_path):
    for path in sorted((raw / "studio" / "K-000059").iterdir())[:8]:
        path.write_bytes(b"")
    status, _, err = prepare()
    assert (status, "8 of 80 pictures cannot be used, over the limit of 5%" in err) == (1, True)
    assert prepare("--max-damage", 0.1)[0] == 0
    assert prepare("--max-damage", 1.5)[0] == 2


def test_names_that_are_not_believed(prepare, tmp_path):
    assert prepare("--studio-layout", "folders", "--real-layout", "folders")[0] == 0
    rows = Manifest.load(tmp_path / "out").rows.to_pylist()
    assert {row["background"] for row in rows} == {None}
    assert prepare("--real-layout", "aihub")[0] == 2


def test_combinations(prepare, tiny, raw):
    tiny.picture(raw / "studio" / "K-000059-030864" / "K-000059-030864_0_0_0_0_90_000_200.png")
    assert "quarantined" not in prepare()[1]
    status, out, _ = prepare("--combinations")
    assert (status, "quarantined as bad_box: 2" in out) == (0, True)


def test_growing(call, prepare, raw, tmp_path):
    assert prepare()[0] == 0
    status, _, err = prepare("--seed", 1)
    assert (status, "keep --seed 0, or split anew with --fresh" in err) == (2, True)
    other = ("data", "prepare", "--raw", raw, "--out", tmp_path / "b", "--min-side", 16, "--previous", tmp_path / "out")
    assert call(*other, "--seed", 1)[0] == 2
    assert call(*other)[0] == 0
    assert Manifest.load(tmp_path / "b").hash == Manifest.load(tmp_path / "out").hash
    assert call(*other, "--fresh")[0] == 2
    (tmp_path / "out" / "pictures.parquet").unlink()
    status, _, err = prepare()
    assert (status, "pictures.parquet: is lost" in err) == (1, True)
    assert prepare("--fresh", "--seed", 1)[0] == 0


def test_a_drug_that_the_list_has_no_longer_is_named(call, tiny, tmp_path):
    three = ("K-000001", "K-000002", "K-000003")
    raw = tiny.raw(tmp_path / "three", three)
    prepared = ("data", "prepare", "--raw", raw, "--out", tmp_path / "out", "--min-side", 16)
    assert "retired" not in call(*prepared)[1]
    tiny.drug_list(raw / "drugs.json", three[:2])
    status, out, err = call(*prepared)
    assert status == 0, err
    assert out.splitlines()[0].endswith(" images of 2 drugs")
    assert "  retired, as the drug list has them no longer; never answered: 1\n    K-000003\n" in out


def test_wrong_use_ends_with_2(call, raw, tmp_path):
    assert call("data", "prepare", "--out", tmp_path / "out")[0] == 2
    assert call("data", "prepare", "--raw", raw)[0] == 2
    config = tmp_path / "experiment.yaml"
    config.write_text("preprocesing: {}\n")
    status, _, err = call("data", "prepare", "--raw", raw, "--out", tmp_path / "out", "--config", config)
    assert status == 2
    assert "preprocesing: unknown key" in err


def test_refusals_end_with_1_and_a_reason(call, raw, tmp_path):
    status, _, err = call("data", "prepare", "--raw", tmp_path / "none", "--out", tmp_path / "out")
    assert (status, "none: no such folder" in err) == (1, True)
    (raw / "drugs.json").unlink()
    status, _, err = call("data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    assert (status, "drugs.json: no such file" in err) == (1, True)
    status, _, err = call("data", "verify", tmp_path / "none")
    assert (status, "holds no manifest.json" in err) == (1, True)


def test_render(call, tmp_path):
    arguments = ("data", "render", "--out", tmp_path / "demo", "--drugs", 2, "--studio-per-drug", 3)
    arguments += ("--real-per-drug", 30, "--workers", 1)
    status, out, err = call(*arguments)
    assert status == 0, err
    assert "rendered" in out
    assert "there already" in call(*arguments)[1]
    assert call("data", "render", "--out", tmp_path / "demo", "--drugs", 100_000)[0] == 2


@pytest.mark.parametrize("command", ["prepare", "verify", "render"])
def test_help(call, command):
    status, out, _ = call("data", command, "--help")
    assert status == 0
    assert "Usage:" in out
