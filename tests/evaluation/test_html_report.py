from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.core.catalog import Catalog
from pillsnap.core.errors import TamperedError
from pillsnap.core.evidence import Agreement, Comparison, Evidence, Metric, PairedDifference
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation import html_report as module
from pillsnap.evaluation.evidence import evaluate
from pillsnap.evaluation.html_report import HTML_FILE, html_report, interval_of, value_name
from pillsnap.evaluation.report import write_report

# (label, painted as, split, domain): class 2 is taken for 3 twice and for 1 once; class 4 is always right.
IMAGES = [
    *[(2, 3, "test", "real")] * 2,
    (2, 1, "test", "real"),
    (2, 2, "test", "real"),
    *[(4, 4, "test", "studio")] * 2,
    (3, 3, "test", "studio"),
]


class Page(HTMLParser):
    """What a browser would make of it: the tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def house(toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("html")
    manifest = toys.save_manifest(root / "manifest", toys.toy_colors(6), IMAGES)
    bundle = toys.save_bundle(root / "model.onnx", toys.toy_colors(6), manifest.hash)
    return SimpleNamespace(manifest=manifest, bundle=bundle, result=evaluate(bundle, manifest, threads=1))


def render(house: SimpleNamespace, **changes: Any) -> str:
    return html_report(house.result.evidence.model_copy(update=changes), house.result.predictions, house.manifest)


def test_the_mistakes_stand_in_order_with_both_pictures(house: SimpleNamespace) -> None:
    page = render(house)
    section = page[page.index('id="mistakes"') : page.index("Most often taken for each other")]
    assert re.findall(r"K-99000\d", section) == ["K-990003", "K-990004", "K-990003", "K-990002"]
    assert section.count("<img") == 3  # class 1 has no test image to stand beside
    assert section.count("no test image") == 1
    assert "2 times" in section


def test_a_pair_is_shown_by_its_surest_mistake(house: SimpleNamespace) -> None:
    predictions = house.result.predictions
    pair_N = (predictions.labels_N == 2) & (predictions.predicted_N == 3)
    probabilities_NK = predictions.probabilities_NK.copy()
    for place, sure in zip(pair_N.nonzero()[0], (0.83, 0.61), strict=True):
        probabilities_NK[place] = 0
        probabilities_NK[place, [3, 2]] = sure, 1 - sure
    page = html_report(house.result.evidence, replace(predictions, probabilities_NK=probabilities_NK), house.manifest)
    assert "83 % sure" in page
    assert "61 % sure" not in page


def test_only_classes_with_mistakes_are_the_worst_and_the_wrong_pictures_come_first(house: SimpleNamespace) -> None:
    page = render(house)
    section = page[page.index('id="classes"') : page.index('id="slices"')]
    assert re.findall(r'class="frame (wrong|right)"', section) == ["wrong", "wrong", "wrong", "right"]
    assert "가상정2" in section
    assert "가상정4" not in section
    assert '<div class="share low">25 %</div>' in section


def test_figures_are_drawn_where_they_are(house: SimpleNamespace) -> None:
    metric = Metric(value=0.5, low=0.4, high=0.6, images=7, group_low=0.25, group_high=0.75, groups=3)
    page = render(house, metrics={**house.result.evidence.metrics, "top1": metric})
    assert 'class="band" style="left:25.0%;width:50.0%"' in page
    assert 'class="dot" style="left:50.0%"' in page
    assert "25.0–75.0 % · 7 images in 3 sittings" in page
    assert interval_of(metric.model_copy(update={"group_low": None})) == (0.4, 0.6)
    assert interval_of(Metric(value=0.5)) is None


def test_what_was_not_measured_is_said_and_never_zero(house: SimpleNamespace) -> None:
    kept = {name: metric for name, metric in house.result.evidence.metrics.items() if name != "real_top1"}
    text = Page(render(house, metrics=kept)).text
    assert "Top-1, real photos–not measured" in text
    assert "Against the champion" not in text


def test_the_champion_agreements_and_worst_slices_are_shown(house: SimpleNamespace) -> None:
    paired = PairedDifference(
        difference=-0.05, low=-0.5, high=-0.01, images=7, groups=3, only_candidate=2, only_champion=4, p_value=0.25
    )
    page = render(
        house,
        comparison=Comparison(champion_sha256="c" * 64, metrics={"top1": paired}),
        agreements={"client": Agreement(images=11, top1=0.875)},
        worst_slices={"light": ("0", house.result.evidence.slices["light"]["0"])},
        look_alikes=(("K-990003", "K-990004", 0.4),),
    )
    text = Page(page).text
    assert "-50.0 to -1.0 points · 7 images in 3 sittings" in text
    assert "right in one only: 2 new, 4 champion · p = 0.25" in text
    assert 'style="left:0.0%;width:47.5%"' in page  # cut at the edge of the bar
    assert "87.5 % of 11 images: the phone" in text
    assert re.search(r'figure small worst"><span class="name">dark', page)
    assert "가상정2 K-990003" in text


def test_conditions_have_the_names_of_the_capture_protocol() -> None:
    assert [value_name("background", value) for value in ("0", "4", "9")] == ["palm", "checked", "9"]
    assert (value_name("side", "1"), value_name("domain", "real")) == ("back", "real")


def test_a_perfect_model_has_no_mistakes_to_show(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(3), [(k, k, "test", "studio") for k in range(3)])
    result = evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(3)), manifest, threads=1)
    page = html_report(result.evidence, result.predictions, manifest)
    assert "every test image was answered right" in page
    assert "The worst classes" not in page
    assert "<img" not in page


def test_the_report_holds_the_page_and_needs_nothing_else(house: SimpleNamespace, tmp_path: Path) -> None:
    folder = write_report(house.result, house.manifest, tmp_path / "report")
    page = Page((folder / HTML_FILE).read_text(encoding="utf-8"))
    addresses = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert addresses
    assert all(str(address).startswith("data:image/jpeg;base64,") for address in addresses)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_picture_that_was_changed_meanwhile_is_not_shown(toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(tmp_path / "m", toys.toy_colors(6), IMAGES)
    result = evaluate(toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6)), manifest, threads=1)
    (manifest.root / result.predictions.rows["path"][0].as_py()).write_bytes(b"other")
    with pytest.raises(TamperedError, match="was changed"):
        html_report(result.evidence, result.predictions, manifest)


ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "</style></title><svg onload=x>",
]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_markup_in_names_is_text(house: SimpleNamespace, name: str) -> None:
    manifest: Manifest = house.manifest
    drugs = tuple(drug.model_copy(update={"drug_name": name}) for drug in manifest.catalog.drugs)
    evidence: Evidence = house.result.evidence
    hostile = evidence.model_copy(
        update={
            "classes": tuple(result.model_copy(update={"drug_name": name}) for result in evidence.classes),
            "notes": (name,),
            "environment": {name: name},
            "code": {name: name},
            "manifest_date": name,
            "slices": {name: {name: Metric(value=0.5)}},
            "agreements": {name: Agreement(images=1, top1=1.0)},
            "look_alikes": (("K-990003", "K-990004", 0.4),),
            "latency": evidence.latency.model_copy(update={"hardware": name, "image": name, "provider": name}),
        }
    )
    catalog = Catalog(version="toy", drugs=drugs)
    other = Manifest(manifest.root, {**manifest.summary, "name": name}, manifest.rows, catalog)
    page = Page(html_report(hostile, house.result.predictions, other))
    tame = Page(render(house))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in tame.tags} | {"ul", "li"}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.text.count(name) >= 10


def test_the_number_of_pictures_has_a_limit(house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MISTAKES_SHOWN", 1)
    monkeypatch.setattr(module, "THUMBS_PER_CLASS", 3)
    page = render(house)
    assert "1 of 2 kinds" in page
    section = page[page.index('id="classes"') : page.index('id="slices"')]
    assert re.findall(r'class="frame (wrong|right)"', section) == ["wrong", "wrong", "right"]
