"""The study's database: the one place where workers, restarts and machines meet.

Optuna's own storage on a SQLAlchemy URL, which waits while the database is away (restarted, or locked by another
worker) instead of ending every trial of the night. Knows nothing of trainings.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.event
import sqlalchemy.exc
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from pillsnap.core.errors import ConfigError
from pillsnap.core.passwords import hide_passwords

_log = logging.getLogger(__name__)
StaleCallback = Callable[[optuna.Study, FrozenTrial], None]
OUTAGE_S = 900.0
"""So long is a database waited for."""
GRACE = 4
"""Heartbeats that may be missed, before a trial is taken for lost."""
_AWAY = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.PendingRollbackError)
"""The last: the connection broke in the middle of a session."""
# What optuna calls on its backend, privately too: the cache that stands before it uses those.
_CALLS = (
    "create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_trial_user_attrs", "get_trial_system_attrs", "get_all_studies", "create_new_trial", "_create_new_trial",
    "set_trial_param", "_set_trial_param", "set_trial_intermediate_value", "set_trial_user_attr",
    "set_trial_system_attr", "get_trial_id_from_study_id_trial_number", "get_trial", "get_all_trials", "_get_trials",
    "get_best_trial", "_get_best_trial_id", "record_heartbeat", "_get_stale_trial_ids", "set_trial_state_values",
)  # fmt: skip


class PatientStorage(RDBStorage):
    """Optuna's storage, every call of which outlives a restart of the database.

    A call that failed is made again. One that had come through all the same does no harm: values are set to what
    they were set to, and a trial that was created for nobody has no worker, so that it is given up like one that was
    lost.
    """

    def _patiently(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        started = time.monotonic()
        pause_s = 0.2
        while True:
            try:
                return call(self, *arguments, **named)
            except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
                if not _is_away(error) or time.monotonic() - started > OUTAGE_S:
                    raise
                if pause_s > 1:  # a lock that passes is not worth a line
                    _log.warning("the study's database does not answer (%s); waiting", _first_line(error.__cause__))
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


def _patient(name: str) -> Callable[..., Any]:
    call: Callable[..., Any] = getattr(RDBStorage, name)

    @functools.wraps(call)
    def again_while_away(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._patiently(call, *arguments, **named)

    return again_while_away


for _name in _CALLS:
    setattr(PatientStorage, _name, _patient(_name))


def open_storage(
    url: str, *, heartbeat_s: int | None = None, on_stale: StaleCallback | None = None, wait: bool = False
) -> RDBStorage:
    """Open the database of a study, with its tables.

    Args:
        url: of SQLAlchemy: ``sqlite:////absolute/path.db``, ``postgresql+psycopg://user:password@host/name``.
        heartbeat_s: seconds between two signs of life of a trial; None: this process runs none.
        on_stale: called with the study and each trial that gave none for too long.
        wait: for a database that is away, as one that is at work already would.

    Raises:
        ConfigError: the URL cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warning of a failed trial is a whole traceback
    started = time.monotonic()
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                storage = PatientStorage(
                    url,
                    engine_kwargs=_engine_options(url),
                    heartbeat_interval=heartbeat_s,
                    grace_period=None if heartbeat_s is None else heartbeat_s * GRACE,
                    heartbeat_stale_trial_callback=on_stale,
                )
            if not is_server(url):
                _lock_before_reading(storage.engine)
            return storage
        except Exception as error:  # SQLAlchemy, its drivers and alembic raise many kinds; all mean: not this URL
            if wait and _is_away(error) and time.monotonic() - started < OUTAGE_S:
                time.sleep(1)
                continue
            driver = url.startswith("postgresql") and isinstance(error, ImportError)
            hint = "; pip install 'psycopg[binary]'" if driver else ""
            raise ConfigError(
                f"the study's storage {hide_passwords(url)} cannot be used ({_first_line(error)}{hint})"
            ) from error


def silent_trials(storage: RDBStorage, study: optuna.Study, silence_s: int) -> set[int]:
    """Numbers of the running trials whose workers gave no sign of life for so long, by the database's clock."""
    storage.heartbeat_interval, storage.grace_period = silence_s, silence_s  # what the next call goes by
    silent = set(storage._get_stale_trial_ids(study._study_id))
    return {trial.number for trial in study.get_trials(deepcopy=False) if trial._trial_id in silent}


def is_server(url: str) -> bool:
    """Whether other machines may be at work in this database too."""
    return not url.startswith("sqlite")


def _lock_before_reading(engine: sqlalchemy.Engine) -> None:
    """sqlite knows no SELECT FOR UPDATE: two workers would read that a trial waits, and both would take it."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}  # seconds that a worker waits for the lock of another
    if url.startswith("postgresql"):
        return {"pool_pre_ping": True, "pool_size": 2, "connect_args": {"connect_timeout": 10}}
    return {"pool_pre_ping": True}


def _is_away(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # whatever the driver calls it: a server that stops may cut an answer in two
    broke = isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated
    return broke or isinstance(cause, _AWAY)


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return hide_passwords(lines[0])[:300]
