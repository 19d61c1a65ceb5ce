"""The Flutter client's published values. There is no Dart here: its code is not run, and its header says so."""

from __future__ import annotations

import json
import re

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import check_client_config

SOURCE = (FOLDER / "pillsnap_client.dart").read_text(encoding="utf-8")


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
