"""A bundle as the model of an open run: at once, or with everything else that waits while the store is away."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow.exceptions import MlflowException

from pillsnap.core.errors import StoreError
from pillsnap.tracking.delivery import FINAL_CODES
from pillsnap.tracking.models import load_bundle, send_bundle
from pillsnap.tracking.run import TrackedRun
from pillsnap.tracking.store import connect, store_errors

BUNDLE_PREFIX = "bundle."
"""Of the parameters that say what a bundle is."""
_log = logging.getLogger(__name__)


def log_bundle(run: TrackedRun, bundle: Path) -> str | None:
    """Log a bundle as an ONNX model of a run.

    Returns:
        Its URI, ``models:/m-…``; also kept as a tag of the run. None where the store does not answer: the bundle is
        kept in the run's outbox, and becomes the run's model with everything else that waits there.

    Raises:
        BundleError: it is not a bundle.
        StoreError: the store has kept other bytes than those that were sent, or says no.
    """
    facts = load_bundle(bundle)[1].main_facts()  # what is no bundle is said here and now
    run.log_params({f"{BUNDLE_PREFIX}{key}": value for key, value in facts.items()})
    if run.flush():
        try:
            with store_errors():
                return send_bundle(connect(), run.run_id, bundle)
        except StoreError as error:
            if _is_final(error.__cause__):
                raise
    run.post_bundle(bundle)
    _log.warning("the MLflow store does not answer: the bundle %s is kept and becomes the run's model later", bundle)
    return None


def _is_final(cause: BaseException | None) -> bool:
    """Whether asking again would change nothing: our own finding, or an answer that the store gave."""
    return cause is None or (isinstance(cause, MlflowException) and cause.error_code in FINAL_CODES)
