"""What the routes share: the model that answers, who keeps it up to date, where photos are worked on, the figures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from pillsnap.serving.following import Follower
from pillsnap.serving.guard import api_keys, is_known
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import ProblemError
from pillsnap.serving.settings import ServeSettings
from pillsnap.serving.shadow import Shadow
from pillsnap.serving.slot import Slot
from pillsnap.serving.sources import BundleSource, ModelSource, RegistrySource
from pillsnap.serving.workers import Workers


@dataclass(frozen=True)
class House:
    """One process of the server."""

    settings: ServeSettings
    metrics: Metrics
    slot: Slot
    follower: Follower
    workers: Workers
    shadow: Shadow
    keys: frozenset[bytes] | None
    """Digests of the API keys; None: nobody is asked for one."""

    @classmethod
    def of(cls, settings: ServeSettings, source: ModelSource | None = None) -> House:
        """As the settings say; ``source`` takes the place of the one that they name.

        Raises:
            ConfigError: a model that cannot be followed, or a file of API keys that cannot be used.
        """
        metrics = Metrics()
        slot = Slot()
        return cls(
            settings=settings,
            metrics=metrics,
            slot=slot,
            follower=Follower(slot, source or _source_of(settings), settings.poll_s, metrics),
            workers=Workers(settings.concurrency, settings.queue, settings.deadline_s, metrics.waiting.set),
            shadow=Shadow.of(settings, metrics),
            keys=api_keys(settings.keys_file),
        )

    async def open(self) -> None:
        """Begin to follow, and wait a moment for the model."""
        self.follower.start()
        self.shadow.start()
        await asyncio.to_thread(self.follower.settle)

    async def close(self) -> None:
        """End all threads."""
        await asyncio.to_thread(self.follower.stop)
        await asyncio.to_thread(self.shadow.stop)
        self.workers.close()


def _source_of(settings: ServeSettings) -> ModelSource:
    followed = settings.followed
    if followed is None:
        return BundleSource(Path(settings.model), settings.threads)
    return RegistrySource(*followed, settings.home, settings.threads)


async def _house(request: Request) -> House:  # a plain function would go through a thread at every request
    house: House = request.app.state.house
    return house


InHouse = Annotated[House, Depends(_house)]
"""The type of a route's parameter that wants the house."""


async def need_key(request: Request, house: InHouse) -> None:
    """A route's dependency. Raises ProblemError (``unauthorized``): without a known key, where one is asked for."""
    if house.keys is not None and not is_known(request.headers.get("x-api-key", ""), house.keys):
        raise ProblemError("unauthorized", {"WWW-Authenticate": "X-API-Key", "Connection": "close"})
