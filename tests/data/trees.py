"""Builds a tree of the studio data set (AI Hub 576) as its zips unpack, with invented pictures and labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SINGLE = "단일경구약제 5000종"
COMBINED = "경구약제조합 5000종"
COMBINATION = "K-000059-010224-016551-031705"


def picture_bytes(key: str, suffix: str = ".png", size: tuple[int, int] = (96, 128)) -> bytes:
    """A picture (of width × height) that only this key has, with edges, darks and lights."""
    rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
    blocks = rng.integers(0, 256, (16, 12, 3), np.uint8)
    ok, data = cv2.imencode(suffix, cv2.resize(blocks, size, interpolation=cv2.INTER_NEAREST))
    assert ok
    return data.tobytes()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def name(code: str, background: int = 0, side: int = 0, rotation: int = 0, elevation: int = 90) -> str:
    """File name without its ending."""
    return f"{code}_0_{background}_{side}_1_{elevation}_{rotation:03d}_200"


def label(stem: str, kcode: str, box: list[Any] | None, code: str | None = None, **image: Any) -> str:
    """The label of one pill; ``code`` is that of the combination, where it is one."""
    fields = stem.split("_")
    document = {
        "images": [
            {
                "file_name": f"{stem}.png",
                "width": 96,
                "height": 128,
                "drug_N": code or kcode,
                "dl_mapping_code": kcode,
                "dl_name": "타이레놀정500mg(수출용)",
                "di_edi_code": "645100070,645100071",
                "camera_la": int(fields[5]),
                "camera_lo": int(fields[6]),
                "print_front": "마크분할선",
            }
            | image
        ],
        "type": "instances",
        "annotations": [{"area": 1, "bbox": box, "category_id": 1, "image_id": 1}] if box is not None else [],
        "categories": [{"id": 1, "name": "Drug"}],
    }
    return json.dumps(document, ensure_ascii=False)


def single(root: Path, kcode: str, stem: str, box: list[Any] | None, zips: str = "S_1", **image: Any) -> Path:
    """One picture of one pill and its label, in the folders of a training (``TS``) and a label zip (``TL``)."""
    kind, number = zips.split("_")
    picture = write(root / SINGLE / f"T{kind}_{number}_단일" / kcode / f"{stem}.png", picture_bytes(stem))
    write(root / SINGLE / f"TL_{number}_단일" / f"{kcode}_json" / f"{stem}.json", label(stem, kcode, box, **image))
    return picture


def combined(root: Path, stem: str, boxes: dict[str, list[Any] | None], code: str = COMBINATION) -> Path:
    """One picture of several pills, and a label for each of them."""
    picture = write(root / COMBINED / "TS_1_조합" / code / f"{stem}.png", picture_bytes(stem))
    for kcode, box in boxes.items():
        folder = root / COMBINED / "TL_1_조합" / f"{code}_json" / kcode
        write(folder / f"{stem}.json", label(stem, kcode, box, code))
    return picture
