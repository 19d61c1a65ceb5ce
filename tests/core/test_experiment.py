import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig, flatten, parse_override

DEFAULT = ExperimentConfig()
EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
NUMBERS = sorted(
    key
    for key, value in DEFAULT.flat().items()
    if isinstance(value, float)
    and not key.startswith(("tuning.", "preprocessing."))
    and key not in ("training.min_lr", "augmentation.cutmix_alpha")
)


def load(tmp_path, text, **overrides):
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return ExperimentConfig.load(path, overrides)


def test_defaults_are_the_reference_configuration():
    flat = DEFAULT.flat()
    for key, value in {
        "model.backbone": "tf_efficientnetv2_s",
        "model.drop_rate": 0.3,
        "model.drop_path_rate": 0.2,
        "data.batch_size": 32,
        "data.workers": 8,
        "training.epochs": 50,
        "training.warmup_epochs": 3,
        "training.base_lr": 1e-3,
        "training.min_lr": 1e-6,
        "training.weight_decay": 5e-4,
        "training.label_smoothing": 0.1,
        "training.gradient_clip": 1.0,
        "schedule.warmup_factor": 0.001,
        "augmentation.rotation_degrees": 30,
        "augmentation.random_crop.scale": [0.8, 1.0],
        "augmentation.blur.kernel": 5,
        "augmentation.random_erasing": 0.2,
        "augmentation.mixup_alpha": 0.2,
        "augmentation.cutmix_alpha": 1.0,
        "augmentation.mix_probability": 0.5,
        "checkpoints.keep_best": 3,
        "logging.every_steps": 100,
        "preprocessing.target_size": 512,
    }.items():
        assert flat[key] == value, key


def test_an_empty_file_is_the_reference_and_yaml_survives(tmp_path):
    assert load(tmp_path, "") == DEFAULT
    assert load(tmp_path, DEFAULT.to_yaml()) == DEFAULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traning: {}", r"experiment\.yaml: traning: unknown key"),
        ("training: {epoch: 3}", r"training\.epoch: unknown key"),
        ("training: {epochs: many}", r"training\.epochs: .*integer.* \(found 'many'\)"),
        ("training: {epochs: 0}", r"training\.epochs: .*greater"),
        ("training: 3", "training: "),
        ("training: {base_lr: .nan}", r"training\.base_lr"),
        ("training: {base_lr: .inf}", r"training\.base_lr"),
        ("data: {batch_size: 7}", "batch_size must be even"),
        ("training: {epochs: 2}", "warmup_epochs"),
        ("model: {weights: w.pth, pretrained: false}", "would not be used"),
        ("augmentation: {blur: {kernel: 4}}", "kernel must be odd"),
        ("augmentation: {random_crop: {scale: [1.0, 0.8]}}", "the smaller one first"),
        ("preprocessing: {std: [0, 1, 1]}", r"preprocessing\.std"),
        ("tuning: {space: {training.lr: {low: 0, high: 1}}}", "'training.lr' is not a number of this file"),
        ("tuning: {space: {training.base_lr: {low: 1, high: 0}}}", "must be below high"),
        ("distillation: {weight: 0.5}", r"distillation\.teacher: Field required"),
        ("distillation: {teacher: ''}", r"distillation\.teacher"),
        ("distillation: {teacher: a.pt, weight: 1.1}", r"distillation\.weight: .*less than or equal to 1"),
        ("distillation: {teacher: a.pt, temperature: 0}", r"distillation\.temperature: .*greater than 0"),
        ("distillation: {teacher: a.pt, alpha: 0.5}", r"distillation\.alpha: unknown key"),
        ("1: 2", "1: Keys should be strings"),
        ("- a", "expected keys and values"),
        ("a: [", "line 1: not valid YAML"),
    ],
)
def test_mistakes_name_file_key_and_value(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "experiment.yaml"))
    assert error.value.exit_status == 2


def test_all_mistakes_are_listed(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "a: 1\nb: 2\n")
    assert len(str(error.value).splitlines()) == 2


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        ExperimentConfig.load(tmp_path / "none.yaml")


@given(st.sampled_from(NUMBERS), st.floats(0.11, 0.49))
def test_an_override_changes_its_key_and_nothing_else(key, value):
    changed = DEFAULT.with_overrides({key: value}).flat()
    expected = {**DEFAULT.flat(), key: value}
    assert changed == expected


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers() | st.lists(st.integers()), min_size=1))
def test_flatten_keeps_every_leaf(inner):
    assert flatten({"x": {"y": inner}, "z": 1}) == {**{f"x.y.{key}": value for key, value in inner.items()}, "z": 1}


