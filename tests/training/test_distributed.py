"""Two processes of torchrun train what one would."""

from __future__ import annotations

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training import distributed
from pillsnap.training.batches import EpochSampler, TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.distributed import Ranks, require_same, require_shares, share_of_batches
from pillsnap.training.trainer import Nobody, fit

Launch = Callable[..., tuple[int, str]]
EPOCHS = 2
MIXED = {
    "model.backbone": "vit_tiny_patch16_224",  # layer norm: torch has no batch norm over processes on the CPU
    "model.kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "qkv_bias": False},
    "model.drop_rate": 0,
    "model.drop_path_rate": 0,
    "augmentation.mix_probability": 0.8,
    "augmentation.random_erasing": 0,
    "training.epochs": EPOCHS,
    "training.ema_decay": 0.9,
    "logging.every_steps": 1,
}
"""All but dropout and erasing, which draw other numbers in each process."""


def _agent(script: Path, words: list[str], log: Path) -> None:
    """As torchrun, in a process that has torch loaded: two of it, and what fails ends the other."""
    with log.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": f"{port}", "TORCHELASTIC_RUN_ID": "test"}
        sys.argv, status = [str(script), *words], 1
        try:
            runpy.run_path(str(script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)

    def end_all(*_: object) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end_all)
    failed = False
    for _ in range(2):
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = True
            end_all()
    os._exit(failed)


