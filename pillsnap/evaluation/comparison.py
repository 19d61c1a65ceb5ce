"""A candidate beside the champion: both answer the same images of the drugs that both know.

Paired, so that hard photos, which are hard for both, do not blur the difference. Legend: N images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pillsnap.core.evidence import Comparison, PairedDifference
from pillsnap.evaluation.bootstrap import mean_interval
from pillsnap.evaluation.predict import Predictions
from pillsnap.inference.session import PillSession

Bools = NDArray[np.bool_]


def compare(
    ours: Predictions, session: PillSession, theirs: NDArray[np.int64], champion: PillSession, groups_N: list[str]
) -> Comparison:
    """Compare first answers.

    Args:
        ours: the candidate's answers.
        session: the candidate.
        theirs: index of the champion's first answer to each image, in its own classes.
        champion: the champion.
        groups_N: capture group of each image.
    """
    our_names = np.asarray([entry.kcode for entry in session.metadata.classes])
    their_names = np.asarray([entry.kcode for entry in champion.metadata.classes])
    known = {entry.kcode for entry in champion.metadata.classes if not entry.retired}
    true_N = our_names[ours.labels_N]
    both_N = np.asarray([kcode in known for kcode in true_N], np.bool_)
    candidate_N = our_names[ours.predicted_N] == true_N
    champion_N = their_names[theirs] == true_N
    real_N = np.asarray([domain == "real" for domain in ours.rows["domain"].to_pylist()], np.bool_)
    found = {
        "top1": paired_difference(candidate_N, champion_N, groups_N, both_N),
        "real_top1": paired_difference(candidate_N, champion_N, groups_N, both_N & real_N),
    }
    return Comparison(
        champion_sha256=champion.sha256, metrics={name: paired for name, paired in found.items() if paired is not None}
    )


def paired_difference(
    candidate_N: Bools, champion_N: Bools, groups_N: list[str], among_N: Bools
) -> PairedDifference | None:
    """Candidate's share of right answers minus the champion's, among some images; None where there are none.

    The p-value is McNemar's exact test: of the images that only one of them answers right, whether one has more than
    chance gives (McNemar, Psychometrika 12, 1947).
    """
    if not among_N.any():
        return None
    candidate, champion = candidate_N[among_N], champion_N[among_N]
    groups = [group for group, among in zip(groups_N, among_N, strict=True) if among]
    change = candidate.astype(np.float64) - champion
    interval = mean_interval(change, groups)
    if not change.any():
        # no image tells them apart: the draws say nothing, sittings have nothing in common. What is left is that the
        # share of images that do may be more than none (Wilson)
        width = float(binomtest(0, len(change)).proportion_ci(0.95, method="wilson").high)
        low, high = -width, width
    else:
        low, high = interval.low, interval.high
    better, worse = int((candidate & ~champion).sum()), int((champion & ~candidate).sum())
    return PairedDifference(
        difference=float(change.mean()),
        low=low,
        high=high,
        images=len(change),
        groups=interval.groups,
        only_candidate=better,
        only_champion=worse,
        p_value=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
    )
