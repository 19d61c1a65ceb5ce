"""What a random split would have promised: a quick probe on the manifest's split, and on random ones of the same sizes.

    python benchmarks/honest_split.py MANIFEST_DIR

The probe sees what leaks most: a colour histogram and a thumbnail of the whole picture, by its nearest neighbour and by
logistic regression. The difference between the two columns is what the photos of one sitting tell about each other.
Legend: N images, F features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pillsnap.core.images import decode_rgb
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import ClaheSpec, PreprocessingSpec

_SIDE = 128
_SEEDS = 5
_PROBES = {
    "nearest neighbour": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(1)),
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
}


def features(manifest: Manifest) -> NDArray[np.float32]:
    """``features_NF``: square root of a histogram of 8 × 4 × 4 colours (HSV), and the picture at 12 × 12."""
    preprocessor = UnifiedPreprocessor(
        PreprocessingSpec(target_size=_SIDE, interpolation="area", clahe=ClaheSpec(enabled=False))
    )
    rows = []
    for path, sha256 in zip(manifest.rows["path"].to_pylist(), manifest.rows["sha256"].to_pylist(), strict=True):
        image = preprocessor.to_model_input(decode_rgb(manifest.read_image(path, sha256), path))
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        histogram = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).ravel()
        thumb = cv2.resize(image, (12, 12), interpolation=cv2.INTER_AREA).ravel()
        rows.append(np.concatenate([np.sqrt(histogram / histogram.sum()), thumb / 255]))
    return np.asarray(rows, np.float32)


def random_split(stratum_N: NDArray[np.str_], split_N: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.str_]:
    """The same number of images of each class and domain in each split, drawn without a look at the sittings."""
    shuffled = split_N.copy()
    for stratum in np.unique(stratum_N):
        members = np.flatnonzero(stratum_N == stratum)
        shuffled[members] = rng.permutation(shuffled[members])
    return shuffled


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="folder of a prepared data set")
    manifest = Manifest.load(parser.parse_args().manifest)
    features_NF = features(manifest)
    label_N = manifest.labels(manifest.rows)
    split_N = np.asarray(manifest.rows["split"].to_pylist())
    domain_N = np.asarray(manifest.rows["domain"].to_pylist())
    stratum_N = np.char.add(label_N.astype(str), domain_N)
    splits = {
        "by capture group": [split_N],
        "random": [random_split(stratum_N, split_N, np.random.default_rng(seed)) for seed in range(_SEEDS)],
    }
    print(f"{'probe':22s} {'split':18s} {'test top-1':>11} {'studio':>8} {'real':>8}")
    for probe, make in _PROBES.items():
        for title, candidates in splits.items():
            shares = []
            for split in candidates:
                train, test = split == "train", split == "test"
                right = make().fit(features_NF[train], label_N[train]).predict(features_NF[test]) == label_N[test]
                domains = [right[domain_N[test] == domain] for domain in ("studio", "real")]
                shares.append([right.mean(), *(part.mean() if len(part) else np.nan for part in domains)])
            top1, studio, real = np.mean(shares, axis=0)
            print(f"{probe:22s} {title:18s} {top1:11.1%} {studio:8.1%} {real:8.1%}")
    print(f"{int((split_N == 'test').sum())} test images; random: the mean of {_SEEDS} splits")


if __name__ == "__main__":
    main()
