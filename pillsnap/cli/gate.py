"""``pillsnap gate``: judge evidence by the policy."""

from __future__ import annotations

from pathlib import Path

import click

from pillsnap.cli import journey
from pillsnap.cli.options import MaybePath
from pillsnap.cli.project_run import project_run


@click.command()
@click.argument("evidence_file", metavar="EVIDENCE", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    required=True,
    help="The .onnx file that is to be promoted; the evidence must be of these very bytes.",
)
@click.option(
    "--manifest",
    "manifest_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the manifest that the evidence must have been measured on.",
)
@click.option(
    "--champion",
    type=MaybePath(path_type=Path),
    help="The .onnx file of the present champion; the evidence must hold the comparison with these very bytes.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=Path("registry/policy.yaml"),
    show_default=True,
    help="YAML file with targets, minimums and the test images that are needed.",
)
@click.option("--out", type=MaybePath(path_type=Path), help="Also write the decision to this JSON file.")
def gate(
    evidence_file: Path, bundle: Path, manifest_dir: Path, champion: Path | None, policy_file: Path, out: Path | None
) -> None:
    """Judge EVIDENCE (evidence.json): PROMOTE ends with 0, HOLD and REJECT with 1."""
    from pillsnap.core.errors import GateRefusedError
    from pillsnap.core.evidence import Evidence
    from pillsnap.core.files import sha256_file
    from pillsnap.core.manifest import Manifest
    from pillsnap.gate.decision import Verdict, decide
    from pillsnap.gate.policy import Policy
    from pillsnap.inference.session import PillSession

    with project_run(f"gate {bundle.stem}") as run:
        policy = Policy.load(policy_file)
        evidence = Evidence.load(evidence_file)
        session = PillSession.load(bundle)
        decision = decide(
            evidence,
            policy,
            bundle_sha256=session.sha256,
            manifest_hash=Manifest.load(manifest_dir).hash,
            champion_sha256=None if champion is None else sha256_file(champion),
            trained_on=session.metadata.provenance.manifest_hash,
        )
        if run is not None:
            journey.log_decision(run, decision)
        click.echo(decision.table())
        click.echo(f"\nverdict: {decision.verdict}")
        if out is not None:
            decision.save(out)
            click.echo(f"decision: {out}")
        if decision.verdict != Verdict.PROMOTE:
            reasons = "".join(f"\n  - {reason}" for reason in decision.reasons)
            raise GateRefusedError(f"the gate says {decision.verdict}:{reasons}")
