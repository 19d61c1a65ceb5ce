from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from pillsnap.evaluation import metrics

NAMES = [("K-000001", "a"), ("K-000002", "b"), ("K-000003", "c"), ("K-000004", "d")]
KCODES = [kcode for kcode, _ in NAMES]
LABELS_N = np.asarray([0, 0, 0, 1, 1, 3])
PREDICTED_N = np.asarray([0, 1, 1, 1, 0, 3])


def test_ranks_by_hand() -> None:
    probabilities_NK = np.asarray([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], np.float32)
    assert metrics.true_ranks(np.asarray([0, 1, 2]), probabilities_NK).tolist() == [1, 2, 3]


def test_of_equal_probabilities_the_lower_index_ranks_first_as_when_served() -> None:
    probabilities_NK = np.full((3, 3), 1 / 3, np.float32)
    ranks = metrics.true_ranks(np.asarray([0, 1, 2]), probabilities_NK)
    assert ranks.tolist() == [1, 2, 3]
    served = np.argsort(-probabilities_NK, axis=1, kind="stable")
    assert served.tolist() == [[0, 1, 2]] * 3


def test_a_retired_class_takes_no_rank() -> None:
    """A sure answer leaves 0 for all others: the retired one among them must not push the true one back."""
    probabilities_NK = np.asarray([[0, 0, 1, 0], [0, 0, 1, 0]], np.float32)
    labels_N = np.asarray([1, 3])
    assert metrics.true_ranks(labels_N, probabilities_NK).tolist() == [3, 4]
    assert metrics.true_ranks(labels_N, probabilities_NK, retired=(0,)).tolist() == [2, 3]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ranks_agree_with_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(3)
    probabilities_NK = rng.dirichlet(np.ones(8), 200).astype(np.float32)
    labels_N = rng.integers(0, 5, 200)  # three classes have no images
    theirs = top_k_accuracy_score(labels_N, probabilities_NK, k=k, labels=np.arange(8))
    assert np.mean(metrics.true_ranks(labels_N, probabilities_NK) <= k) == pytest.approx(theirs)


def test_wilson_interval_by_hand() -> None:
    metric = metrics.share(np.asarray([True] * 8 + [False] * 2))
    assert metric is not None
    assert (metric.value, metric.images) == (0.8, 10)
    # Wilson 1927, n = 10, p = 0.8, z = 1.959964
    assert metric.low == pytest.approx(0.4902, abs=1e-4)
    assert metric.high == pytest.approx(0.9433, abs=1e-4)


def test_a_share_of_nothing_is_absent() -> None:
    assert metrics.share(np.asarray([], np.bool_)) is None


def test_top_metrics_by_domain() -> None:
    ranks_N, real_N = np.asarray([1, 2, 6, 1]), np.asarray([True, True, False, False])
    found = {name: metric.value for name, metric in metrics.top_metrics(ranks_N, real_N).items()}
    assert found == {"top1": 0.5, "top5": 0.75, "real_top1": 0.5, "studio_top1": 0.5}
    assert "real_top1" not in metrics.top_metrics(ranks_N, np.zeros(4, np.bool_))


def test_fewer_than_five_classes_have_a_top5_of_one() -> None:
    ranks_N = metrics.true_ranks(np.asarray([0, 1]), np.asarray([[0.1, 0.9], [0.1, 0.9]], np.float32))
    assert metrics.top_metrics(ranks_N, np.ones(2, np.bool_))["top5"].value == 1


def test_confusions_and_classes_by_hand() -> None:
    counts_KK = metrics.confusion_matrix(LABELS_N, PREDICTED_N, 4)
    assert counts_KK.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert metrics.confusions(counts_KK, KCODES) == (("K-000001", "K-000002", 2), ("K-000002", "K-000001", 1))
    real_N = np.asarray([True, False, False, False, False, False])
    real_counts_KK = metrics.confusion_matrix(LABELS_N[real_N], PREDICTED_N[real_N], 4)
    classes = metrics.class_results(counts_KK, real_counts_KK, NAMES)
    assert [item.images for item in classes] == [3, 2, 0, 1]
    assert [item.top1 for item in classes] == [1 / 3, 0.5, None, 1.0]
    assert [item.real_top1 for item in classes] == [1.0, None, None, None]
    assert [item.confused_with for item in classes] == ["K-000002", "K-000001", None, None]
    assert metrics.failures(classes) == ("K-000001", "K-000002")


def test_a_confusion_matrix_of_no_images_is_empty() -> None:
    empty = np.asarray([], np.int64)
    assert metrics.confusion_matrix(empty, empty, 3).tolist() == [[0] * 3] * 3


def test_exactly_70_percent_is_no_failure() -> None:
    counts_KK = np.asarray([[7, 3], [31, 69]])
    classes = metrics.class_results(counts_KK, counts_KK, NAMES[:2])
    assert metrics.failures(classes) == ("K-000002",)


def test_slices_leave_out_what_is_not_known() -> None:
    found = metrics.slice_shares(np.asarray([True, False, True, True]), [10, 2, None, 2])
    assert {value: (metric.value, metric.images) for value, metric in found.items()} == {"2": (0.5, 2), "10": (1.0, 1)}
    assert list(found) == ["2", "10"]


def test_calibration_by_hand() -> None:
    confidences_N = np.asarray([0.95, 0.95, 0.95, 0.95, 0.45, 0.45], np.float32)
    right_N = np.asarray([True, True, True, False, True, True])
    bins = metrics.reliability(confidences_N, right_N)
    assert [(item.images, item.accuracy) for item in bins] == [(2, 1.0), (4, 0.75)]
    assert metrics.expected_calibration_error(bins) == pytest.approx((4 * 0.20 + 2 * 0.55) / 6)


def test_confidences_of_zero_and_one_fall_into_the_outer_ranges() -> None:
    bins = metrics.reliability(np.asarray([0.0, 1.0], np.float32), np.asarray([False, True]))
    assert [(item.low, item.high) for item in bins] == [(0.0, pytest.approx(1 / 15)), (pytest.approx(14 / 15), 1.0)]
    assert metrics.expected_calibration_error(bins) == 0
