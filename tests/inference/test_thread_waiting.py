from pathlib import Path
from types import SimpleNamespace

from pillsnap.inference.session import PillSession


def test_threads_that_answer_sleep_while_they_wait(tmp_path: Path, toys: SimpleNamespace) -> None:
    session = PillSession.load(toys.save_bundle(tmp_path / "toy.onnx", toys.toy_colors(2), "0" * 64), threads=2)
    options = session.engine._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2
