"""Draws the golden vectors: the photos, what a client must make of them, and what the server must.

    python tests/golden/make_vectors.py        writes pillsnap/clients/golden anew

The expected pixels are computed here from the words of the contract, in float64, and not by any of the clients. Only
the reference JPEGs (OpenCV) and the server's expectation (`UnifiedPreprocessor`) are recorded from this version.
Everything is drawn; there is no photo of anybody's. Legend: H height, W width, C channel.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.clients.phone import FOLDER, PhoneClient
from pillsnap.core.client_contract import ClientContract
from pillsnap.core.files import sha256_bytes, write_bytes, write_json
from pillsnap.core.images import decode_rgb
from pillsnap.core.preprocessing import UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.synthetic.conditions import RealCondition
from pillsnap.synthetic.drugs import design_drugs
from pillsnap.synthetic.render import build_model, render_real

U8 = NDArray[np.uint8]
GOLDEN = FOLDER / "golden"
LOSSLESS = {"max": 1, "mean": 0.25}
"""Fixed-point arithmetic stays under 0.13 on these photos; rounding down instead of to the nearest costs 0.5."""
DECODED = {"max": 4, "mean": 0.5}
"""Decoders of JPEG may differ in the last bits, and by more where they enlarge the colour planes differently."""
ENCODED_SHARE = 0.6
"""Two JPEGs of pixels that differ by a level here and there, decoded alike, differ by this share of what the JPEG
itself loses (both as mean differences; 0.5 was measured between OpenCV's fixed-point resize and the exact one)."""
MODEL = {"max": 8, "mean": 0.5}
"""CLAHE stretches a difference of one level."""


@dataclass(frozen=True)
class Vector:
    """One photo: its pixels (upright, before any encoding), how it is stored, and for which sizes."""

    name: str
    about: str
    draw: Callable[[], U8]
    store: Callable[[U8], tuple[str, bytes]]
    target_size: int = 128
    model_size: int = 64


def resize_by_the_rule(square_HWC: U8, size: int) -> U8:
    """The contract's resize in float64, from its words alone."""
    side = square_HWC.shape[0]
    position = (np.arange(size) + 0.5) * side / size - 0.5
    low = np.floor(position).astype(int)
    weight = position - low
    first, second = np.clip(low, 0, side - 1), np.clip(low + 1, 0, side - 1)
    pixels = square_HWC.astype(np.float64)
    across, down = weight[None, :, None], weight[:, None, None]
    wide = (1 - across) * pixels[:, first] + across * pixels[:, second]
    return np.floor((1 - down) * wide[first] + down * wide[second] + 0.5).astype(np.uint8)


def square_by_the_rule(image_HWC_u8: U8, size: int) -> U8:
    """The contract's crop and resize."""
    height, width = image_HWC_u8.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize_by_the_rule(image_HWC_u8[top : top + side, left : left + side, :3], size)


def scene(height: int, width: int) -> U8:
    """Four corners of four colours, a grid, and an arrow up: any turn, mirror or swap of channels shows."""
    image = np.full((height, width, 3), 225, np.uint8)
    middle_y, middle_x = height // 2, width // 2
    image[:middle_y, :middle_x] = (220, 60, 50)
    image[:middle_y, middle_x:] = (60, 170, 70)
    image[middle_y:, :middle_x] = (50, 80, 210)
    image[middle_y:, middle_x:] = (235, 205, 70)
    unit = max(1, min(height, width) // 16)
    image[:: 2 * unit, ::unit] //= 2
    cv2.arrowedLine(
        image, (middle_x, middle_y + 6 * unit), (middle_x, middle_y - 6 * unit), (250, 250, 250), unit, cv2.LINE_8
    )
    return image


def smooth_scene(height: int, width: int) -> U8:
    """The four corners without edges, for photos that are stored as JPEG."""
    corners = np.asarray([[(220, 60, 50), (60, 170, 70)], [(50, 80, 210), (235, 205, 70)]], np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    down, across = (y / max(1, height - 1))[..., None], (x / max(1, width - 1))[..., None]
    top = (1 - across) * corners[0, 0] + across * corners[0, 1]
    bottom = (1 - across) * corners[1, 0] + across * corners[1, 1]
    return np.floor((1 - down) * top + down * bottom + 0.5).astype(np.uint8)


def noise(height: int, width: int, channels: int = 3) -> U8:
    return np.random.default_rng(20).integers(0, 256, (height, width, channels), np.uint8)


def gray() -> U8:
    return np.repeat(scene(150, 190)[..., 1:2], 3, axis=2)


def transparent() -> U8:
    """R, G, B, alpha: also colours that cannot be seen at all."""
    image = np.dstack([scene(160, 200), np.zeros((160, 200), np.uint8)])
    image[..., 3] = np.linspace(0, 255, 200).astype(np.uint8)
    return image


def imprint() -> U8:
    """Strokes of one pixel, as a scored imprint seen from afar: where resizing aliases most."""
    image = np.full((420, 560, 3), (236, 232, 224), np.uint8)
    for row in range(14):
        cv2.putText(
            image, f"PS {row:02d} IMPRINT 500", (60, 30 + 28 * row), cv2.FONT_HERSHEY_PLAIN, 1.3, (40, 44, 60), 1, 8
        )
    return image


def pill() -> U8:
    photo, _ = render_real(build_model(design_drugs(12)[7]), RealCondition(1, 2, 0, 45), 0)
    return photo


def as_png(image_HWC_u8: U8) -> tuple[str, bytes]:
    """PNG: grey as one channel, alpha kept."""
    if image_HWC_u8.shape[2] == 4:
        stored = cv2.cvtColor(image_HWC_u8, cv2.COLOR_RGBA2BGRA)
    elif (image_HWC_u8 == image_HWC_u8[..., :1]).all():
        stored = image_HWC_u8[..., 0]
    else:
        stored = cv2.cvtColor(image_HWC_u8, cv2.COLOR_RGB2BGR)
    return "png", cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def as_jpeg(image_HWC_u8: U8, sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420) -> tuple[str, bytes]:
    options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return "jpg", cv2.imencode(".jpg", cv2.cvtColor(image_HWC_u8, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def turned(orientation: int) -> Callable[[U8], tuple[str, bytes]]:
    """Store the upright picture the way a phone held otherwise does: turned pixels and an EXIF note."""
    undo: dict[int, Callable[[U8], U8]] = {
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, 1),
        7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
        8: lambda image: np.rot90(image, -1),
    }
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\x00\x00MM\x00\x2a" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)

    def store(image_HWC_u8: U8) -> tuple[str, bytes]:
        stored = np.ascontiguousarray(undo[orientation](image_HWC_u8))
        suffix, data = as_jpeg(stored, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
        return suffix, with_segment(data, 0xE1, exif)

    return store


def with_profile(image_HWC_u8: U8) -> tuple[str, bytes]:
    """A JPEG that carries a colour profile of wide primaries and gamma 1: whoever applies it gets other pixels."""
    suffix, data = as_jpeg(image_HWC_u8, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return suffix, with_segment(data, 0xE2, b"ICC_PROFILE\x00\x01\x01" + icc_profile())


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + jpeg[2:]


def icc_profile() -> bytes:
    """A matrix profile of ICC version 2.1: wide primaries, linear curves."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \x00\x00\x00\x00" + struct.pack(">3i", *(round(value * 65536) for value in values))

    text = b"golden vector"
    description = b"desc\x00\x00\x00\x00" + struct.pack(">I", len(text) + 1) + text + b"\x00" + bytes(78)
    curve = b"curv\x00\x00\x00\x00" + struct.pack(">I", 0)
    tags = {
        b"desc": description,
        b"cprt": b"text\x00\x00\x00\x00none\x00",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.7977, 0.2880, 0.0),
        b"gXYZ": xyz(0.1352, 0.7119, 0.0),
        b"bXYZ": xyz(0.0313, 0.0001, 0.8249),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    return header + xyz(0.9642, 1.0, 0.8249)[8:] + bytes(128 - len(header) - 12) + table + body


VECTORS: tuple[Vector, ...] = (
    Vector("landscape", "wider than high, even offset", lambda: scene(300, 400), as_png),
    Vector("portrait_odd", "higher than wide, odd sides: the offset is rounded down", lambda: scene(259, 182), as_png),
    Vector("tiny", "far smaller than the target: enlarged", lambda: scene(17, 23), as_png, 512),
    Vector("strip", "a square of 5 pixels out of a strip", lambda: noise(5, 120), as_png, 64),
    Vector("already_512", "as large as the target: unchanged", lambda: scene(512, 512), as_png, 512),
    Vector("gradient", "a smooth gradient: rounding shows as bands", lambda: smooth_scene(240, 300), as_png, 256),
    Vector("noise", "noise: a shift of half a pixel shows everywhere", lambda: noise(131, 97), as_png, 64),
    Vector("imprint", "strokes of one pixel, made smaller", imprint, as_png),
    Vector("gray", "a PNG of one channel", gray, as_png),
    Vector("transparent", "a PNG with alpha 0..255: alpha is ignored", transparent, as_png),
    Vector(
        "wide_gamut", "a JPEG with a colour profile: the profile is ignored", lambda: scene(96, 120), with_profile, 64
    ),
    Vector("pill_photo", "a rendered phone photo of a pill, JPEG 4:2:0", pill, as_jpeg, 512, 512),
    *(
        Vector(
            f"orientation_{number}",
            f"a JPEG whose EXIF orientation is {number}",
            lambda: smooth_scene(80, 113),
            turned(number),
            64,
        )
        for number in range(2, 9)
    ),
)


def png_bytes(image_rgb_HWC_u8: U8) -> bytes:
    """PNG without choices of an encoder: the same bytes from every library version that has the same zlib."""
    height, width = image_rgb_HWC_u8.shape[:2]
    up = image_rgb_HWC_u8.copy()
    up[1:] -= image_rgb_HWC_u8[:-1]
    rows = np.concatenate([np.full((height, 1), 2, np.uint8), up.reshape(height, width * 3)], axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")


def samples(values_CHW: NDArray[np.float32]) -> list[list[float]]:
    """Nine points of the normalised picture as [channel, row, column, value]."""
    size = values_CHW.shape[1]
    places = [(channel, row, size - 1 - row // 2) for channel in range(3) for row in (0, size // 3, size - 1)]
    return [[*place, round(float(values_CHW[place]), 5)] for place in places]


def encoded_tolerance(square_HWC_u8: U8, jpeg: bytes) -> dict[str, float]:
    """How far another client's JPEG may be from ours."""
    loss = np.abs(decode_rgb(jpeg).astype(np.int16) - square_HWC_u8).mean()
    return {"mean": round(max(0.5, ENCODED_SHARE * float(loss)), 2)}


def expected_of(vector: Vector, folder: Path) -> dict[str, Any]:
    """Write the files of one vector; returns its entry of ``vectors.json``."""
    suffix, photo = vector.store(vector.draw())
    contract = ClientContract(target_size=vector.target_size)
    decoded = vector.draw()[..., :3] if suffix == "png" else decode_rgb(photo, vector.name)
    square = square_by_the_rule(decoded, vector.target_size)
    jpeg = PhoneClient(contract).encode(square)
    spec = PreprocessingSpec(target_size=vector.model_size)
    server = UnifiedPreprocessor(spec)
    files = {
        f"{vector.name}.{suffix}": photo,
        f"expected/{vector.name}.square.png": png_bytes(square),
        f"expected/{vector.name}.sent.jpg": jpeg,
        f"expected/{vector.name}.model.png": png_bytes(server.to_model_input(decoded)),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    input_name, square_name, sent_name, model_name = files
    keys = {"target_size", "interpolation", "clahe", "mean", "std"}
    return {
        "name": vector.name,
        "about": vector.about,
        "input": input_name,
        "input_sha256": sha256_bytes(photo),
        "client": {
            "target_size": vector.target_size,
            "square": square_name,
            "square_shape_HWC": list(square.shape),
            "square_tolerance": LOSSLESS if suffix == "png" else DECODED,
            "jpeg": sent_name,
            "jpeg_tolerance": encoded_tolerance(square, jpeg),
        },
        "server": {
            "preprocessing": spec.model_dump(mode="json", include=keys),
            "model_input": model_name,
            "model_input_tolerance": MODEL,
            "normalized_samples_CHW": samples(server.process(decoded)),
            "normalized_tolerance": round(MODEL["max"] / 255 / 0.224, 3),
        },
    }


def write_vectors(folder: Path) -> dict[str, Any]:
    """Draw everything into ``folder``; returns the content of ``vectors.json``."""
    document = {
        "format": "pillsnap-golden-vectors",
        "contract": ClientContract().get_config(),
        "note": "Pixels are R, G, B of 8 bits. Tolerances are levels: the largest and the mean absolute difference. "
        "client.target_size replaces the contract's; every other value of the contract holds.",
        "vectors": [expected_of(vector, folder) for vector in VECTORS],
    }
    write_json(folder / "vectors.json", document)
    return document


if __name__ == "__main__":
    destination = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    print(f"{len(write_vectors(destination)['vectors'])} vectors in {destination}")
