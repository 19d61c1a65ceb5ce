import base64
import json
import runpy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pillsnap.core.images import decode_rgb
from pillsnap.data import audit_report
from pillsnap.data.audit import NOTES, QUARANTINE, AuditLimits
from pillsnap.data.audit_report import AUDIT_FILE, write_audit_report
from pillsnap.data.prepare import prepare
from pillsnap.data.scan import SCAN_FILE, ScanStore

trees = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("trees.py"))))
EVIL = '<script>alert("1")</script> & 타이레놀정500mg'


class Page(HTMLParser):
    """What a page shows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.texts, self.ids, self.targets = set(), [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.ids.add(values.get("id"))
        if values.get("href", "").startswith("#"):
            self.targets.add(values["href"][1:])
        if tag == "img":
            self.images.append((values["alt"], values["src"]))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def pixels(source):
    kind, _, data = source.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    return decode_rgb(base64.b64decode(data, validate=True))


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A data set with a finding of many kinds, made once."""
    root = tmp_path_factory.mktemp("audit")
    raw = tiny.raw(root / "raw")
    drugs = json.loads((raw / "drugs.json").read_text())
    drugs["drugs"][0]["drug_name"] = EVIL
    (raw / "drugs.json").write_text(json.dumps(drugs, ensure_ascii=False))
    one, two = (raw / "real_photos" / kcode for kcode in tiny.kcodes)
    for number in range(audit_report._THUMBS_PER_CODE + 3):
        (one / f"깨진 <b>사진 {number:02d}.jpg").write_bytes(b"no picture")
    assert cv2.imwrite(str(one / "dark.png"), np.zeros((32, 32, 3), np.uint8))
    two.joinpath("same.jpg").write_bytes(next(one.glob("K-*.jpg")).read_bytes())
    copied = next(two.glob("K-*.jpg"))
    two.joinpath("zz copy.jpg").write_bytes(copied.read_bytes())
    return prepare(tiny.request(raw, root / "out", limits=AuditLimits(min_side_px=16), max_damage=0.5))


@pytest.fixture(scope="module")
def page(built):
    return Page((built.manifest.root / AUDIT_FILE).read_text(encoding="utf-8"))


def test_every_quarantined_path_is_listed_with_its_reason(built, page):
    left_out = built.report["left_out"]
    assert set(left_out) == {"unsupported_format", "too_dark", "duplicate_across_classes"}
    assert len(left_out["unsupported_format"]) > audit_report._THUMBS_PER_CODE
    for by_path in left_out.values():
        for path, reason in by_path.items():
            assert page.texts.count(path) == 1
            assert reason in page.texts
    for path, kept in built.report["duplicate"].items():
        assert path in page.texts
        assert kept in page.texts


def test_names_stay_as_they_are_and_do_nothing(page):
    assert EVIL in page.texts
    assert "깨진 <b>사진 00.jpg" in page.texts
    assert not page.tags & {"script", "link", "iframe"}


def test_every_code_is_explained_and_every_link_leads_somewhere(built, page):
    for code in (*built.report["left_out"], *built.report["notes"]):
        assert {**QUARANTINE, **NOTES}[code] in page.texts
        assert {code, "quarantined", "missing"} <= page.targets
    assert page.targets <= page.ids


def test_every_picture_in_the_page_decodes(built, page):
    shown = {alt: pixels(source) for alt, source in page.images}
    dark = f"real_photos/{built.manifest.catalog.kcodes[0]}/dark.png"
    assert dark in shown
    assert int(shown[dark].max()) < 8
    thumbs = [image_HWC_u8 for alt, image_HWC_u8 in shown.items() if "/" in alt]
    assert all(max(image_HWC_u8.shape) == audit_report._THUMB_PX for image_HWC_u8 in thumbs)
    charts = {alt: image_HWC_u8 for alt, image_HWC_u8 in shown.items() if "/" not in alt}
    assert set(charts) == {"Images a class, by split", "Images a class, by domain", "Brightness", "Sharpness"}
    assert all(image_HWC_u8.std() > 5 for image_HWC_u8 in charts.values())


