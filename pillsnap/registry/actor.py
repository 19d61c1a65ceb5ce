"""Who asks, and what they may do. On a server the name is that of MLflow's login, otherwise that of the local user.

Roles are asked only where ``PILLSNAP_REGISTRY_ROLES`` names their file, as `pillsnap registry server` does. MLflow's
own permissions cannot tell a release manager from an engineer: both must be able to edit a model.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pillsnap.core.errors import ConfigError, GateRefusedError
from pillsnap.core.yaml_mapping import describe_validation_error, read_yaml_mapping

VARIABLE = "PILLSNAP_REGISTRY_ROLES"


class Role(StrEnum):
    """What a user is on a server."""

    ENGINEER = "engineer"
    GATE = "gate"
    RELEASE_MANAGER = "release_manager"


class Roles(BaseModel):
    """The file of the roles; who is not in it is an engineer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roles_version: Literal[1] = 1
    users: dict[str, Role] = {}

    @classmethod
    def load(cls, path: Path) -> Roles:
        """Read the file. Raises ConfigError."""
        if not path.is_file():
            raise ConfigError(
                f"{path}: no file of roles there; make one with: pillsnap registry users add NAME --role …"
            )
        try:
            return cls.model_validate(read_yaml_mapping(path))
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, str(path))) from error


@dataclass(frozen=True)
class Actor:
    """Who asks."""

    name: str
    role: Role | None
    """None: nobody asks for roles here."""

    def must_be(self, role: Role, what: str) -> None:
        """Raise GateRefusedError where roles are asked and this is another one."""
        if self.role is not None and self.role != role:
            raise GateRefusedError(f"{what} is for the role {role}; {self.name} is {self.role}")


def current_actor() -> Actor:
    """Who asks now. Raises ConfigError: the file of the roles cannot be read."""
    name = _name()
    path = os.environ.get(VARIABLE)
    if not path:
        return Actor(name, None)
    return Actor(name, Roles.load(Path(path)).users.get(name, Role.ENGINEER))


def _name() -> str:
    flask = sys.modules.get("flask")  # MLflow's server has loaded it; where nobody has, there is no request
    if flask is not None and flask.has_request_context():
        return str(getattr(flask.g, "mlflow_authenticated_user", None) or "anonymous")
    try:
        return f"local:{getpass.getuser()}"
    except (OSError, KeyError):  # a container's user without a name
        return f"local:{os.getuid()}"
