"""Small pictures of every kind that the decoder meets, made anew: nothing is read from a file.

Not a test. Loaded with runpy by the tests beside it, and imported by ``image_fuzzer.py``.
"""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def gradient(height=40, width=56):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5 % 256, columns * 4 % 256, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


def encode(form, image=None, **options):
    """Bytes of an array or a PIL image (the gradient where there is none)."""
    image = gradient() if image is None else image
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png_chunks(data):
    chunks, position = [], len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def png(chunks):
    """A PNG out of (kind, content), every checksum right."""
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def png_header(width, height, bits=8, color=2, interlace=0):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)


def interlaced_png(image):
    """Adam7, which neither PIL nor OpenCV writes."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b""
    for top, left, down, right in passes:
        part = image[top::down, left::right]
        raw += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    height, width = image.shape[:2]
    return png([png_header(width, height, interlace=1), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def riff_chunk(kind, content):
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def webp(*chunks):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def u24(value):
    return struct.pack("<I", value)[:3]


def vp8x(width, height, flags=0):
    return riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + u24(width - 1) + u24(height - 1))


def frame_beside_the_corner():
    """An animated WebP of 56×40 whose first frame covers 20×20 at (10, 10)."""
    small = encode("WEBP", gradient(20, 20), lossless=True)[12:]
    place = u24(5) + u24(5) + u24(19) + u24(19) + u24(100) + b"\0"
    frame = riff_chunk(b"ANMF", place + small)
    return webp(vp8x(56, 40, 0x02), riff_chunk(b"ANIM", struct.pack("<IH", 0, 0)), frame, frame)


def adobe_transform(data, value):
    """A CMYK JPEG whose Adobe marker says otherwise (0 CMYK, 2 YCCK); None takes the marker out."""
    at = data.index(b"Adobe")
    if value is not None:
        return data[: at + 11] + bytes([value]) + data[at + 12 :]
    return data[: at - 4] + data[at - 2 + int.from_bytes(data[at - 2 : at], "big") :]


def with_fill_bytes(data, count):
    """A progressive JPEG with ``count`` bytes 0xFF that lead to no marker, in its header and between its scans.

    Decoders skip them.
    """
    run = b"\xff" * count + b"\0"
    second = data.index(b"\xff\xc4", data.index(b"\xff\xda"))  # the tables before the second scan
    return data[:2] + run + data[2:second] + run + data[second:]


def sixteen_bits(image):
    stored = image[:, :, ::-1] if image.ndim == 3 else image  # OpenCV takes B, G, R
    done, data = cv2.imencode(".png", np.minimum(stored.astype(np.uint16) * 257 + 3, 65535))
    assert done
    return data.tobytes()


def lossless_jpeg(image):
    """T.81, annex H: R, G, B, each predicted from its left neighbour; written by no camera, and by no library here."""
    height, width, _ = image.shape
    values = image.astype(int)
    before = np.roll(values, 1, axis=1)
    before[1:, 0], before[0, 0] = values[:-1, 0], 128  # the first of a line from the one above
    bits = ""
    for difference in (values - before).ravel():  # 17 categories, all with codes of 5 bits
        size = int(abs(difference)).bit_length()
        bits += f"{size:05b}"
        if size:
            bits += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(bytes([c, 0x11, 0]) for c in b"RGB")
    table = b"\0" + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = b"\x03" + b"".join(bytes([c, 0]) for c in b"RGB") + b"\x01\0\0"
    segments = ((0xC3, frame), (0xC4, table), (0xDA, scan))
    head = b"".join(bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + head + coded + b"\xff\xd9"


def make_samples():
    """Name → bytes: every format in every mode."""
    rgb = Image.fromarray(gradient())
    grey, palette = rgb.convert("L"), rgb.quantize(64)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1)))
    rgba, grey_alpha = rgb.convert("RGBA"), grey.convert("LA")
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    cmyk = encode("JPEG", rgb.convert("CMYK"), quality=95)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - gradient())], "duration": 100}
    samples = {
        "jpeg": encode("JPEG"),
        "jpeg 444": encode("JPEG", quality=95, subsampling=0),
        "jpeg rgb": encode("JPEG", quality=95, keep_rgb=True),
        "jpeg grey": encode("JPEG", grey),
        "jpeg progressive": encode("JPEG", progressive=True),
        "jpeg fill bytes": with_fill_bytes(encode("JPEG", progressive=True), 2**16),
        "jpeg restart": encode("JPEG", restart_marker_blocks=2),
        "jpeg cmyk": cmyk,
        "jpeg ycck": adobe_transform(cmyk, 2),
        "jpeg cmyk without adobe": adobe_transform(cmyk, None),
        "jpeg motion": encode("JPEG") + b"\0\0\0\x18ftypmp42" + bytes(200),
        "png": encode("PNG"),
        "png grey": encode("PNG", grey),
        "png grey 1 bit": encode("PNG", grey.convert("1")),
        "png grey alpha": encode("PNG", grey_alpha),
        "png rgba": encode("PNG", rgba),
        "png palette": encode("PNG", palette),
        "png palette 4 bits": encode("PNG", rgb.quantize(16), bits=4),
        "png palette trns": encode("PNG", palette, transparency=bytes(range(64))),
        "png rgb trns": encode("PNG", rgb, transparency=(0, 0, 90)),
        "png 16 bits": sixteen_bits(gradient()),
        "png grey 16 bits": sixteen_bits(gradient()[:, :, 0]),
        "png interlaced": interlaced_png(gradient()),
        "png animated": encode("PNG", rgb, **frames),
        "png animated default": encode("PNG", rgb, default_image=True, **frames),
        "webp": encode("WEBP"),
        "webp lossless": encode("WEBP", lossless=True),
        "webp grey": encode("WEBP", grey),
        "webp rgba": encode("WEBP", rgba),
        "webp rgba lossless": encode("WEBP", rgba, lossless=True),
        "webp animated": encode("WEBP", rgb, lossless=True, **frames),
        "webp animated part": frame_beside_the_corner(),
    }
    for form in ("JPEG", "PNG", "WEBP"):
        samples |= {f"{form.lower()} exif {value}": encode(form, exif=exif(value)) for value in range(1, 9)}
    return samples
