"""``pillsnap data``: options, lines and exit statuses, in this process."""

import sys

import pytest

from pillsnap.cli.main import main
from pillsnap.core.manifest import Manifest


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pillsnap", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return run


def test_prepare_and_verify(call, raw, tmp_path):
    status, out, err = call("data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    assert status == 0, err
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.hash[:16] in out
    assert "none in two splits" in out
    assert "short of images or of the 3:7 ratio: 2" in out
    status, out, _ = call("data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    assert (status, "reused" in out) == (0, True)
    assert call("data", "verify", tmp_path / "out")[0] == 0
    next((raw / "real_photos" / "K-000059").iterdir()).unlink()
    status, out, err = call("data", "verify", tmp_path / "out")
    assert status == 1
    assert "missing: real_photos/K-000059/" in out
    assert "0 changed, 1 missing, 0 extra" in err


def test_the_experiment_file_goes_into_the_manifest(call, raw, tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text("preprocessing: {target_size: 64}\naugmentation: {rotation_degrees: 5}\n")
    assert call("data", "prepare", "--raw", raw, "--out", tmp_path / "out", "--config", config)[0] == 0
    summary = Manifest.load(tmp_path / "out").summary
    assert summary["preprocessing"]["target_size"] == 64
    assert summary["augmentation"]["train"]["rotation_degrees"] == 5


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
    arguments += ("--real-per-sitting", 1, "--workers", 1)
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
