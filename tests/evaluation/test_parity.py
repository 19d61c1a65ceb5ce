from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from pillsnap.cli.main import cli
from pillsnap.core.errors import ConfigError, DataError, EvidenceError
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.parity import Contestant, parity_rows, parity_table
from pillsnap.inference.session import PillSession

IMAGES = [(label, label, "test", "real") for label in range(6) for _ in range(2)]
IMAGES[0] = (0, 1, "test", "real")  # painted as another one: answered wrongly


@pytest.fixture(scope="module")
def house(toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("parity")
    manifest = toys.save_manifest(root / "m", toys.toy_colors(6), IMAGES)
    bundle = toys.save_bundle(root / "b.onnx", toys.toy_colors(6))
    return SimpleNamespace(manifest=manifest, bundle=bundle, session=PillSession.load(bundle, threads=1))


def changed(house: SimpleNamespace, name: str, change: object) -> Contestant:
    of = Contestant.of_session(name, house.session)
    return Contestant(name, of.preprocessor, of.kcodes, lambda images: change(of.logits(images)))


def test_each_net_batch_and_way_has_its_row(house: SimpleNamespace) -> None:
    asked: list[int] = []
    same = changed(house, "same", lambda logits: (asked.append(len(logits)), logits)[1])
    rows = parity_rows([Contestant.of_session("first", house.session), same], house.manifest)
    assert [(row.name, row.batch, row.way) for row in rows] == [
        (name, batch, way) for way in ("direct", "client") for name in ("first", "same") for batch in (1, 8)
    ]
    assert sorted(asked) == [1] * 24 + [4, 4, 8, 8]  # 12 images, two ways
    for row in rows:
        assert (row.images, row.top1) == (12, pytest.approx(11 / 12))
        assert row.low < row.top1 < row.high
    for row in rows[:4]:
        assert row.agreement == 1
        assert row.largest_difference < 1e-6
    assert rows[4].largest_difference > 1e-6  # the client's JPEG


def test_a_difference_is_counted_by_hand(house: SimpleNamespace) -> None:
    def one_wrong(logits_NK: np.ndarray) -> np.ndarray:
        found = logits_NK.copy()
        found[:, 0] += 1
        return found

    first = Contestant.of_session("first", house.session)
    rows = parity_rows([first, changed(house, "off", one_wrong)], house.manifest, batches=[8])
    images = [(house.manifest.root / path).read_bytes() for path in house.manifest.split("test")["path"].to_pylist()]
    largest = np.abs(house.session.predict(house.session.preprocessor.prepare_batch(images)).logits_NK).max()
    assert rows[1].largest_difference == pytest.approx(1 / largest, rel=1e-4)
    assert rows[1].mean_difference == pytest.approx(1 / largest / 6, rel=1e-4)
    reversed_rows = parity_rows([first, changed(house, "other", lambda z: -z)], house.manifest, batches=[8])
    assert reversed_rows[1].agreement < 0.5
    assert reversed_rows[1].top1 < 0.5


def test_a_limit_takes_images_evenly(house: SimpleNamespace) -> None:
    [row, _] = parity_rows([Contestant.of_session("b", house.session)], house.manifest, batches=[2], limit=5)
    assert row.images == 5


def test_a_retired_drug_has_no_part(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(6), IMAGES[4:], retired=(1,))
    session = PillSession.load(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6), retired=(1,)), threads=1)
    open_again = Contestant.of_session("first", session)

    def eager(images: np.ndarray) -> np.ndarray:
        logits_NK = session.predict(images).logits_NK.copy()
        logits_NK[:, 1] = 1e6
        return logits_NK

    rows = parity_rows(
        [open_again, Contestant("eager", open_again.preprocessor, open_again.kcodes, eager)], manifest, batches=[4]
    )
    assert [row.agreement for row in rows[:2]] == [1, 1]
    assert rows[1].largest_difference == 0
    assert rows[1].top1 == 1


def test_what_cannot_be_compared_is_refused(toys: SimpleNamespace, house: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one net"):
        parity_rows([], house.manifest)
    five = toys.save_manifest(tmp_path / "five", toys.toy_colors(5), [(0, 0, "test", "real")])
    with pytest.raises(EvidenceError, match="b: its classes are not those of"):
        parity_rows([Contestant.of_session("b", house.session)], five)
    empty = toys.save_manifest(tmp_path / "empty", toys.toy_colors(6), [(0, 0, "train", "real")])
    with pytest.raises(DataError, match="holds no images"):
        parity_rows([Contestant.of_session("b", house.session)], empty)


def test_the_table_and_the_command(house: SimpleNamespace, tmp_path: Path) -> None:
    target = tmp_path / "p.json"
    arguments = ["parity", str(house.bundle), "--manifest", str(house.manifest.root), "--json", str(target)]
    done = CliRunner().invoke(cli, [*arguments, "--threads", "1"])
    assert done.exit_code == 0, done.output
    rows = parity_rows([Contestant.of_session("b (float32, onnxruntime)", house.session)], house.manifest)
    assert parity_table(rows) in done.output
    assert "| b (float32, onnxruntime) | 8 | client | 12 | 91.67% |" in done.output
    assert [row["batch"] for row in json.loads(target.read_text())] == [1, 8, 1, 8]
    assert Manifest.load(house.manifest.root).hash == house.manifest.hash
