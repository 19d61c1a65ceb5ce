"""Several processes that train one net (torchrun: DDP, nccl on CUDA, gloo on the CPU).

Knows who this process is and how the others are reached; without torchrun every function is that of a process alone.
``batch_size`` is the batch of all processes together, so the number of processes changes nothing but the time: each
takes its share of every batch, and the images that mixup would pair stay together. Legend: K class, N image.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pillsnap.core.errors import ConfigError, TrainingError

_T = TypeVar("_T")
_PATIENCE = timedelta(hours=1)
"""One machine may prepare its images while the others wait."""
_FAREWELL_S = 5.0
"""So long the first process waits for the last words of the others."""
_stores: list[dist.Store] = []
"""The meeting place of the processes, while a group is open."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """The one that logs and writes."""
        return self.rank == 0


def ranks() -> Ranks:
    """Of this process, now."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def launched_by_torchrun() -> bool:
    """Whether this process is one of several, or could be."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the other processes of torchrun; without torchrun, nothing.

    Raises:
        TrainingError: they cannot be reached.
    """
    if not launched_by_torchrun():
        yield Ranks()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=_PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the other processes of torchrun cannot be reached ({error})") from error
    _stores.append(dist.PrefixStore("pillsnap", store))
    _stores[0].set(f"process/{rank}", f"{os.getpid()} {socket.gethostname()}")
    try:
        yield Ranks(rank, world)
    finally:
        _stores.clear()
        _leave()


@contextmanager
def failing_together() -> Iterator[None]:
    """Let the first process know why another one ended, so that its run says so.

    Raises:
        TrainingError: in the first process, where another one failed or is gone.
    """
    here = ranks()
    if here.world == 1:
        yield
        return
    store = _stores[0]
    try:
        yield
    except BaseException as error:
        if not here.is_first:
            with suppress(RuntimeError):  # the meeting place is gone too
                store.set(f"ended/{here.rank}", f"{type(error).__name__}: {error}"[:2000])
            raise
        lost = type(error) is RuntimeError or isinstance(error, dist.DistError)  # of a call whose peer is gone
        if lost or isinstance(error, KeyboardInterrupt):
            _find_culprit(store, here.world, error)
        raise


def _find_culprit(store: dist.Store, world: int, error: BaseException) -> None:
    """Raise TrainingError where another process failed or is gone, KeyboardInterrupt where all were interrupted."""
    _blame(_last_words(store, world, wait_s=0), error)
    try:
        _leave()  # those that wait for this process may wake; inside DDP they do not, before it has ended
        words = _last_words(store, world, wait_s=_FAREWELL_S)
    except KeyboardInterrupt as interruption:  # torchrun ends all when one has ended
        error = interruption
        words = _last_words(store, world, wait_s=_FAREWELL_S)
    _blame(words, error)
    silent = [rank for rank in range(1, world) if rank not in words and not _lives(store, rank)]
    if silent:
        raise TrainingError(f"process {silent[0]} of {world} ended without a word") from error
    if isinstance(error, KeyboardInterrupt) or any(text.startswith("KeyboardInterrupt") for text in words.values()):
        raise KeyboardInterrupt from error
    raise TrainingError(f"the {world} processes have lost each other ({str(error)[:300]})") from error


def _blame(words: dict[int, str], error: BaseException) -> None:
    """Raise the failure that another process told; interruptions and lost connections are consequences."""
    consequences = ("KeyboardInterrupt", "RuntimeError", "DistBackendError")
    for rank, text in words.items():
        if not text.startswith(consequences):
            raise TrainingError(f"process {rank} failed: {text}") from error


def _last_words(store: dist.Store, world: int, wait_s: float) -> dict[int, str]:
    deadline = time.monotonic() + wait_s
    words: dict[int, str] = {}
    while True:
        with suppress(RuntimeError):  # the meeting place is gone too
            for rank in range(1, world):
                if rank not in words and store.check([f"ended/{rank}"]):
                    words[rank] = store.get(f"ended/{rank}").decode()
        if len(words) == world - 1 or time.monotonic() >= deadline:
            return words
        time.sleep(0.05)


def _lives(store: dist.Store, rank: int) -> bool:
    """Whether it is known to run still. It says nothing then because it waits for this process, in a call of torch."""
    key = f"process/{rank}"
    try:
        if not store.check([key]):
            return False
        number, host = store.get(key).decode().split(maxsplit=1)
        return host == socket.gethostname() and psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE
    except (RuntimeError, psutil.Error):  # no meeting place any more; no such process
        return False


def _leave() -> None:
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def require_shares(batch_size: int) -> None:
    """Raise ConfigError where the batch cannot be shared by the processes."""
    world = ranks().world
    if batch_size % (2 * world):
        raise ConfigError(
            f"data.batch_size: {batch_size} is the batch of all {world} processes together and must be a multiple of "
            f"{2 * world} (an even number of images for each)"
        )


def share_of_batches(order_N: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """This process's images of an epoch: of every whole batch its share, in the order of the batches.

    Mixup pairs image i of a batch with image -1-i. The share of process r is the r-th piece of the first half of the
    batch and the piece that mirrors it, so its pairs are those that one process would make of the whole batch.
    """
    here = ranks()
    if here.world == 1:
        return order_N
    batches = order_N[: len(order_N) // batch_size * batch_size].reshape(-1, batch_size)
    half = batch_size // (2 * here.world)
    start = here.rank * half
    mirrored = batches[:, batch_size - start - half : batch_size - start]
    return np.concatenate([batches[:, start : start + half], mirrored], axis=1).reshape(-1)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """On CUDA, batch norm over the images of all processes; torch has none for the CPU: there each its own share."""
    if ranks().world > 1 and device.type == "cuda":
        module = convert_sync_batchnorm(module)
    return module


class Averaged:
    """A module whose gradients become the mean over all processes, where there are several."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._wrapped = module
        self._learning: tuple[str, ...] = ()

    def module(self) -> nn.Module:
        """The module to train with, now. DDP exchanges the gradients of what learned when it was made."""
        if ranks().world == 1:
            return self._module
        learning = tuple(name for name, value in self._module.named_parameters() if value.requires_grad)
        if learning != self._learning:
            self._wrapped = self._module  # the former one lets go of the parameters
            chosen = [torch.cuda.current_device()] if self._device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(self._module, device_ids=chosen)
            self._learning = learning
        return self._wrapped


def from_first(value: _T) -> _T:
    """The first process's value, in all processes."""
    if ranks().world == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def from_all(value: _T) -> list[_T]:
    """The values of all processes, in the order of their ranks."""
    if ranks().world == 1:
        return [value]
    values: list[Any] = [None] * ranks().world
    dist.all_gather_object(values, value)
    return values


def require_same(value: str, what: str) -> None:
    """Raise TrainingError where this process has another value than the first one."""
    first = from_first(value)
    if value != first:
        raise TrainingError(f"{what} is another one here ({value}) than in the first process ({first})")


def mean_over_all(value: Tensor) -> Tensor:
    """The mean of the processes' values."""
    if ranks().world == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / ranks().world


def share_buffers(module: nn.Module) -> None:
    """Give all processes the first one's buffers (the statistics of batch norm), so that all judge one net."""
    if ranks().world > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def answers_of_all(logits_NK: Tensor) -> Tensor:
    """Put together what each process answered to every world-th image, from its own rank on."""
    parts = from_all(logits_NK)
    whole_NK = torch.empty((sum(map(len, parts)), logits_NK.shape[1]), dtype=logits_NK.dtype)
    for rank, part_NK in enumerate(parts):
        whole_NK[rank :: len(parts)] = part_NK
    return whole_NK
