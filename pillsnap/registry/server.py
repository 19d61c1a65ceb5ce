"""The registry's server: MLflow with the gated store, logins and roles, started so that nothing can be forgotten.

Everything secret is made at the first start and lies in one folder that only its owner can read. Knows how MLflow is
started; the gate itself is in `pillsnap.registry.store`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from cryptography.fernet import Fernet
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

from pillsnap.core.errors import ConfigError, StoreError
from pillsnap.core.files import read_json, write_bytes
from pillsnap.core.interruption import held_back
from pillsnap.core.processes import end_group
from pillsnap.gate.trust import VARIABLE as TRUST_ROOT
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.actor import VARIABLE as ROLES_FILE
from pillsnap.registry.actor import Role, Roles
from pillsnap.registry.store import gated_store
from pillsnap.tracking.store import GATED, first_line, registry_errors

if TYPE_CHECKING:
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

ADMIN = "admin"
WEBHOOK_NAME = "pillsnap-gate"
REMEMBERED_S = 10
"""For how long a process of the server does not ask again whether a password is right."""
EVENTS = (
    WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED),
    WebhookEvent(WebhookEntity.MODEL_VERSION_TAG, WebhookAction.SET),
)
_PATIENCE_S = 8.0
"""From the wish to end to the end of patience; `docker stop` has ten seconds."""
_MANAGERS = "pillsnap-release-managers"
"""A role of MLflow's own."""
_LOCAL = ("127.0.0.1", "localhost", "::1")
_STARLETTE_SAYS = "starlette.middleware.wsgi is deprecated"
"""MLflow's business, and not that of who starts its server."""
_FERNET = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


@dataclass(frozen=True)
class Home:
    """The folder of a server: databases, artifacts and secrets."""

    folder: Path

    @property
    def database(self) -> str:
        """MLflow's database, where no other one is named."""
        return f"sqlite:///{self.folder.absolute()}/mlflow.db"

    @property
    def artifacts(self) -> str:
        """Where the server keeps artifacts, where nothing else is named."""
        return (self.folder.absolute() / "artifacts").as_uri()

    @property
    def users_database(self) -> str:
        """MLflow's database of logins."""
        return f"sqlite:///{self.folder.absolute()}/users.db"

    @property
    def webhook_secret_file(self) -> Path:
        """What the server and the gate service share."""
        return self.folder / "webhook.secret"

    def password_file(self, user: str) -> Path:
        """The first password of a user."""
        return self.folder / "passwords" / user

    def prepare(self) -> dict[str, str]:
        """Make the folder and its secrets where they are missing; the secrets as MLflow's environment variables."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        path = self.folder / "secrets.json"
        if not path.exists():
            _write_private(
                path,
                json.dumps(
                    {
                        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(48),
                        _FERNET: Fernet.generate_key().decode(),
                    }
                ),
            )
        if not self.webhook_secret_file.exists():
            _write_private(self.webhook_secret_file, secrets.token_urlsafe(48))
        found: dict[str, str] = read_json(path)
        return found

    def auth_config(self) -> Path:
        """MLflow's file of its logins. Everybody may edit: setting a mark needs it; what matters the store guards."""
        path = self.folder / "basic_auth.ini"
        lines = [
            "[mlflow]",
            "default_permission = EDIT",
            f"database_uri = {self.users_database}",
            f"admin_username = {ADMIN}",
            # a password check costs 60 ms and more, several times a request; who is removed stays in for as long
            f"auth_cache_ttl_seconds = {REMEMBERED_S}",
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        ]
        _write_private(path, "\n".join(lines) + "\n")
        return path


@dataclass(frozen=True)
class ServerSettings:
    """How the server is started."""

    home: Home
    trust: TrustRoot
    host: str
    port: int
    database: str
    artifacts: str
    workers: int
    allowed_hosts: str
    gate_url: str
    """Where the gate service listens; empty: it only looks from time to time."""


def check(settings: ServerSettings) -> None:
    """Refuse to start what would be open, or could never promote. Raises ConfigError with what to do."""
    settings.trust.policy()
    if not settings.trust.ring().keys:
        raise ConfigError(
            f"{settings.trust.keys_folder}: no public key there, so nothing could ever be promoted; make a pair with: "
            "pillsnap registry keygen"
        )
    Roles.load(settings.trust.roles_file)
    scheme = urlsplit(settings.database).scheme
    offered = {entry.name for entry in entry_points(group="mlflow.model_registry_store")}
    if not {f"{GATED}{scheme}", scheme} <= offered:
        raise ConfigError(
            f"the gated registry is not installed for {scheme}: (MLflow finds it by the package's entry points). "
            "Install PillSnap into this environment with: pip install ."
        )