def test_overrides_are_stronger_than_the_file(tmp_path):
    config = load(tmp_path, "training: {epochs: 9, base_lr: 0.01}", **{"training.epochs": 20, "name": "b"})
    assert (config.training.epochs, config.training.base_lr, config.name) == (20, 0.01, "b")
    with pytest.raises(ConfigError, match=r"training\.epoch: unknown key; is training\.epochs meant\?$"):
        load(tmp_path, "", **{"training.epoch": 1})


def test_each_mistake_names_where_it_was_made(tmp_path):
    text = "training: {epochs: -1}\ndistillation: {teacher: a.pt, wait: 1}"
    with pytest.raises(ConfigError) as error_info:
        load(tmp_path, text, **{"model": {"drop": 1}, "zzz": 0})
    said = str(error_info.value).splitlines()
    file = tmp_path / "experiment.yaml"
    assert [line.split(" (found")[0] for line in said] == [
        "the command line: model.drop: unknown key; is model.drop_rate meant?",
        f"{file}: training.epochs: Input should be greater than or equal to 1",
        f"{file}: distillation.wait: unknown key; is distillation.weight meant?",
        "the command line: zzz: unknown key; check the spelling",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epochs=3", ("training.epochs", 3)),
        ("training.base_lr=1e-3", ("training.base_lr", 0.001)),
        ("training.gradient_clip=null", ("training.gradient_clip", None)),
        ("model.pretrained=false", ("model.pretrained", False)),
        ("augmentation.random_crop.scale=[0.5, 1]", ("augmentation.random_crop.scale", [0.5, 1])),
        ("name=a=b", ("name", "a=b")),
        ("model.kwargs.rate=1e-3", ("model.kwargs.rate", 0.001)),
        # the field's type decides: a text stays as it is written
        ("name=1e5", ("name", "1e5")),
        ("name=12e4567", ("name", "12e4567")),
        ("name=nan", ("name", "nan")),
        ("name=007", ("name", "007")),
        ("name=2026-11-24", ("name", "2026-11-24")),
        ("name='quoted'", ("name", "quoted")),
        ("model.weights=1e5", ("model.weights", "1e5")),
        ("model.weights=null", ("model.weights", None)),
        ("distillation.teacher=yes", ("distillation.teacher", "yes")),
    ],
)
def test_overrides_of_the_command_line(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["training.epochs", "=3", "name=[1"])
def test_bad_overrides(text):
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        parse_override(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_read_as_itself(value):
    assert parse_override(f"x={value!r}") == ("x", value)


def test_values_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        DEFAULT.name = "other"  # type: ignore[misc]


def test_yaml_of_the_reference_is_plain():
    assert yaml.safe_load(DEFAULT.to_yaml())["augmentation"]["cutmix_minmax"] == [0.1, 1.0]


@pytest.mark.parametrize(
    "key", ["preprocessing.clahe.clip_limit", "training.epochs", "training.warmup_epochs", "data.batch_size", "seed"]
)
def test_what_the_trials_share_cannot_be_searched(key):
    with pytest.raises(ConfigError, match="cannot be varied"):
        ExperimentConfig.build({"tuning": {"space": {key: {"low": 1, "high": 2}}}}, None, "x.yaml")


def test_the_ends_of_a_search_range_must_be_allowed():
    space = {"training.base_lr": {"low": 1e-9, "high": 1e-3}}
    config = ExperimentConfig.build({"tuning": {"space": space}}, None, "x.yaml")
    with pytest.raises(ConfigError, match=r"tuning\.space: training\.base_lr=1e-09: .*min_lr"):
        config.check_search_ends("x.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_load_and_could_be_tuned(path):
    config = ExperimentConfig.load(str(path))
    assert config.name == path.stem
    config.check_search_ends(str(path))
    header = path.read_text(encoding="utf-8").splitlines()[:3]
    assert [line.split(":")[0] for line in header] == ["# Question", "# Command", "# Expected"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {accumulate: 0}", r"training\.accumulate"),
        ("training: {layer_decay: 0}", r"training\.layer_decay"),
        ("training: {layer_decay: 1.1}", r"training\.layer_decay"),
        ("training: {mixed_precision: maybe}", r"training\.mixed_precision"),
        ("augmentation: {cutmix_alpha: 0.5}", r"cutmix_alpha \(0\.5\) would do nothing while cutmix_minmax"),
        ("training: {freeze_epochs: 50}", r"freeze_epochs \(50\) must be fewer than epochs \(50\)"),
        ("training: {mix_off_epochs: 50}", r"mix_off_epochs \(50\) must be fewer than epochs \(50\)"),
    ],
)
def test_mistakes_of_the_recipe_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)
