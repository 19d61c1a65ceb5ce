from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pillsnap.core.errors import ConfigError
from pillsnap.gate.keys import generate, revoke
from pillsnap.gate.policy import DEFAULT_PATH, Policy
from pillsnap.gate.trust import VARIABLE, TrustRoot

OURS = Path(__file__).parents[2] / DEFAULT_PATH


def test_the_projects_own_folder_holds_wherever_one_calls_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "registry").mkdir()
    (tmp_path / DEFAULT_PATH).write_text("policy_version: 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # an attacker's folder
    trust = TrustRoot.find()
    assert trust.folder == OURS.parent
    assert trust.policy() == Policy.load(OURS)
    assert (trust.keys_folder, trust.roles_file) == (OURS.parent / "keys", OURS.parent / "roles.yaml")


def test_an_installation_without_a_checkout_has_it_under_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("pillsnap.gate.trust._OF_THE_PROJECT", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert TrustRoot.find().folder == tmp_path / "registry"
    with pytest.raises(ConfigError, match="no gate policy there"):
        TrustRoot.find().policy()


def test_another_folder_is_named_and_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=f"{VARIABLE}=.*nothing: no such folder"):
        TrustRoot.find()
    (tmp_path / "named").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "named")
    assert TrustRoot.find().folder == tmp_path / "named"


def test_everything_is_read_anew(tmp_path: Path) -> None:
    trust = TrustRoot(tmp_path)
    assert trust.ring().keys == {}
    shutil.copy(OURS, tmp_path / OURS.name)
    before = trust.policy()
    text = OURS.read_text(encoding="utf-8").replace("decision_max_age_days: 30", "decision_max_age_days: 7")
    (tmp_path / OURS.name).write_text(text, encoding="utf-8")
    assert trust.policy().sha256 != before.sha256
    now = datetime(2026, 11, 24, tzinfo=UTC)
    key = generate(tmp_path / "private", trust.keys_folder, now=now)
    assert trust.ring().keys[key.key_id].revoked is None
    revoke(trust.keys_folder, key.key_id, now=now)
    assert trust.ring().keys[key.key_id].revoked == now
