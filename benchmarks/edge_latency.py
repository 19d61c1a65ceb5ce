"""How fast small nets answer, from the bytes of the client's 512-pixel JPEG to the top 5.

    python benchmarks/edge_latency.py --data workspace/demo/data --threads 2
    python benchmarks/edge_latency.py --backbones tf_efficientnetv2_s "tf_efficientnetv2_s {act_layer: relu}"

Each backbone gets random weights (time does not hang on them), goes through the exporter and, for its variants,
through `pillsnap quantise` without search (a few calibration images: of no worth but for the time). All are timed as
the gate times them: `measure_latency` on test photos that went through the reference client. Rounds of all nets take
turns; the table has the median of the rounds' figures and the best round, nearest to a machine that is idle else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import yaml

from pillsnap.cli.dry_run import few_rows
from pillsnap.clients.phone import PhoneClient
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.latency import choose_photos, hardware_name, measure_latency
from pillsnap.exporting.export import export_bundle
from pillsnap.exporting.quantise import LEAST_CALIBRATION_IMAGES, Recipe, make_variant
from pillsnap.inference.session import PillSession
from pillsnap.training.backbone import create_net
from pillsnap.training.checkpoint import Checkpoint

_CALIBRATION_IMAGES = 4 * LEAST_CALIBRATION_IMAGES  # asked for; evenly over the classes there are fewer


def export_random(asked: str, size: int, manifest: Manifest, folder: Path) -> dict[str, Path]:
    """The bundle of an untrained net, and its variants.

    Args:
        asked: timm's name of the backbone; after a blank, if wanted, the experiment's ``model.kwargs`` as YAML.
        size: pixels.
        manifest: whose photos calibrate.
        folder: of the files.
    """
    backbone, _, arguments = asked.partition(" ")
    document = {
        "preprocessing": {"target_size": size},
        "model": {"backbone": backbone, "pretrained": False, "kwargs": yaml.safe_load(arguments or "{}")},
        "data": {"batch_size": _CALIBRATION_IMAGES},
    }
    config = ExperimentConfig.build(document, None, asked)
    few = few_rows(manifest, config)
    torch.manual_seed(0)
    net = create_net(config.model, config.preprocessing, len(few.catalog.drugs))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one batch sets the statistics: else random weights give logits of any size
    with torch.no_grad():
        net.train()(torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8))
    checkpoint = Checkpoint(config, few.catalog.kcodes, few.hash, 1, {}, net.state_dict())
    folder.mkdir()
    bundle = export_bundle(checkpoint, few, folder / "float.onnx").bundle
    found = {f"{asked}, fp32, ONNX Runtime": bundle}
    recipes: dict[str, Recipe] = {
        "fp32, OpenVINO": Recipe(precision="float", engine="openvino"),
        "8 bits, ONNX Runtime": Recipe(engine="onnxruntime", images=_CALIBRATION_IMAGES, search=False),
        "8 bits, OpenVINO": Recipe(engine="openvino", images=_CALIBRATION_IMAGES, search=False),
    }
    for number, (shown, recipe) in enumerate(recipes.items()):
        found[f"{asked}, {shown}"] = make_variant(bundle, few, folder / f"variant{number}.onnx", recipe).bundle
    return found


def main() -> None:
    """Export, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("workspace/demo/data"), help="folder with manifest.json")
    parser.add_argument(
        "--backbones", nargs="+", default=["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]
    )
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100, help="of each round")
    args = parser.parse_args()
    manifest = Manifest.load(args.data)
    photos, _ = choose_photos(manifest, manifest.split("test"))
    client = PhoneClient()
    sent = [client.prepare(photo) for photo in photos]
    kilobytes = statistics.median(len(photo) for photo in sent) / 1e3
    print(f"{hardware_name()}, {args.threads} threads; {len(sent)} JPEGs of 512 px, median {kilobytes:.0f} kB\n")
    with tempfile.TemporaryDirectory() as name:
        bundles: dict[str, Path] = {}
        for number, each in enumerate(args.backbones):
            bundles |= export_random(each, args.size, manifest, Path(name) / str(number))
        sessions = {each: PillSession.load(bundle, threads=args.threads) for each, bundle in bundles.items()}
        sizes_mb = {each: bundle.stat().st_size / 1e6 for each, bundle in bundles.items()}
    p50s: dict[str, list[float]] = {each: [] for each in sessions}
    p95s: dict[str, list[float]] = {each: [] for each in sessions}
    for _ in range(args.rounds):
        for each, session in sessions.items():
            found = measure_latency(session, sent, "client JPEG", runs=args.runs)
            p50s[each].append(found.p50_ms)
            p95s[each].append(found.p95_ms)
    print(f"| backbone, {args.size} px | MB | p50, ms | p95, ms | p95 of the best round, ms |")
    print("|---|---:|---:|---:|---:|")
    for each in sessions:
        p50, p95 = statistics.median(p50s[each]), statistics.median(p95s[each])
        print(f"| {each} | {sizes_mb[each]:.1f} | {p50:.1f} | {p95:.1f} | {min(p95s[each]):.1f} |")


if __name__ == "__main__":
    main()