@pytest.fixture(params=["forked", pytest.param("torchrun", marks=pytest.mark.long)])
def launch(
    data: TrainingData,
    tiny_config: Callable[..., ExperimentConfig],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    forkserver: Any,
) -> Launch:
    """``launch(overrides, failure)``: two processes; the launcher's exit status and what they said."""

    def run(overrides: dict[str, Any], failure: str = "", folder: str = "two") -> tuple[int, str]:
        (tmp_path / "c.yaml").write_text(tiny_config(overrides).to_yaml())
        script = Path(__file__).with_name("one_of_several.py")
        places = (data.manifest.root, data.cache.folder.parent, tmp_path / "c.yaml", tmp_path / folder)
        words = [*map(str, places), *([failure] if failure else [])]
        if request.param == "forked":
            return forked(forkserver, script, words, tmp_path / "log")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        done = subprocess.run(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout

    return run


def forked(forkserver: Any, script: Path, words: list[str], log: Path) -> tuple[int, str]:
    agent = forkserver.Process(target=_agent, args=(script, words, log))
    agent.start()
    agent.join(120)
    if agent.is_alive():
        agent.kill()
        pytest.fail(f"it does not end:\n{log.read_text()}")
    return agent.exitcode or 0, log.read_text()


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(distributed, "ranks", lambda: Ranks(rank, world))


# --- the shares


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_shares_are_the_batches_and_mixup_pairs_stay_together(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    order_N, batch_size = np.random.default_rng(0).permutation(45), 16
    batches = order_N[:32].reshape(2, 16)
    pairs = {frozenset(pair) for batch in batches for pair in zip(batch.tolist(), batch[::-1].tolist(), strict=True)}
    seen: list[list[int]] = [[], []]
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        share = share_of_batches(order_N, batch_size)[: 32 // world].reshape(2, -1)
        for batch, ours in zip(seen, share.tolist(), strict=True):
            batch += ours
            assert {frozenset(pair) for pair in zip(ours, ours[::-1], strict=True)} <= pairs
    assert [set(batch) for batch in seen] == [set(batch.tolist()) for batch in batches]
    assert [len(batch) for batch in seen] == [16, 16]


def test_the_sampler_gives_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(45)
    whole = {row for _, row in list(EpochSampler(rows, 1, 16))[:32]}
    shares = []
    for rank in (0, 1):
        as_rank(monkeypatch, rank, 2)
        sampler = EpochSampler(rows, 1, 16)
        shares.append([row for _, row in sampler])
        assert len(sampler) == len(shares[-1]) == 16
    assert set(shares[0]) | set(shares[1]) == whole


def test_all_processes_have_the_same_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "from_first", lambda value: "abc")
    require_same("abc", "the teacher")
    with pytest.raises(
        TrainingError, match=r"the teacher is another one here \(def\) than in the first process \(abc\)"
    ):
        require_same("def", "the teacher")


def test_a_batch_that_cannot_be_shared_is_misconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 0, 3)
    with pytest.raises(ConfigError, match=r"data\.batch_size: 16 .*all 3 processes .* multiple of 6"):
        require_shares(16)
    require_shares(12)


# --- two processes


@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_train_what_one_would(
    launch: Launch,
    data: TrainingData,
    tiny_config: Callable[..., ExperimentConfig],
    trained: SimpleNamespace,
    tmp_path: Path,
    taught: bool,
) -> None:
    class Told(Nobody):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_step(self, step: int, metrics: dict[str, float]) -> None:
            self.losses.append(metrics["step_loss"])

    config = {**MIXED, "distillation.teacher": str(trained.result.best_checkpoint)} if taught else MIXED
    status, said = launch(config)
    assert status == 0, said
    alone = Told()
    result = fit(tiny_config(config), data, tmp_path / "one", alone)
    one = Checkpoint.load(tmp_path / "one" / "last.pt")
    two = Checkpoint.load(tmp_path / "two" / "last.pt")
    losses = [float(line.split()[2]) for line in said.splitlines() if line.startswith("step ")]
    assert losses == pytest.approx(alone.losses, abs=2e-5), "each step told once, by the first process"
    for key, value in one.state_dict.items():
        torch.testing.assert_close(two.state_dict[key], value, rtol=1e-3, atol=2e-4, msg=key)
    of_teacher = ("train_label_loss", "train_distillation_loss") if taught else ()
    for key in ("train_loss", "val_loss", "val_plain_loss", *of_teacher):
        assert two.metrics[key] == pytest.approx(one.metrics[key], rel=1e-4), key
    for rank in (0, 1):
        assert f"process {rank} of 2: best epoch {result.best_epoch} of {EPOCHS}" in said


def test_two_processes_go_on_as_if_nothing_had_happened(launch: Launch, tmp_path: Path) -> None:
    """With dropout, erasing and batch norm: each process has its own generators, and all are kept."""
    everything = {"training.epochs": 3, "model.drop_rate": 0.5, "augmentation.random_erasing": 0.5}
    assert launch(everything, folder="whole")[0] == 0
    status, said = launch(everything, "raise")
    assert status != 0
    assert "epoch 2" not in said.splitlines()
    status, said = launch(everything)
    assert status == 0, said
    assert [line for line in said.splitlines() if line.startswith("epoch")] == ["epoch 2", "epoch 3"]
    whole, resumed = (Checkpoint.load(tmp_path / name / "last.pt").state_dict for name in ("whole", "two"))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize(("budget", "epochs"), [("budget", 3), ("no time", 1)])
def test_the_time_budget_of_the_first_process_is_that_of_all(launch: Launch, budget: str, epochs: int) -> None:
    """Only the first one has a deadline: the others must not go on to an epoch while it asks them."""
    status, said = launch({"training.epochs": 3}, budget)
    assert status == 0, said
    for rank in (0, 1):
        assert re.search(rf"process {rank} of 2: best epoch \d of {epochs}\D", said), said


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("raise", "TrainingError: process 1 failed: ValueError: a fault of its own"),
        ("die", "TrainingError: process 1 of 2 ended without a word"),
        ("terminate", "KeyboardInterrupt"),
        ("terminate late", "KeyboardInterrupt"),
    ],
)
def test_one_that_fails_ends_all(launch: Launch, failure: str, reason: str) -> None:
    """A failure of any process is one of the training; only a signal to all is an interruption."""
    status, said = launch({"training.epochs": 50}, failure)
    assert status != 0
    assert f"process 0 ended: {reason}" in said, said
    assert "epoch 1" in said


def test_a_process_alone_is_no_group(data: TrainingData) -> None:
    with distributed.process_group() as ranks:
        assert ranks == Ranks(0, 1)
    value = torch.ones(2)
    assert distributed.mean_over_all(value) is value
    assert distributed.from_all(value) == [value]
    assert distributed.from_first(value) is value
    module = torch.nn.Linear(1, 1)
    assert distributed.Averaged(module, torch.device("cpu")).module() is module
