"""Following an alias, as a server does: what is proven, what is kept, and what is not believed."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, ConfigError, GateRefusedError, StoreError
from pillsnap.gate.keys import generate
from pillsnap.registry.following import keep, kept, marked, prove
from pillsnap.registry.promotion import promote
from pillsnap.serving import sources
from pillsnap.serving.following import Follower
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.slot import Slot
from pillsnap.serving.sources import RegistrySource

Candidate = Callable[..., str]


@pytest.fixture
def champion(store: MlflowClient, candidate: Candidate, gate: Any) -> str:
    version = candidate()
    gate.judge(version)
    promote("pills", version)
    return version


def stored_files(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("mlartifacts/exp/models/*/artifacts/model.onnx"), key=lambda path: path.stat().st_mtime)


def source_in(home: Path, alias: str = "champion") -> RegistrySource:
    return RegistrySource("pills", alias, home, 1)


def test_the_champion_is_loaded_once_and_then_followed(
    champion: str, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    source = source_in(tmp_path / "home")
    first = source.look(None)
    assert first is not None
    assert (first.version, first.alias, first.kept) == ("1", "champion", False)
    assert first.statement is not None
    assert first.statement.bundle_sha256 == first.session.sha256
    assert source.look(first) is None
    gate.judge(candidate())
    promote("pills", "2")
    second = source.look(first)
    assert second is not None
    assert second.version == "2"
    assert source.look(second) is None


def test_the_mark_moves_with_all_that_matters(champion: str, gate: Any, tmp_path: Path) -> None:
    _, before = marked("pills", "champion")
    assert marked("pills", "champion")[1] == before
    gate.judge("1", again=True)
    _, judged = marked("pills", "champion")
    assert judged != before
    generate(tmp_path / "second.key", gate.trust.keys_folder, now=datetime.now(UTC))
    assert marked("pills", "champion")[1] != judged
    assert marked("pills", "challenger") == (None, None)
    with pytest.raises(ConfigError, match="the gate knows"):
        marked("pills", "best")


def test_attack_a_champion_whose_files_were_changed_is_not_served(
    champion: str, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    slot, metrics = Slot(), Metrics()
    source = source_in(tmp_path / "home")
    follower = Follower(slot, source, 3600, metrics)
    follower.look()
    gate.judge(candidate())
    promote("pills", "2")
    newest = stored_files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes() + b"\0")
    for _ in range(2):
        follower.look()
        assert slot.model is not None
        assert slot.model.version == "1"
        assert follower.standing.refused == "not_proven"
        assert b"pillsnap_champion_refused 1.0" in metrics.text()


def test_what_was_refused_is_not_downloaded_again_until_something_changes(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise GateRefusedError("no")

    monkeypatch.setattr("pillsnap.serving.sources.prove", refuse)
    source = source_in(tmp_path / "home")
    for _ in range(3):
        with pytest.raises(GateRefusedError, match="no"):
            source.look(None)
    assert len(asked) == 1


def test_attack_an_alias_written_into_the_database_is_not_served(
    store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    import sqlite3

    gate.judge(candidate(wrong=4))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(
            "INSERT INTO registered_model_aliases (alias, version, name, workspace) "
            "VALUES ('champion', 1, 'pills', 'default')"
        )
    with pytest.raises(GateRefusedError, match=r"(?s)is champion, but is not loaded: .*REJECT"):
        source_in(tmp_path / "home").look(None)


def test_there_is_none(store: MlflowClient, gate: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the registry has no champion of 'pills'; set one with"):
        source_in(tmp_path / "home").look(None)


def test_without_the_registry_the_kept_copy_answers(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    original = source_in(home).look(None)
    assert original is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    slot, metrics = Slot(), Metrics()
    follower = Follower(slot, source_in(home), 3600, metrics)
    follower.look()
    assert slot.model is not None
    assert (slot.model.version, slot.model.kept) == ("1", True)
    assert slot.model.session.sha256 == original.session.sha256
    assert not follower.standing.source_up
    assert b"pillsnap_registry_up 0.0" in metrics.text()


def test_when_the_registry_is_back_the_copy_gives_way(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    source_in(home).look(None)
    source = source_in(home)
    copy = source.kept()
    assert copy is not None
    fresh = source.look(copy)
    assert fresh is not None
    assert not fresh.kept


def test_a_newer_champion_replaces_the_copy(champion: str, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = source_in(home)
    first = source.look(None)
    gate.judge(candidate())
    promote("pills", "2")
    source.look(first)
    copy = source_in(home).kept()
    assert copy is not None
    assert copy.version == "2"
    assert len([path for path in (home / "champion" / "pills").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("what", ["model.onnx", "MLmodel", "envelope", "pointer", "gone"])
def test_attack_a_copy_that_was_changed_on_disk_is_not_loaded(
    champion: str, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    source = source_in(home)
    source.look(None)
    assert source.kept() is not None
    pointer = home / "champion" / "pills" / "proven.json"
    [folder] = [path for path in pointer.parent.iterdir() if path.is_dir()]
    if what == "gone":
        shutil.rmtree(folder)
    elif what == "pointer":
        pointer.write_text("{")
    elif what == "envelope":
        document = json.loads(pointer.read_text())
        document["envelope"] = document["envelope"].replace("A", "B", 1)
        pointer.write_text(json.dumps(document))
    else:
        (folder / what).write_bytes((folder / what).read_bytes() + b" ")
    assert source.kept() is None
    assert "the kept copy is not loaded" in caplog.text


def test_attack_a_copy_signed_by_a_revoked_key_is_not_loaded(champion: str, gate: Any, tmp_path: Path) -> None:
    source = source_in(tmp_path / "home")
    source.look(None)
    for path in gate.trust.keys_folder.iterdir():
        path.unlink()
    generate(tmp_path / "second.key", gate.trust.keys_folder, now=datetime.now(UTC))
    assert source.kept() is None


def test_a_copy_of_another_model_or_alias_is_not_taken(champion: str, gate: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    source_in(home).look(None)
    ring = gate.trust.ring()
    assert kept(home, "pills", "champion", ring) is not None
    assert kept(home, "other", "champion", ring) is None
    assert kept(home, "pills", "challenger", ring) is None


def test_a_full_disk_does_not_stop_serving(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pillsnap.registry.following.shutil.copytree", full)
    model = source_in(tmp_path / "home").look(None)
    assert model is not None
    assert "could not be kept" in caplog.text
    assert source_in(tmp_path / "home").kept() is None


def test_a_copy_that_could_not_be_written_is_written_later(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the model before would answer after the next start without the registry."""
    source = source_in(tmp_path / "home")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copytree", full)
        first = source.look(None)
    assert first is not None
    assert source.kept() is None
    assert source.look(first) is None
    assert source.kept() is None  # not at every look: the files are downloaded for it
    source._keep_again = 0.0
    assert source.look(first) is None
    copy = source.kept()
    assert copy is not None
    assert copy.version == "1"
    monkeypatch.setattr(sources, "prove", lambda *_: pytest.fail("it is there"))
    assert source.look(first) is None


