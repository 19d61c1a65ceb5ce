"""The Flutter client's published values, and how it reads a JPEG's header.

There is no Dart here: its code is not run, and its header says so. What reads the header are statements that JavaScript
has too, and runs as such.
"""

from __future__ import annotations

import base64
import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import check_client_config

SOURCE = (FOLDER / "pillsnap_client.dart").read_text(encoding="utf-8")
JPEGS = runpy.run_path(str(Path(__file__).with_name("test_photo_file.py")))["JPEGS"]
IN_JAVASCRIPT = (
    (r"^(?:bool|int\?|String\?) (?=_\w+\()", "function "),
    (r"\b(?:Uint8List|List<int>|int) (?=\w+[,)])", ""),
    (r"\bconst (?=\[)", ""),
    (r"\bfinal ", "const "),
    (r"\b(?:var|int\?) (?=\w+( =|;))", "let "),
    (r"\.contains\(", ".includes("),
    (r"\bmath\.", "Math."),
    (r"\bByteData\.sublistView\(photo\)", "new DataView(photo.buffer, photo.byteOffset, photo.byteLength)"),
    (r"(\(\w+ \+ 7\)) ~/ 8", r"Math.floor(\1 / 8)"),
)
CALLER = """
const beyond = (file, key) => typeof key === "string" && /^[0-9]+$/.test(key) && Number(key) >= file.length;
const strict = {  // Dart has no undefined: what lies beyond the end is an error
  get(file, key) {
    if (beyond(file, key)) throw new RangeError(key);
    return Reflect.get(file, key, file);
  },
};
const read = (text) => _jpegRefusal(new Proxy(new Uint8Array(Buffer.from(text, "base64")), strict));
process.stdout.write(JSON.stringify(JSON.parse(require("fs").readFileSync(0, "utf8")).map(read)));
"""


def read_headers(node: str, files: list[bytes]) -> list[str | None]:
    """What `_jpegRefusal` says of them."""
    functions = re.findall(r"^\S+ (?:_hasAt|_jpegRefusal|_markerBehind)\(.*?^\}\n", SOURCE, re.DOTALL | re.MULTILINE)
    script = "".join(functions)
    for words, instead in IN_JAVASCRIPT:
        script = re.sub(words, instead, script, flags=re.MULTILINE)
    done = subprocess.run(
        [node, "--eval", script + CALLER],
        input=json.dumps([base64.b64encode(file).decode() for file in files]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[str | None] = json.loads(done.stdout)
    return answers


def test_a_jpeg_is_refused_by_its_header_as_by_the_server(node: str) -> None:
    assert dict(zip(JPEGS, read_headers(node, [file for file, _ in JPEGS.values()]), strict=True)) == {
        name: code for name, (_, code) in JPEGS.items()
    }


def test_of_a_jpeg_that_is_cut_off_it_says_what_the_browser_client_says(
    node: str, ask: Callable[..., list[Any]]
) -> None:
    files = [file[:cut] for file in (JPEGS["12 bits"][0], JPEGS["no pixel data"][0]) for cut in range(len(file))]
    answers = read_headers(node, files)
    assert answers == ask(*({"do": "jpeg_refusal", "file": file} for file in files))
    assert {None, "rare_jpeg"} == set(answers)


def test_the_values_in_the_file_are_the_contract():
    literal = re.search(r"const Map<String, Object> contract = (\{.*?\n\});", SOURCE, re.DOTALL)
    published = json.loads(literal[1].replace("'", '"').replace(",\n}", "\n}"))
    assert check_client_config(published) == []


def test_the_defaults_of_its_functions_are_the_values_of_the_contract():
    config = json.loads((FOLDER / "contract.json").read_text(encoding="utf-8"))["config"]
    assert set(re.findall(r"int targetSize = (\d+)", SOURCE)) == {str(config["target_size"])}
    assert set(re.findall(r"int jpegQuality = (\d+)", SOURCE)) == {str(config["jpeg_quality"])}
    assert "img.JpegChroma.yuv420" in SOURCE


def test_the_header_says_how_it_was_checked():
    assert "CHECKED BY READING ONLY" in SOURCE[:400]
