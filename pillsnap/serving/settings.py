"""How a server is run: values, and how they travel to worker processes (as JSON in one environment variable)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pillsnap.core.errors import ConfigError

VARIABLE = "PILLSNAP_SERVE"
MODEL_SCHEME = "models:/"


class ServeSettings(BaseModel):
    """Everything that a server process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    """``models:/NAME@ALIAS`` (followed, and proven before it is loaded) or the path of a bundle (served as it is)."""
    home: Path = Path("workspace/serving")
    """Where the last proven champion is kept for a start without the registry."""
    threads: int = Field(ge=1)
    """Within one inference."""
    concurrency: int = Field(ge=1)
    """Photos that are worked on at once, in one process."""
    queue: int = Field(default=16, ge=0)
    """Requests that may wait, in one process; one more is answered with 503."""
    deadline_s: float = Field(default=10.0, gt=0)
    """From the last byte of a request to its answer; what waits longer is answered with 503 and not worked on."""
    header_s: float = Field(default=10.0, gt=0)
    """For the first request line and headers of a connection."""
    upload_s: float = Field(default=20.0, gt=0)
    """For the whole body of a request."""
    connections: int = Field(default=500, ge=1)
    """Open at once, in one process; well under the 1024 files that a process usually may have open."""
    uploads: int = Field(default=64, ge=1)
    """Requests that may be in the house at once, in one process, those that are still being received included."""
    poll_s: float = Field(default=5.0, gt=0)
    """Between two looks at the registry."""
    shadow: bool = False
    """Let the challenger answer too, in the background, and count how often it agrees."""
    keys_file: Path | None = None
    """One API key a line. None: nobody is asked for one."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may call; by default only the server's own page."""
    hosts: tuple[str, ...] = ()
    """Host names that are answered; empty: all."""
    workers: int = Field(default=1, ge=1)

    @property
    def followed(self) -> tuple[str, Literal["champion", "challenger"]] | None:
        """(name of the registered model, alias), or None for a bundle. Raises ConfigError."""
        if not self.model.startswith(MODEL_SCHEME):
            return None
        name, _, alias = self.model.removeprefix(MODEL_SCHEME).partition("@")
        if not name or alias not in ("champion", "challenger"):
            raise ConfigError(
                f"--model {self.model!r}: expected {MODEL_SCHEME}NAME@champion (or @challenger), or a bundle's path; "
                "a version by its number could be served past the gate"
            )
        return name, "champion" if alias == "champion" else "challenger"

    @field_validator("hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(host.strip("[]").rstrip(".").lower() for host in hosts)
        for host, name in zip(hosts, names, strict=True):
            if not name or "/" in name or name.count(":") == 1:  # more of them: an address of IPv6
                raise ValueError(f"{host!r}: give a name or an address, without scheme, port and path")
        return names

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(f"{origin!r}: give scheme and host (and port) alone, as in https://pharmacy.example")
        return origins

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """The settings. Raises ConfigError: a value that cannot be."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{first['loc'][0]}: {reason} (given: {first['input']!r})") from error

    def to_environment(self) -> None:
        """Leave the values to the worker processes."""
        os.environ[VARIABLE] = self.model_dump_json()

    @classmethod
    def from_environment(cls) -> Self:
        """What the parent process left. Raises ConfigError."""
        try:
            return cls.model_validate_json(os.environ[VARIABLE])
        except (KeyError, ValidationError) as error:
            raise ConfigError(f"{VARIABLE} is not set by `pillsnap serve` ({error})") from error
