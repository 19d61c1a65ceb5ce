"""The gate at work: it measures a version itself, on its own manifest, decides, signs, and hands its word in.

What the training run says of itself is not looked at. Judging again is cheap: a version whose signed word still holds
for these files, this manifest, this policy and this champion is left as it is.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import pillsnap
from pillsnap.core.code_version import CodeVersion
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import (
    BundleError,
    DataError,
    EngineError,
    EvidenceError,
    GateRefusedError,
    StoreError,
    TamperedError,
)
from pillsnap.core.evidence import EVALUATION_FOLDER, EVIDENCE_FILE, Evidence
from pillsnap.core.files import sha256_bytes, sha256_file
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.card import model_card, plain
from pillsnap.evaluation.evidence import EvaluationResult, evaluate
from pillsnap.evaluation.html_report import HTML_FILE
from pillsnap.evaluation.report import write_report
from pillsnap.gate.admission import CHAMPION, VersionFacts, facts_of
from pillsnap.gate.champion_check import is_missing_comparison
from pillsnap.gate.decision import Decision, Verdict, decide, manifest_reasons
from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef, RecordHead, Statement, seal
from pillsnap.gate.keys import KeyRing
from pillsnap.gate.policy import Policy
from pillsnap.gate.trust import TrustRoot
from pillsnap.inference.session import PillSession
from pillsnap.registry.rules import HISTORY_TAG, asks_for_judgement
from pillsnap.registry.version_page import LONGEST, time_text
from pillsnap.registry.versions import (
    aliased_version,
    find_version,
    former_champions,
    pages,
    proven_files,
    record_head,
    statement_of,
    version_files,
)
from pillsnap.tracking.names import of_gate
from pillsnap.tracking.run import TEST, TrackedRun, tell_run, tracked_run
from pillsnap.tracking.run_model import BUNDLE_PREFIX
from pillsnap.tracking.store import first_line, registry_errors, store_errors
from pillsnap.tracking.ui_links import artifact_link

_log = logging.getLogger(__name__)
EXPERIMENT = "pillsnap-gate"
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class _Case:
    """Everything that a judgement hangs on. The same case again is the same judgement."""

    facts: VersionFacts
    manifest: Manifest
    policy: Policy
    champion: ChampionRef | None

    def is_settled_by(self, statement: Statement) -> bool:
        return (
            facts_of(statement) == self.facts
            and statement.manifest_hash == self.manifest.hash
            and statement.policy_sha256 == self.policy.sha256
            and (statement.champion == self.champion or _fails_alone(statement))
            and not is_old(statement, self.policy)
        )


def judge(
    client: MlflowClient,
    name: str,
    version: str,
    manifest: Manifest,
    key: Ed25519PrivateKey,
    trust: TrustRoot,
    progress: Progress | None = None,
    *,
    again: bool = False,
) -> Statement:
    """Judge a version, or give back the word that still holds.

    Args:
        client: of the registry.
        name: of the registered model.
        version: its number, or ``latest``.
        manifest: the gate's own; its test split is what counts.
        key: the gate's private key.
        trust: policy and trusted keys.
        progress: called with (images done, images in all).
        again: measure anew, also where a word holds: a latency may have been taken in a bad moment. A version that was
            champion keeps its word otherwise, so that going back to it stays possible.

    Raises:
        StoreError: the registry or the files of the version cannot be had.
        GateRefusedError: the present champion has not proven itself or does not load here, so nothing can be compared
            with it; this machine lacks the version's engine; or the registry does not take the word.
        ConfigError: nobody would take the word of this key now.
        DataError: the gate's own manifest or pictures cannot be read, or do not fit a version with a good word.
    """
    ring = trust.ring()
    ring.require_signing(key, datetime.now(UTC))  # before anything is measured
    entry = find_version(client, name, version)
    before = _word_before(entry, ring)
    with version_files(entry) as files, _champion_beside(client, entry, before, ring) as (champion, champion_bundle):
        case = _Case(files.facts, manifest, trust.policy(), champion)
        if before is not None and not again and (case.is_settled_by(before) or _is_kept(client, before, files.facts)):
            return before
        with (
            tracked_run(f"judge {name} version {entry.version}", experiment=EXPERIMENT) as run,
            tempfile.TemporaryDirectory(prefix="pillsnap-") as folder,
        ):
            measured = _measure(case, files.bundle, champion_bundle, run.run_id, progress)
            unfit = measured.problem
            if not unfit and before is not None and _is_kept(client, before, files.facts):
                unfit = _wrong_manifest(case, measured)  # a champion is in service, whatever the gate measures on next
            if unfit and before is not None and _still_speaks(before, files.facts):
                raise DataError(
                    f"{name} version {entry.version} cannot be judged: {unfit}. Its word ({before.verdict}) "
                    "stands, and nothing was signed; give the manifest that it belongs to"
                )
            report = (
                write_report(measured.result, manifest, Path(folder) / EVALUATION_FOLDER) if measured.result else None
            )
            statement = _state(case, measured, before, run.run_id, report, record_head(client, name))
            envelope = seal(statement, key)
            now = find_version(client, name, str(entry.version))  # measuring took minutes: it may be champion since
            description = _describe(measured, statement, run, now.tags.get(HISTORY_TAG, ""))
            _log_figures(run, measured, manifest, _model_id(entry))
            _keep(run, statement, envelope, description, report)
    handed_in = _hand_in(client, entry, statement, envelope, description, case, ring)
    if handed_in == statement and measured.result is not None:
        _tell_run_of(client, entry, measured.result.evidence, manifest)
    return handed_in


def is_old(statement: Statement, policy: Policy) -> bool:
    """Whether the policy no longer takes a word of that age."""
    most = policy.decision_max_age
    return most is not None and datetime.now(UTC) - statement.issued_at >= most


def candidates(client: MlflowClient) -> list[tuple[str, str]]:
    """(model, version) of all versions that carry the mark, as an alias or as a tag, in order."""
    found = set()
    with registry_errors():
        for model in pages(client.search_registered_models):
            for alias, version in model.aliases.items():
                if asks_for_judgement(alias):
                    found.add((model.name, str(version)))
        for entry in pages(client.search_model_versions):
            if any(asks_for_judgement(key, value) for key, value in entry.tags.items()):
                found.add((entry.name, str(entry.version)))
    return sorted(found, key=lambda pair: (pair[0], int(pair[1])))


@dataclass(frozen=True)
class _Measured:
    """What came out: a result and the decision on it, or why nothing could be measured."""

    result: EvaluationResult | None
    decision: Decision | None
    problem: str = ""


@contextmanager
def _champion_beside(
    client: MlflowClient, entry: ModelVersion, before: Statement | None, ring: KeyRing
) -> Iterator[tuple[ChampionRef | None, Path | None]]:
    """The champion that a version must not be worse than, and its bundle.

    The champion is not its own rival: its word goes on naming the one that it was compared with, without a bundle.
    """
    champion = aliased_version(client, entry.name, CHAMPION)
    if champion is None:
        yield None, None
    elif str(champion.version) == str(entry.version):
        yield before.champion if before else None, None
    else:
        try:
            with proven_files(champion, CHAMPION, ring) as (files, statement):
                yield ChampionRef(version=str(champion.version), bundle_sha256=statement.bundle_sha256), files.bundle
        except GateRefusedError as error:
            raise GateRefusedError(
                f"{entry.name} version {entry.version} cannot be compared with the champion, which has not proven "
                f"itself ({error}). Judge that one again (pillsnap registry judge {champion.version}), or go back to a "
                "former one (pillsnap registry rollback)"
            ) from error


def _word_before(entry: ModelVersion, ring: KeyRing) -> Statement | None:
    """The word that stands; one that is not of a trusted key (it was revoked) counts as none."""
    try:
        return statement_of(entry, ring)
    except TamperedError:
        return None


def _still_speaks(before: Statement, facts: VersionFacts) -> bool:
    """A good word for these very files: that another manifest cannot measure them says nothing against them."""
    return before.verdict != Verdict.REJECT and facts_of(before) == facts


def _fails_alone(statement: Statement) -> bool:
    """What misses a minimum misses it beside any champion: old candidates are not measured again at each change."""
    return statement.verdict == Verdict.REJECT and not any(map(is_missing_comparison, statement.reasons))


def _wrong_manifest(case: _Case, measured: _Measured) -> str:
    """Why the manifest cannot tell anything of this model; empty: it can."""
    trained_on = measured.result.metadata.provenance.manifest_hash if measured.result else None
    return " ".join(manifest_reasons(case.policy, case.manifest.hash, trained_on))


def _is_kept(client: MlflowClient, before: Statement, facts: VersionFacts) -> bool:
    """A version that was champion keeps the word that made it so: going back to it needs no new one."""
    is_proof = before.verdict == Verdict.PROMOTE and facts_of(before) == facts
    return is_proof and facts.version in former_champions(client, facts.name)


def _measure(
    case: _Case, bundle: Path, champion_bundle: Path | None, run_id: str, progress: Progress | None
) -> _Measured:
    what = f"{case.facts.name} version {case.facts.version}"
    if champion_bundle is not None:
        try:
            PillSession.load(champion_bundle)
        except BundleError as error:
            told = str(error).replace(str(champion_bundle), "its file")
            raise GateRefusedError(
                f"{what} cannot be compared with the champion, which does not load on the gate's machine ({told}). "
                "Nothing was signed"
            ) from error
    try:
        result = evaluate(
            bundle,
            case.manifest,
            run_id=run_id,
            threads=min(usable_cores(), case.policy.latency_profile.most_threads),
            progress=progress,
            champion=champion_bundle,
        )
    except EngineError as error:
        told = str(error).replace(str(bundle), "the model's file")
        raise GateRefusedError(f"{what} cannot be judged on this machine: {told}. Nothing was signed") from error
    except (BundleError, EvidenceError) as error:
        told = (
            str(error).replace(str(bundle), "the model's file").replace(str(case.manifest.root), "the gate's manifest")
        )
        return _Measured(None, None, told)
    decision = decide(
        result.evidence,
        case.policy,
        bundle_sha256=case.facts.bundle_sha256,
        manifest_hash=case.manifest.hash,
        trained_on=result.metadata.provenance.manifest_hash,
        champion_sha256=case.champion.bundle_sha256 if case.champion and champion_bundle else None,
    )
    return _Measured(result, decision)


def _state(
    case: _Case,
    measured: _Measured,
    before: Statement | None,
    run_id: str,
    report: Path | None,
    record: RecordHead | None,
) -> Statement:
    decision = measured.decision
    version = CodeVersion.current()
    return Statement(
        decision_id=uuid.uuid4().hex,
        replaces=before.decision_id if before else None,
        issued_at_ms=max(int(time.time() * 1000), before.issued_at_ms + 1 if before else 0),
        model_name=case.facts.name,
        model_version=case.facts.version,
        created_at_ms=case.facts.created_at_ms,
        bundle_sha256=case.facts.bundle_sha256,
        artifact_sha256=case.facts.artifact_sha256,
        manifest_hash=case.manifest.hash,
        policy_sha256=case.policy.sha256,
        evidence_sha256=sha256_file(report / EVIDENCE_FILE) if report else sha256_bytes(b""),
        champion=case.champion,
        record=record,
        verdict=decision.verdict if decision else Verdict.REJECT,
        reasons=decision.reasons if decision else (f"cannot be judged: {measured.problem}"[:2000],),
        figures=decision.figures() if decision else {},
        evidence_run_id=run_id,
        code=f"{pillsnap.__version__} {version}",
    )


def _log_figures(run: TrackedRun, measured: _Measured, manifest: Manifest, model_id: str) -> None:
    """What MLflow compares: figures, which model it was, and on which images."""
    run.log_dataset(manifest, TEST)
    if measured.result is None:
        return
    facts = measured.result.metadata.main_facts()
    run.log_params({f"{BUNDLE_PREFIX}{key}": value for key, value in facts.items()})
    run.log_test_metrics(of_gate(measured.result.evidence.metrics), manifest, model_id)


def _tell_run_of(client: MlflowClient, entry: ModelVersion, evidence: Evidence, manifest: Manifest) -> None:
    """The figures at the run that the version is from too: MLflow compares versions by their runs.

    They are shown and believed by nobody; but a version may name any run, so the run must be the one of its model.
    """
    try:
        with store_errors():
            if not entry.run_id or client.get_logged_model(_model_id(entry)).source_run_id != entry.run_id:
                return
        tell_run(client, entry.run_id, of_gate(evidence.metrics), manifest)
    except StoreError as error:
        _log.warning("%s version %s: its run does not show the gate's figures: %s", entry.name, entry.version, error)


def _model_id(entry: ModelVersion) -> str:
    """Of the MLflow model that a version is of; empty: its files lie elsewhere."""
    found = str(entry.source or "").removeprefix("models:/")
    return found if found.startswith("m-") and "/" not in found else ""


def _keep(run: TrackedRun, statement: Statement, envelope: str, description: str, report: Path | None) -> None:
    """Evidence, report, card and envelope as artifacts of the gate's run: there before the word is handed in."""
    if report is not None:
        run.log_folder(report, EVALUATION_FOLDER)
    run.log_text(envelope, "gate/envelope.json")
    run.log_text(description, "gate/model_card.md")
    run.set_tags(
        {
            "pillsnap.kind": "judgement",
            "pillsnap.model": statement.model_name,
            "pillsnap.version": statement.model_version,
            "pillsnap.verdict": str(statement.verdict),
            "mlflow.note.content": description,
        }
    )
    if not run.flush():
        raise StoreError(f"the MLflow store does not take the evidence of {statement.model_name}; judge again later")


