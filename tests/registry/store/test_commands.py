"""``pillsnap registry history`` and ``verify`` on a real record."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from pillsnap.cli.registry_audit import history, verify
from pillsnap.core.errors import ConfigError, StoreError, TamperedError


@pytest.fixture
def recorded(shelf: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    shelf.promote(shelf.judged())
    shelf.judged(name="others")
    with pytest.raises(MlflowException):
        shelf.promote(shelf.judged("HOLD"))
    return shelf


def test_history(recorded: Any) -> None:
    lines = CliRunner().invoke(history, [], catch_exceptions=False).output.splitlines()
    assert "done  set champion  pills version 1 PROMOTE" in lines[1]
    assert "refused  set champion  pills version 2" in lines[4]
    assert "does not become champion: HOLD" in lines[5]
    told = CliRunner().invoke(history, ["--name", "others", "--json"], catch_exceptions=False).output
    [row] = [json.loads(line) for line in told.splitlines()]
    assert (row["action"], row["model"], len(row["hash"])) == ("judged", "others", 64)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_verify(recorded: Any) -> None:
    said = CliRunner().invoke(verify, [], catch_exceptions=False)
    assert said.exit_code == 0
    assert re.fullmatch(
        r"the record of \S+ holds: 5 rows, every champion and challenger explained and proven\n"
        r"the gate signed row 3 on \d{4}-\d\d-\d\d \d\d:\d\d UTC; 2 entries since: these could be changed unseen by "
        r"who can write to the database\n",
        said.output,
    ), said.output
    assert "geheim" not in said.output
    recorded.sql("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'")
    with pytest.raises(TamperedError, match="champion of pills is version 2, the record says 1") as caught:
        CliRunner().invoke(verify, [], catch_exceptions=False)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_verify_looks_while_nobody_writes(recorded: Any) -> None:
    """Else a row that comes between two looks would read as one that was taken away."""
    done = threading.Event()

    def refuse_and_refuse() -> None:
        while not done.is_set():
            with pytest.raises(MlflowException):
                recorded.promote("2")

    writer = threading.Thread(target=refuse_and_refuse)
    writer.start()
    try:
        for _ in range(5):
            assert CliRunner().invoke(verify, [], catch_exceptions=False).exit_code == 0
    finally:
        done.set()
        writer.join()
    assert len(recorded.rows()) > 5


def test_verify_with_what_was_kept_elsewhere(recorded: Any, tmp_path: Path) -> None:
    told = CliRunner().invoke(history, ["--json"], catch_exceptions=False).output
    (tmp_path / "kept.jsonl").write_text(told)
    (tmp_path / "envelope.json").write_text(recorded.tags("1")["gate.envelope"])
    options = ["--kept", str(tmp_path / "kept.jsonl"), "--kept", str(tmp_path / "envelope.json")]
    assert CliRunner().invoke(verify, options, catch_exceptions=False).exit_code == 0
    row = json.loads(told.splitlines()[-1])
    (tmp_path / "kept.jsonl").write_text(json.dumps({**row, "number": row["number"] + 1}))
    with pytest.raises(
        TamperedError, match=r"kept\.jsonl line 1 holds row 6, and the record ends at row 5: history was"
    ):
        CliRunner().invoke(verify, options, catch_exceptions=False)
    for text, said in (("{}", "line 1 is no row of history --json, and no envelope"), ("", "is empty")):
        (tmp_path / "kept.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=said):
            CliRunner().invoke(verify, options, catch_exceptions=False)


def test_attack_a_name_that_cuts_a_kept_row_in_two(recorded: Any, tmp_path: Path) -> None:
    """U+2028 ends a line for some readers, and stands in JSON as it is."""
    with pytest.raises(MlflowException):
        recorded.promote("1", "champion\u2028")
    told = CliRunner().invoke(history, ["--json"], catch_exceptions=False).output
    assert "\u2028" in told
    (tmp_path / "kept.jsonl").write_text(told + "\n\n", encoding="utf-8")
    options = ["--kept", str(tmp_path / "kept.jsonl")]
    assert CliRunner().invoke(verify, options, catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe{", "is no text"), (b"[" * 100_000, "line 1 is no row")])
def test_attack_a_kept_file_that_breaks_its_reader(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "kept.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(verify, ["--kept", str(tmp_path / "kept.jsonl")], catch_exceptions=False)


def test_verify_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/typo.db")
    with pytest.raises(StoreError, match=r"typo\.db: no such database; set MLFLOW_TRACKING_URI"):
        CliRunner().invoke(verify, [], catch_exceptions=False)
    assert not (tmp_path / "typo.db").exists()


def test_verify_says_what_would_not_be_loaded(recorded: Any) -> None:
    (recorded.files("1") / "model.onnx").write_bytes(b"another net")
    with pytest.raises(TamperedError, match=r"champion, and not loaded: pills version 1: its file .* was changed"):
        CliRunner().invoke(verify, [], catch_exceptions=False)


def test_verify_checks_the_envelopes_key(recorded: Any) -> None:
    for key in (recorded.trust.folder / "keys").iterdir():
        key.unlink()
    with pytest.raises(TamperedError, match=r"the envelope in row 1 signed by key '\w+', which is not trusted here"):
        CliRunner().invoke(verify, [], catch_exceptions=False)


def test_verify_says_whose_files_it_cannot_see(recorded: Any) -> None:
    recorded.sql("UPDATE model_versions SET storage_location = 'mlflow-artifacts:/1', source = 'mlflow-artifacts:/1'")
    said = CliRunner().invoke(verify, [], catch_exceptions=False)
    assert said.exit_code == 0
    assert "only the envelope was checked of champion: pills version 1: its files lie behind" in said.output


def test_a_server_does_not_show_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="run this where the server runs"):
        CliRunner().invoke(verify, [], catch_exceptions=False)
