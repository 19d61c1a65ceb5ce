"""One question to the registry's gate: who asks for what, as it is written down, and how MLflow is told no."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pillsnap.gate.admission import VersionFacts
from pillsnap.gate.envelope import Statement
from pillsnap.registry import audit
from pillsnap.registry.actor import Actor


class Question:
    """Who asks, and for what."""

    def __init__(self, actor: Actor, action: str, model: str, version: str) -> None:
        self.actor = actor
        self._action, self._model, self._version = action, model, version

    def entry(
        self, facts: VersionFacts | None, statement: Statement | None, *, alias: str, before: str = "", **more: str
    ) -> audit.Entry:
        """What is written down where it was done."""
        known: dict[str, Any] = {"version": self._version}
        if facts is not None:
            known = {"version": facts.version, "created_at_ms": facts.created_at_ms}
        if statement is not None:
            known |= {
                "verdict": str(statement.verdict),
                "decision_id": statement.decision_id,
                "bundle_sha256": statement.bundle_sha256,
                "manifest_hash": statement.manifest_hash,
                "policy_sha256": statement.policy_sha256,
            }
        return audit.Entry(
            actor=self.actor.name,
            role=str(self.actor.role or ""),
            action=self._action,
            model=self._model,
            alias=alias,
            before=before,
            **{**known, **more},
        )

    def refused(self, alias: str, reason: str) -> audit.Entry:
        """What is written down where it was not."""
        return replace(self.entry(None, None, alias=alias), outcome=audit.REFUSED, reason=reason)


def refusal(sentence: str) -> MlflowException:
    """PERMISSION_DENIED is 403: clients show it at once. INVALID_STATE would be a 500, repeated for minutes."""
    return MlflowException(sentence, error_code=PERMISSION_DENIED)
