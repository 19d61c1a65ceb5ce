"""``report.html``: what a person looks at to see where a model is wrong. One file, with its pictures inside.

Figures with their intervals first, then what limits them, the mistakes side by side, the worst classes and the worst
conditions. Knows the evidence and the answers; gives no verdict, that is the gate's. Names come from drug lists that
others write, so everything is escaped, and the page forbids scripts and foreign addresses altogether.
Legend: N images, H height, W width, C channel.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pillsnap.core.evidence import ClassResult, Evidence, Metric
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation import metrics
from pillsnap.evaluation.examples import example_of, mistakes_in_order, thumbnails
from pillsnap.evaluation.metrics import SHARE_NAMES, interval_of
from pillsnap.evaluation.predict import Predictions

HTML_FILE = "report.html"
THUMB_PX = 144
MISTAKES_SHOWN = 24
CLASSES_SHOWN = 12
THUMBS_PER_CLASS = 6
WAYS = {
    "pytorch": "PyTorch, before the export",
    "client": "the phone's way: crop, 512 px, JPEG",
    "quantised": "the quantised bundle",
}
VALUES = {
    "background": {"0": "palm", "1": "wood", "2": "white", "3": "black", "4": "checked"},
    "light": {"0": "dark", "1": "normal", "2": "bright"},
    "side": {"0": "front", "1": "back"},
}
"""What the capture protocol's numbers mean."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail and what the page says of it."""

    data: str
    """A data URL; empty where there is no picture."""
    right: bool
    text: str


@dataclass(frozen=True)
class Mistake:
    """A test image beside a picture of the drug that it was taken for."""

    true: ClassResult
    answered: ClassResult
    image: Picture
    reference: Picture
    times: int


@dataclass(frozen=True)
class WorstClass:
    """A class and some of its test images, the wrong ones first."""

    result: ClassResult
    pictures: tuple[Picture, ...]


@cache
def _template() -> Template:
    """Compiled once: that takes longer than to fill it."""
    environment = Environment(
        loader=PackageLoader("pillsnap.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, interval=interval_text)
    return environment.get_template("report.html")


def html_report(evidence: Evidence, predictions: Predictions, manifest: Manifest) -> str:
    """The page.

    Raises:
        TamperedError: an image that is shown was changed since it was answered.
        ImageError: it is gone.
    """
    show = _shower(predictions, manifest)
    right_N = predictions.predicted_N == predictions.labels_N
    bins = metrics.reliability(predictions.confidences_N, right_N)
    return _template().render(
        evidence=evidence,
        summary=manifest.summary,
        shares={label: evidence.metrics[name] for name, label in SHARE_NAMES.items() if name in evidence.metrics},
        unmeasured=[label for name, label in SHARE_NAMES.items() if name not in evidence.metrics],
        share_names=SHARE_NAMES,
        names={drug.kcode: drug.drug_name for drug in manifest.catalog.drugs},
        ways=WAYS,
        value_name=value_name,
        wrong=int(np.count_nonzero(~right_N)),
        images=len(right_N),
        mistakes=_mistakes(evidence, predictions, manifest, show),
        worst=_worst_classes(evidence, predictions, manifest, show),
        bins=bins,
        bin_images=max(item.images for item in bins),
        failure_below=metrics.FAILURE_BELOW,
    )


def interval_text(metric: Metric) -> str:
    """The interval in words; empty where there is none."""
    found = interval_of(metric)
    return "" if found is None else f"{found[0] * 100:.1f}–{found[1] * 100:.1f} %"


def value_name(condition: str, value: str) -> str:
    """What a value of a condition is called."""
    return VALUES.get(condition, {}).get(value, value)


def _percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def _shower(predictions: Predictions, manifest: Manifest) -> Callable[[int], str]:
    """A function from the index of a test image to a data URL; every image is read once."""
    open_thumb = thumbnails(predictions, manifest, THUMB_PX)

    @cache
    def show(index: int) -> str:
        image_HWC_u8 = open_thumb(index)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(image_HWC_u8, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
        return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}" if done else ""

    return show


def _results(evidence: Evidence) -> dict[str, ClassResult]:
    return {result.kcode: result for result in evidence.classes}


def _mistakes(
    evidence: Evidence, predictions: Predictions, manifest: Manifest, show: Callable[[int], str]
) -> list[Mistake]:
    """The surest mistake of every confused pair, the most frequent pair first."""
    kcodes, results = manifest.catalog.kcodes, _results(evidence)
    surest: dict[tuple[str, str], int] = {}
    for index in mistakes_in_order(predictions):
        pair = kcodes[int(predictions.labels_N[index])], kcodes[int(predictions.predicted_N[index])]
        surest.setdefault(pair, index)
    found = []
    for true, answered, times in evidence.confusions[:MISTAKES_SHOWN]:
        index = surest[true, answered]
        domain = predictions.rows["domain"][index].as_py()
        example = example_of(predictions, int(predictions.predicted_N[index]), domain)
        sure, rank = float(predictions.confidences_N[index]), int(predictions.ranks_N[index])
        image = Picture(show(index), False, f"{domain}; ranked {rank}")
        reference = Picture("" if example is None else show(example), True, f"{_percent(sure, 0)} sure")
        found.append(Mistake(results[true], results[answered], image, reference, times))
    return found


def _worst_classes(
    evidence: Evidence, predictions: Predictions, manifest: Manifest, show: Callable[[int], str]
) -> list[WorstClass]:
    """The classes that were answered wrong at all, the worst first."""
    judged = [(result.top1, result.kcode, result) for result in evidence.classes if result.top1 is not None]
    worst = [result for top1, _, result in sorted(judged, key=lambda entry: entry[:2]) if top1 < 1][:CLASSES_SHOWN]
    kcodes = manifest.catalog.kcodes
    index_of = {kcode: index for index, kcode in enumerate(kcodes)}
    return [
        WorstClass(result, tuple(_pictures_of(index_of[result.kcode], predictions, kcodes, show))) for result in worst
    ]


def _pictures_of(
    label: int, predictions: Predictions, kcodes: Sequence[str], show: Callable[[int], str]
) -> list[Picture]:
    mine_N = np.flatnonzero(predictions.labels_N == label)
    wrong = [int(i) for i in mine_N if predictions.predicted_N[i] != label]
    right = [int(i) for i in mine_N if predictions.predicted_N[i] == label]
    kept = max(THUMBS_PER_CLASS - 2, THUMBS_PER_CLASS - len(right))  # room for two right ones to compare with
    return [
        Picture(show(i), False, f"taken for {kcodes[int(predictions.predicted_N[i])]}") for i in _spread(wrong, kept)
    ] + [Picture(show(i), True, "right") for i in _spread(right, THUMBS_PER_CLASS - min(len(wrong), kept))]


def _spread(indices: list[int], most: int) -> list[int]:
    """At most ``most`` of them, evenly: photos of one sitting stand side by side and look alike."""
    if len(indices) <= most:
        return indices
    return [indices[int(place)] for place in np.linspace(0, len(indices) - 1, most).round()]
