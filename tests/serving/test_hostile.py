"""Whatever is sent, the answer is one of the stated ones, and says nothing of the server's inside."""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from pillsnap.serving.problems import KINDS, MEDIA_TYPE

CLIENTS = 4
_OF_A_PICTURE = {
    "empty", "unsupported_format", "truncated", "no_pixels", "too_many_pixels", "too_many_scans", "undecodable",
    "too_small", "too_many_bytes", "heic", "rare_jpeg", "no_pixel_data",
}  # fmt: skip
_INSIDE = re.compile(r"/home|/usr|/tmp|/work|\.py|Traceback|site-packages|Error\b|0x[0-9a-f]{6,}")


@pytest.fixture(scope="module")
def mutate() -> Any:
    """``mutate(seed, number, samples)`` and the samples of the decoder's own fuzzer."""
    folder = Path(__file__).parents[1] / "core"
    sys.path.insert(0, str(folder))
    try:
        import image_fuzzer
        import image_samples
    finally:
        sys.path.remove(str(folder))
    samples = list(image_samples.make_samples().values())
    return lambda number: image_fuzzer.mutate(1, number, samples)


@pytest.mark.parametrize(
    ("where", "cases"), [("served_here", 200), pytest.param("served", 10_000, marks=pytest.mark.long)]
)
def test_damaged_pictures(
    request: pytest.FixtureRequest, bundle: Path, toy: SimpleNamespace, mutate: Any, where: str, cases: int
) -> None:
    server = request.getfixturevalue(where)("--model", str(bundle), "--threads", "1")

    def ask(first: int) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        with requests.Session() as session:
            for number in range(first, cases, CLIENTS):
                answer = session.post(
                    f"{server.url}/v1/narrow/predict",
                    data=mutate(number) or b"\0",
                    headers={"Content-Type": "image/jpeg"},
                    timeout=60,
                )
                body = answer.json()
                if answer.status_code == 200:
                    assert len(body["predictions"]) == 5, number
                    counts["answered"] += 1
                else:
                    assert body["code"] in _OF_A_PICTURE, (number, answer.status_code, body)
                    assert answer.status_code == KINDS[body["code"]].status
                    assert answer.headers["content-type"] == MEDIA_TYPE
                    assert not _INSIDE.search(answer.text), (number, answer.text)
                    counts[body["code"]] += 1
        return counts

    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = sum(pool.map(ask, range(CLIENTS)), collections.Counter())
    assert sum(counts.values()) == cases
    assert counts["answered"] > cases / 20, counts
    # a code that two of a thousand pictures have need not be among 200
    expected = {"truncated", "undecodable", "unsupported_format"} | ({"too_many_pixels"} if cases > 1000 else set())
    assert expected <= counts.keys()
    assert server.post(toy.jpeg(1)).json()["predictions"][0]["kcode"] == "K-990002"
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("many", [5, pytest.param(40, marks=pytest.mark.long)])
def test_the_api_does_what_its_document_says(served_here: Any, bundle: Path, tmp_path: Path, many: int) -> None:
    """Schemathesis: generated and wrong requests to every operation; answers must be those of the document."""
    server = served_here("--model", str(bundle), "--threads", "1")
    program = Path(sys.executable).parent / "schemathesis"
    ended = subprocess.run(
        [str(program), "run", f"{server.url}/openapi.json", "--max-examples", str(many), "--seed", "1",
         "--checks", "all",
         # a picture is more than its schema says: random bytes are rightly refused
         "--exclude-checks", "positive_data_acceptance", "--report-json-path", "report.json", "--no-color"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert "7 selected / 7 total" in ended.stdout
    generated = re.search(r"(\d+) generated", ended.stdout)
    assert generated is not None
    assert int(generated.group(1)) > 2.5 * many
    assert "Traceback" not in server.log.read_text()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(served_here: Any, bundle: Path) -> None:
    import struct
    import zlib

    server = served_here("--model", str(bundle), "--threads", "1")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    answer = server.post(bomb)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_pixels")


def test_names_in_a_form_are_only_words(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served_here("--model", str(bundle), "--threads", "1")
    name = "../../etc/passwd\x00<script>" + "x" * 500
    answer = requests.post(
        f"{server.url}/v1/narrow/batch_predict", files={"images": (name, toy.jpeg(0), "text/html")}, timeout=30
    )
    assert answer.status_code == 200
    assert len(answer.json()["results"][0]["name"]) <= 100
    assert json.loads(answer.text)["results"][0]["predictions"][0]["kcode"] == "K-990001"