def _describe(measured: _Measured, statement: Statement, run: TrackedRun, history: str) -> str:
    """What the UI shows at the version: verdict, figures and reasons, then the model card.

    ``history``: who did what with the version until now.
    """
    past = "; ".join((*filter(None, [plain(history)]), f"signed {time_text(statement.issued_at)}"))
    if measured.result is None:
        folder = artifact_link(run.experiment_id, run.run_id, "gate")
        return f"{statement.verdict} · {plain(statement.reasons[0])}\n\n[The gate's run]({folder}). Version {past}.\n"
    report = artifact_link(run.experiment_id, run.run_id, f"{EVALUATION_FOLDER}/{HTML_FILE}")
    end = f"\n[Report with pictures]({report}), evidence beside it. Version {past}.\n"
    card = model_card(
        measured.result.evidence,
        measured.result.metadata,
        measured.decision,
        name=statement.model_name,
        version=statement.model_version,
        champion=statement.champion.version if statement.champion else "",
        longest=LONGEST - len(end),
    )
    return card + end


def _hand_in(
    client: MlflowClient,
    entry: ModelVersion,
    statement: Statement,
    envelope: str,
    description: str,
    case: _Case,
    ring: KeyRing,
) -> Statement:
    try:
        client.set_model_version_tag(entry.name, entry.version, ENVELOPE_TAG, envelope)
        client.update_model_version(entry.name, entry.version, description)
    except MlflowException as error:
        meanwhile = _word_before(find_version(client, entry.name, str(entry.version)), ring)
        if meanwhile is not None and case.is_settled_by(meanwhile):
            return meanwhile  # another gate was faster: its word stands
        raise GateRefusedError(f"the registry does not take the gate's word: {first_line(error)}") from error
    return statement