def start(settings: ServerSettings) -> subprocess.Popen[bytes]:
    """Make databases and secrets where they are missing, then start MLflow.

    Raises:
        ConfigError: see `check`.
        StoreError: the database cannot be used.
    """
    check(settings)
    environment = {**os.environ, **settings.home.prepare()}
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings.home.auth_config().absolute()),
        "MLFLOW_AUTH_ADMIN_PASSWORD": _admin_password(settings.home),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes for what the registry has no use for
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), f"ignore:{_STARLETTE_SAYS}"))),
        ROLES_FILE: str(settings.trust.roles_file.absolute()),
        TRUST_ROOT: str(settings.trust.folder.absolute()),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment.pop("MLFLOW_REGISTRY_URI", None)
    with _environment(environment), registry_errors():
        store = gated_store(GATED + settings.database)  # one process makes the tables, before the workers come
        _tell_gate(store, settings)
        store.engine.dispose()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", settings.host, "--port", str(settings.port), "--workers", str(settings.workers)),
        *("--backend-store-uri", settings.database, "--registry-store-uri", GATED + settings.database),
        *("--artifacts-destination", settings.artifacts, "--serve-artifacts"),
    ]
    if settings.allowed_hosts:
        command += ["--allowed-hosts", settings.allowed_hosts]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def run(settings: ServerSettings) -> int:
    """Start the server and stay until it ends; SIGTERM and Ctrl-C end it with all its workers."""
    asked_s: list[float] = []
    before: dict[int, Any] = {}
    process: subprocess.Popen[bytes] | None = None

    def end(signum: int, frame: FrameType | None) -> None:
        """Only asks: who waits holds a lock of the process, so whoever waited in here would never see its end."""
        asked_s.append(time.monotonic())
        assert process is not None, "this hears signals only once it is started"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    try:
        with held_back():  # what came meanwhile is raised where it ends, and finds the server started
            process = start(settings)
            before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(1.0)
            if asked_s and time.monotonic() - asked_s[0] > _PATIENCE_S:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        if process is not None:
            end_group(process, _PATIENCE_S - (time.monotonic() - asked_s[0] if asked_s else 0))
        for number, handler in before.items():
            signal.signal(number, handler)


def add_user(home: Home, trust: TrustRoot, name: str, role: Role, password: str | None = None) -> Path | None:
    """Make a login with a role, or give a known one another role and, where one is given, another password.

    Returns:
        The file that holds the first password, where one was made up.

    Raises:
        ConfigError: a name or password that MLflow cannot take.
    """
    if not name or not all(letter.isalnum() or letter in "._-@" for letter in name):
        raise ConfigError(f"user {name!r}: letters, digits and . _ - @ only")
    home.prepare()
    made = None
    with _logins(home) as logins:
        known = logins.has_user(name)
        try:
            if not known:
                first = password or secrets.token_urlsafe(18)
                if password is None:
                    made = home.password_file(name)
                    _write_private(made, first + "\n")
                logins.create_user(name, first)
            elif password is not None:
                logins.update_user(name, password=password)
                home.password_file(name).unlink(missing_ok=True)  # the first one, which holds no more
            _let_manage(logins, name, role == Role.RELEASE_MANAGER)
        except MlflowException as error:
            raise ConfigError(f"user {name!r}: {first_line(error)}") from error
    users = Roles.load(trust.roles_file).users if trust.roles_file.exists() else {}
    _write_roles(trust.roles_file, {**users, name: role})
    return made


def remove_user(home: Home, trust: TrustRoot, name: str) -> None:
    """Take a login and its role away. Raises ConfigError: there is no such user."""
    users = Roles.load(trust.roles_file).users
    with _logins(home) as logins:
        known = logins.has_user(name)
        if not known and name not in users:
            raise ConfigError(f"user {name!r}: there is none in {home.folder} or {trust.roles_file}")
        if known:
            logins.delete_user(name)
    _write_roles(trust.roles_file, {user: role for user, role in users.items() if user != name})
    home.password_file(name).unlink(missing_ok=True)


@contextmanager
def _logins(home: Home) -> Iterator[SqlAlchemyStore]:
    """MLflow's store of its logins."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_STARLETTE_SAYS)
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    store = SqlAlchemyStore()
    store.init_db(home.users_database)
    try:
        yield store
    finally:
        store.engine.dispose()


def _let_manage(logins: SqlAlchemyStore, name: str, manages: bool) -> None:
    """MLflow lets whoever made a model take its aliases away, and those alone who manage all: the release managers.

    What they may then do to a champion the gated store says, as to everybody.
    """
    try:
        role = logins.get_role_by_name(DEFAULT_WORKSPACE_NAME, _MANAGERS)
    except MlflowException:
        role = logins.create_role(_MANAGERS, DEFAULT_WORKSPACE_NAME, "Take aliases away and delete versions.")
        logins.add_role_permission(role.id, "registered_model", "*", "MANAGE")
    user_id = logins.get_user(name).id
    has = any(one.id == role.id for one in logins.list_user_roles(user_id))
    if manages and not has:
        logins.assign_role_to_user(user_id, role.id)
    elif has and not manages:
        logins.unassign_role_from_user(user_id, role.id)


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    return host in _LOCAL


def _write_roles(path: Path, users: dict[str, Role]) -> None:
    document = {"roles_version": 1, "users": {user: str(role) for user, role in sorted(users.items())}}
    head = "# Who may do what in the registry. Written by: pillsnap registry users add NAME --role …\n"
    write_bytes(path, (head + yaml.safe_dump(document, allow_unicode=True)).encode())


def _tell_gate(store: object, settings: ServerSettings) -> None:
    """One webhook to the gate service: the one before is replaced, as its address may have changed."""
    from mlflow.store.model_registry.dbmodels.models import SqlWebhook
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    assert isinstance(store, SqlAlchemyStore)
    # MLflow takes the key when its module is imported, which is done by now: with a key made up for this process
    # alone, no worker could read the secret, and no message would ever be sent
    SqlWebhook.__table__.c.secret.type.cipher = Fernet(os.environ[_FERNET])
    for webhook in store.list_webhooks():
        if webhook.name == WEBHOOK_NAME:
            store.delete_webhook(webhook.webhook_id)
    if settings.gate_url:
        secret = settings.home.webhook_secret_file.read_text().strip()
        store.create_webhook(WEBHOOK_NAME, settings.gate_url, list(EVENTS), "Wakes the gate service.", secret)


def _admin_password(home: Home) -> str:
    path = home.password_file(ADMIN)
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(18) + "\n")
    return path.read_text().strip()


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, the whole or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """MLflow reads some settings from the environment of the process only."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