def test_a_studio_picture_and_a_real_photo_of_each_class(built, page):
    shown = {path.rpartition("/")[0] for path, _ in page.images if "/" in path}
    for kcode in built.manifest.catalog.kcodes:
        assert {f"studio/{kcode}", f"real_photos/{kcode}"} <= shown


def test_of_several_pills_only_the_one_in_the_box_is_shown(tiny, tmp_path):
    kcodes = ("K-000059", "K-010224")
    for number in range(12):
        stem = trees.name(trees.COMBINATION, rotation=20 * number)
        image_HWC_u8 = cv2.imdecode(np.frombuffer(trees.picture_bytes(stem), np.uint8), cv2.IMREAD_COLOR)
        image_HWC_u8[4:44, 4:44] = (0, 0, 255)
        image_HWC_u8[64:104, 50:90] = (255, 0, 0)
        boxes = dict(zip(kcodes, ([8, 8, 32, 32], [54, 68, 32, 32]), strict=True))
        assert cv2.imwrite(str(trees.combined(tmp_path / "studio", stem, boxes)), image_HWC_u8)
    tiny.drug_list(tmp_path / "drugs.json", kcodes)
    limits = AuditLimits(min_side_px=16)
    request = tiny.request(tmp_path, tmp_path / "out", real=None, combinations=True, minimum=1, limits=limits)
    page = Page((prepare(request).manifest.root / AUDIT_FILE).read_text(encoding="utf-8"))
    shown = {path.split("/")[1]: pixels(source) for path, source in page.images if "/" in path}
    for kcode, color in zip(kcodes, ((255, 0, 0), (0, 0, 255)), strict=True):
        assert np.abs(shown[kcode].astype(int) - color).max() < 20


def test_the_numbers(built, page):
    text = " ".join(page.texts)
    for key in ("pictures_found", "pictures_used", "studio_not_needed"):
        assert f" {built.report[key]} " in text
    assert f" {sum(map(len, built.report['left_out'].values()))} quarantined" in text
    for split, count in built.manifest.summary["splits"].items():
        assert f" {split} {count} " in text
    assert page.texts.count("32 px") >= 2  # the usual sizes


def test_the_same_input_gives_the_same_page(built, tmp_path):
    with ScanStore.open(built.manifest.root / SCAN_FILE) as store:
        write_audit_report(tmp_path / "again.html", built.manifest, built.report, store)
    assert (tmp_path / "again.html").read_bytes() == (built.manifest.root / AUDIT_FILE).read_bytes()


def test_long_lists_of_notes_are_cut_and_say_so(built, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_report, "_LISTED", 2)
    notes = {"odd_size": {f"real_photos/{number}.jpg": "x" for number in range(3)}}
    report = {**built.report, "notes": notes, "duplicate": {f"a{n}": f"b{n}" for n in range(4)}}
    with ScanStore.open(built.manifest.root / SCAN_FILE) as store:
        write_audit_report(tmp_path / "cut.html", built.manifest, report, store)
    texts = Page((tmp_path / "cut.html").read_text(encoding="utf-8")).texts
    assert "The first 2 of 3, all are in report.json" in texts
    assert "Copies left out: the first 2 of 4, all are in report.json" in texts
    assert "a1" in texts
    assert "a2" not in texts


def test_a_clean_data_set(tiny, raw, tmp_path):
    limits = AuditLimits(min_side_px=16)
    result = prepare(tiny.request(raw, tmp_path / "out", limits=limits))
    assert not result.report["left_out"]
    page = Page((result.manifest.root / AUDIT_FILE).read_text(encoding="utf-8"))
    assert "0" in page.texts
    assert page.texts.count("Nothing.") == 2
