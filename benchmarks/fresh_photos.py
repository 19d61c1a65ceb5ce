"""How many answers does a variant keep, on photos that nobody has looked at?

    python benchmarks/fresh_photos.py pillsnap.onnx int8.onnx --drugs 20 --seeds 1 2 3 4

Photos of the demo's drugs, drawn anew: the drugs are those of `pillsnap data render` (seed 0), the photos are not. No
training, calibration or choice has seen them, and there are as many as wanted: one of each background, light, side and
seed. What is compared is how often each bundle answers as the first does, on the photo as it is and through the
reference client, with Wilson's 95 % interval over photos; also of those alone on which the first is sure.

With ``--write``, and seeds that are not looked at, the photos become a folder to learn from: more sittings of the same
drugs than the demo has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.clients.phone import PhoneClient
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.evaluation.metrics import share
from pillsnap.inference.session import PillSession
from pillsnap.synthetic.conditions import choose_real
from pillsnap.synthetic.dataset import REAL
from pillsnap.synthetic.drugs import design_drugs
from pillsnap.synthetic.render import build_model, render_real

_BATCH = 8


def fresh_photos(index: int, drugs: int, seeds: list[int]) -> list[tuple[str, str, bytes]]:
    """(K-CODE, file name, JPEG) of one drug: a photo of every sitting and seed."""
    design = design_drugs(drugs, 0)[index]
    model = build_model(design)
    photos = []
    for seed in seeds:
        for condition in choose_real(seed, design.index, 30):
            image, quality = render_real(model, condition, seed)
            _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            photos.append((design.kcode, f"{seed}/{condition.file_name(design.kcode)}", data.tobytes()))
    return photos


def batches(photos: list[bytes], preprocessor: InferencePreprocessor) -> Iterator[NDArray[np.uint8]]:
    """What the net sees of the photos, N,H,W,C, a few at a time."""
    for start in range(0, len(photos), _BATCH):
        yield preprocessor.prepare_batch(photos[start : start + _BATCH])


def in_words(hits_N: NDArray[np.bool_]) -> str:
    """A share in per cent with its interval."""
    found = share(hits_N)
    return "-" if found is None else f"{found.value:.2%} ({found.low:.2%}-{found.high:.2%})"


def main() -> None:
    """Draw, answer, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, help="the first is what the others are compared with")
    parser.add_argument("--drugs", type=int, default=100, help="as in the data that the bundles learned from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the photos; 0 are the demo's own")
    parser.add_argument(
        "--write", type=Path, help="a raw folder, whose real_photos get the photos; nothing is compared"
    )
    args = parser.parse_args()
    if bool(args.bundles) == bool(args.write):
        parser.error("give either bundles to compare or --write")
    with ProcessPoolExecutor() as pool:
        draw = partial(fresh_photos, drugs=args.drugs, seeds=args.seeds)
        drawn = [photo for photos in pool.map(draw, range(args.drugs)) for photo in photos]
    if args.write:
        for kcode, name, photo in drawn:
            target = args.write / REAL / kcode / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(photo)
        print(f"{len(drawn)} photos of {args.drugs} drugs written to {args.write / REAL}")
        return
    direct = [photo for _, _, photo in drawn]
    client = PhoneClient()
    ways = {"direct": direct, "client": [client.prepare(photo) for photo in direct]}
    first: dict[str, NDArray[np.int64]] = {}
    sure_N: NDArray[np.bool_] | None = None
    print(f"{len(drawn)} photos of {args.drugs} drugs\n")
    print("| bundle | photo | top-1 | as the first, direct | where that is sure | as the first, same photo |")
    print("|---|---|---|---|---|---|")
    for bundle in args.bundles:
        session = PillSession.load(bundle)
        kcodes = np.asarray([entry.kcode for entry in session.metadata.classes])
        for way, photos in ways.items():
            probabilities_NK = np.concatenate(
                [session.predict(batch).probabilities_NK for batch in batches(photos, session.preprocessor)]
            )
            found_N = probabilities_NK.argmax(axis=1)
            first.setdefault(way, found_N)
            if sure_N is None:
                seen_N = np.asarray([not session.preprocessor.decode_examined(photo).doubts for photo in photos])
                sure_N = seen_N & (probabilities_NK.max(axis=1) >= session.unsure_below)
            right = kcodes[found_N] == np.asarray([kcode for kcode, _, _ in drawn])
            kept_N = found_N == first["direct"]
            kept = " | ".join(in_words(same) for same in (kept_N, kept_N[sure_N], found_N == first[way]))
            print(f"| {bundle.name} | {way} | {in_words(right)} | {kept} |", flush=True)
    print(f"\nsure: {0 if sure_N is None else int(sure_N.sum())}")


if __name__ == "__main__":
    main()