def test_two_servers_keep_in_one_place(champion: str, tmp_path: Path) -> None:
    entry, _ = marked("pills", "champion")
    assert entry is not None
    with prove(entry, "champion") as proven:
        keep(proven, tmp_path / "home", "champion")
        keep(proven, tmp_path / "home", "champion")
    assert source_in(tmp_path / "home").kept() is not None


def test_a_damaged_copy_is_written_anew(champion: str, tmp_path: Path) -> None:
    assert source_in(tmp_path / "home").look(None) is not None
    [bundle] = (tmp_path / "home").rglob("model.onnx")
    whole = bundle.read_bytes()
    bundle.write_bytes(b"")
    assert source_in(tmp_path / "home").kept() is None
    assert source_in(tmp_path / "home").look(None) is not None, "as at the next start"
    assert bundle.read_bytes() == whole
    assert source_in(tmp_path / "home").kept() is not None


def test_servers_of_two_models_may_share_a_home(champion: str, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    candidate(name="others ..")
    gate.judge("1", name="others ..")
    promote("others ..", "1")
    first, second = source_in(tmp_path / "home"), source_in(tmp_path / "home")
    second.name = "others .."
    for source in (first, second):
        assert source.look(None) is not None
    for source in (first, second):
        found = source.kept()
        assert found is not None
        assert found.name == source.name


def test_what_is_refused_at_every_look_does_not_grow(
    champion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error is raised again and again; each time it would remember the way that it went."""
    source = source_in(tmp_path / "home")

    def without_its_engine(*_: Any, **__: Any) -> Any:
        raise BundleError("its engine is not here")

    monkeypatch.setattr(sources.PillSession, "load", without_its_engine)
    lengths = []
    for _ in range(20):
        with pytest.raises(BundleError) as caught:
            source.look(None)
        lengths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert lengths[-1] == lengths[1]


def test_a_challenger_that_is_wanted_is_not_advised_to_be_champion(champion: str, tmp_path: Path) -> None:
    source = source_in(tmp_path / "home")
    source.alias = "challenger"
    with pytest.raises(StoreError, match=r"no challenger of 'pills'.* promote VERSION --name pills --alias challenger"):
        source.look(None)


def test_a_champion_that_cannot_be_loaded_here_is_not_downloaded_at_every_look(
    champion: str, candidate: Candidate, gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_in(tmp_path / "home")
    downloads = []

    def counted(*arguments: Any) -> Any:
        downloads.append(arguments)
        return prove(*arguments)

    def without_its_engine(*_: Any, **__: Any) -> Any:
        raise BundleError("its engine is not here")

    monkeypatch.setattr(sources, "prove", counted)
    with monkeypatch.context() as patched:
        patched.setattr(sources.PillSession, "load", without_its_engine)
        for _ in range(3):
            with pytest.raises(BundleError, match="its engine is not here"):
                source.look(None)
    assert len(downloads) == 1
    gate.judge(candidate())
    promote("pills", "2")
    found = source.look(None)
    assert found is not None
    assert (found.version, len(downloads)) == ("2", 2)
