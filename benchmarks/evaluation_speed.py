"""How much the evaluation costs beyond the model: its images a second against a bare ONNX Runtime loop.

    python benchmarks/evaluation_speed.py MANIFEST_DIR BUNDLE --images 1000 --threads 2

The bare loop reads, decodes and prepares the same files one after the other and runs the same graph; it checks no
digest and keeps no order. The evaluation's way is `predict_split`: with digests, its own threads and the check of every
answer. Rounds take turns, and the first to go changes, so that a busy machine hits both; what counts is the ratio.
Processor seconds show what the threads hide.
Legend: N images, K classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from pillsnap.core.bundle import INPUT_NAME, OUTPUT_NAMES
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.predict import predict_split
from pillsnap.inference.session import PillSession

TARGET = 0.9


def bare_loop(model: ort.InferenceSession, session: PillSession, manifest: Manifest) -> np.ndarray:
    """Read, prepare, run; nothing else. Returns ``predicted_N``."""
    paths = [manifest.root / path for path in manifest.split("test")["path"].to_pylist()]
    answers = []
    for path in paths:
        image_1HWC_u8 = session.preprocessor.prepare_for_model(path.read_bytes())
        answers.append(model.run(list(OUTPUT_NAMES), {INPUT_NAME: image_1HWC_u8})[1].argmax(axis=1))
    return np.concatenate(answers)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds, processor seconds and the answers."""
    wall, processor = time.perf_counter(), time.process_time()
    answers = work()
    return time.perf_counter() - wall, time.process_time() - processor, answers


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    whole = Manifest.load(arguments.manifest)
    test = whole.split("test")
    count = min(arguments.images, test.num_rows)
    chosen = test.take(np.linspace(0, test.num_rows - 1, count).round().astype(int))
    manifest = dataclasses.replace(whole, rows=chosen)
    session = PillSession.load(arguments.bundle, threads=arguments.threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the evaluation's session
    model = ort.InferenceSession(arguments.bundle, options, providers=["CPUExecutionProvider"])

    ways: dict[str, Callable[[], np.ndarray]] = {
        "bare": lambda: bare_loop(model, session, manifest),
        "evaluation": lambda: predict_split(session, manifest).predicted_N,
    }
    expected = {name: work() for name, work in ways.items()}  # warm: files in memory, threads started
    if not np.array_equal(expected["bare"], expected["evaluation"]):
        raise SystemExit("the two ways answer differently: this would compare two different works")
    walls: dict[str, list[float]] = {name: [] for name in ways}
    processors: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            wall, processor, _ = timed(ways[name])
            walls[name].append(wall)
            processors[name].append(processor)

    print(
        f"{count} test images, {arguments.threads} threads, {os.cpu_count()} cores, {arguments.rounds} rounds, medians"
    )
    for name in ways:
        wall, processor = statistics.median(walls[name]), statistics.median(processors[name])
        print(f"{name:<12}{count / wall:8.0f} images/s {1000 * processor / count:8.2f} ms of processor an image")
    ratios = [bare / ours for bare, ours in zip(walls["bare"], walls["evaluation"], strict=True)]
    ratio = statistics.median(ratios)
    cost = statistics.median(processors["evaluation"]) / statistics.median(processors["bare"])
    print(f"evaluation / bare: {ratio:.2f} of its images/s ({min(ratios):.2f} to {max(ratios):.2f}), wanted {TARGET}")
    print(f"processor time: {cost:.2f} of the bare loop's")
    raise SystemExit(0 if ratio >= TARGET else 1)


if __name__ == "__main__":
    main()
