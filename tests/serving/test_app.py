"""The routes, as a client sees them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from pillsnap.core import image_header
from pillsnap.core.client_contract import ClientContract
from pillsnap.core.errors import ConfigError
from pillsnap.core.image_codes import DOUBTS
from pillsnap.inference.session import PillSession
from pillsnap.serving import guard
from pillsnap.serving.app import create_app
from pillsnap.serving.problems import KINDS, MEDIA_TYPE, Problem, ProblemError
from pillsnap.serving.settings import ServeSettings
from pillsnap.serving.sources import BundleSource

PREDICT, BATCH = "/v1/narrow/predict", "/v1/narrow/batch_predict"
ClientOf = Callable[..., AbstractContextManager[TestClient]]
JPEG = {"Content-Type": "image/jpeg"}


def test_the_answer_is_that_of_the_session(client: TestClient, toy: SimpleNamespace, bundle: Path) -> None:
    photo = toy.jpeg(2)
    answer = client.post(PREDICT, content=photo, headers=JPEG).json()
    session = PillSession.load(bundle)
    expected = session.identify(photo)
    told = [
        (entry["rank"], entry["kcode"], entry["drug_name"], entry["manufacturer"]) for entry in answer["predictions"]
    ]
    assert told == [(entry.rank, entry.kcode, entry.drug_name, entry.manufacturer) for entry in expected]
    assert [entry["confidence"] for entry in answer["predictions"]] == pytest.approx(
        [entry.confidence for entry in expected], abs=1e-6
    )
    assert answer["predictions"][0]["kcode"] == "K-990003"
    assert len(answer["predictions"]) == 5
    assert answer["model"] == {"name": "toy", "version": None, "alias": None, "sha256": session.sha256}
    assert answer["preprocessing_fingerprint"] == session.metadata.preprocessing_fingerprint
    assert answer["image"] == {"format": "jpeg", "width": 512, "height": 512, "size_kb": round(len(photo) / 1024, 1)}
    assert set(answer["stages_ms"]) == {"queue", "decode", "prepare", "inference"}
    assert answer["processing_time_ms"] >= sum(answer["stages_ms"].values()) * 0.5
    assert answer["sure"] is True


def test_a_photos_header_is_read_once(
    client: TestClient, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a progressive JPEG that walks through the whole file."""
    read = Mock(wraps=image_header._read_jpeg)
    monkeypatch.setattr(image_header, "_read_jpeg", read)
    assert client.post(PREDICT, content=toy.jpeg(2), headers=JPEG).status_code == 200
    assert read.call_count == 1


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "image/webp", "IMAGE/JPEG; charset=x"])
def test_the_content_counts_and_not_its_name(client: TestClient, toy: SimpleNamespace, kind: str) -> None:
    answer = client.post(PREDICT, content=toy.jpeg(1, ending=".png"), headers={"Content-Type": kind})
    assert answer.json()["image"]["format"] == "png"
    assert answer.json()["predictions"][0]["kcode"] == "K-990002"


def test_a_form_is_answered_as_a_body_is(client: TestClient, toy: SimpleNamespace) -> None:
    body = client.post(PREDICT, content=toy.jpeg(3), headers=JPEG).json()
    form = client.post(PREDICT, files={"image": ("pill.png", toy.jpeg(3), "image/jpeg")}).json()
    assert form["predictions"] == body["predictions"]
    assert [warning["code"] for warning in form["warnings"]] == ["name_differs"]
    assert body["warnings"] == []


def test_a_small_photo_is_remarked_on(client: TestClient, toy: SimpleNamespace) -> None:
    answer = client.post(PREDICT, content=toy.jpeg(0, side=100), headers=JPEG).json()
    assert [warning["code"] for warning in answer["warnings"]] == ["small_side"]


def test_not_sure_is_said(client_of: ClientOf, toy: SimpleNamespace, tmp_path: Path) -> None:
    grey = toy.encoded(toy.toy_picture(np.full(3, 100), 64))  # it lies between all colours
    with client_of(model=str(toy.save_bundle(tmp_path / "t.onnx"))) as client:
        answer = client.post(PREDICT, content=grey, headers=JPEG).json()
        best = answer["predictions"][0]["confidence"]
        assert answer["sure"] is (best >= answer["unsure_below"])
        assert answer["sure"] is False
        assert [warning["code"] for warning in answer["warnings"]] == ["small_side"]
        assert "pillsnap_unsure_total 1.0" in client.get("/metrics").text


def _poor(toy: SimpleNamespace) -> dict[str, bytes]:
    """Of the first drug's colour, of which the toy is very sure, where there is a colour at all."""
    red, rng = cv2.imdecode(np.frombuffer(toy.jpeg(0), np.uint8), cv2.IMREAD_COLOR), np.random.default_rng(0)
    whole = toy.jpeg(0)
    return {
        "too_dark": toy.encoded(np.zeros_like(red)),
        "too_bright": toy.encoded(np.full_like(red, 255)),
        "blank": toy.encoded(np.full_like(red, (40, 40, 200))),
        "blurred": toy.encoded(cv2.GaussianBlur(red, (0, 0), 60)),
        "noise": toy.encoded(np.clip(rng.normal((40, 40, 200), 50, red.shape), 0, 255).astype(np.uint8)),
        "damaged": whole[: len(whole) - 900] + whole[-2:],
    }


@pytest.mark.parametrize("code", [str(code) for code in DOUBTS])
def test_attack_of_a_picture_in_which_nothing_can_be_seen_no_answer_is_sure(
    client_of: ClientOf, bundle: Path, toy: SimpleNamespace, code: str
) -> None:
    poor, good = _poor(toy)[code], toy.jpeg(0)
    with client_of() as client:
        answer = client.post(PREDICT, content=poor, headers=JPEG).json()
        assert [warning["code"] for warning in answer["warnings"]] == [code]
        assert answer["sure"] is False
        assert "pillsnap_unsure_total 1.0" in client.get("/metrics").text
        files = [("images", (f"{n}.jpg", photo, "image/jpeg")) for n, photo in enumerate((good, poor))]
        both = client.post(BATCH, params={"same_pill": "true"}, files=files).json()
        assert [result["sure"] for result in both["results"]] == [True, False]
        assert both["combined"]["sure"] is False
        assert code in client.get("/v1/narrow/info").json()["validator"]["never_sure"]


def test_a_header_without_pixels_and_a_heic_are_refused_by_name(client: TestClient, toy: SimpleNamespace) -> None:
    whole = toy.jpeg(0)
    header = whole[: whole.index(b"\xff\xda") + 14] + b"\xff\xd9"
    for photo, code, status in (
        (header, "no_pixel_data", 422),
        (whole.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "rare_jpeg", 415),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "heic", 415),
    ):
        answer = client.post(PREDICT, content=photo, headers=JPEG)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_bundle_says_when_it_is_not_sure(client_of: ClientOf, toy: SimpleNamespace, tmp_path: Path) -> None:
    metadata = toy.toy_metadata(toy.toy_catalog(6))
    strict = metadata.model_copy(update={"unsure_below": 0.99, "temperature": 1.0})
    graph = toy.toy_graph(toy.toy_colors(6) / 4)  # colours so alike that no answer is as sure as that
    model = toy.save_model(tmp_path / "strict.onnx", graph, strict.to_props())
    with client_of(model=str(model)) as client:
        answer = client.post(PREDICT, content=toy.jpeg(0), headers=JPEG).json()
        assert answer["unsure_below"] == 0.99
        assert answer["sure"] is (answer["predictions"][0]["confidence"] >= 0.99)
        assert client.get("/v1/narrow/info").json()["unsure_below"] == 0.99


def test_batch_keeps_order_and_says_what_is_wrong(client: TestClient, toy: SimpleNamespace) -> None:
    files = [
        ("images", ("a.jpg", toy.jpeg(0), "image/jpeg")),
        ("images", ("b.jpg", b"no picture", "image/jpeg")),
        ("images", ("c.jpg", toy.jpeg(4), "image/jpeg")),
    ]
    answer = client.post(BATCH, files=files).json()
    assert [result["name"] for result in answer["results"]] == ["a.jpg", "b.jpg", "c.jpg"]
    first, second, third = answer["results"]
    assert first["predictions"][0]["kcode"] == "K-990001"
    assert third["predictions"][0]["kcode"] == "K-990005"
    assert set(second) == {"name", "problem"}
    assert second["problem"]["code"] == "unsupported_format"
    assert answer["combined"] is None


def test_two_sides_are_answered_together(client: TestClient, toy: SimpleNamespace) -> None:
    files = [("images", (name, toy.jpeg(2), "image/jpeg")) for name in ("front.jpg", "back.jpg")]
    answer = client.post(BATCH, params={"same_pill": "true"}, files=files).json()
    alone = answer["results"][0]
    # the same photo twice is exactly as sure as once
    assert answer["combined"]["predictions"][0]["kcode"] == alone["predictions"][0]["kcode"]
    assert answer["combined"]["predictions"][0]["confidence"] == pytest.approx(
        alone["predictions"][0]["confidence"], abs=1e-5
    )
    different = [("images", (str(label), toy.jpeg(label), "image/jpeg")) for label in (0, 1)]
    contradiction = client.post(BATCH, params={"same_pill": "true"}, files=different).json()["combined"]
    assert contradiction["predictions"][0]["confidence"] < 0.99


def test_ten_photos_and_no_more(client: TestClient, toy: SimpleNamespace) -> None:
    photo = toy.jpeg(0, side=64)
    files = [("images", (f"{n}.jpg", photo, "image/jpeg")) for n in range(11)]
    assert len(client.post(BATCH, files=files[:10]).json()["results"]) == 10
    refused = client.post(BATCH, files=files)
    assert (refused.status_code, refused.json()["code"]) == (400, "too_many_images")


def test_each_photo_of_a_form_has_the_limit_of_one(client: TestClient, toy: SimpleNamespace) -> None:
    """The form as a whole may be larger; a batch with such a photo is refused before any is decoded."""
    large = ("large.jpg", b"x" * (10 * 2**20 + 1), "image/jpeg")
    small = ("a.jpg", toy.jpeg(0), "image/jpeg")
    for answer in (
        client.post(PREDICT, files={"image": large}),
        client.post(BATCH, files=[("images", small), ("images", large)]),
    ):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"no picture at all", 415, "unsupported_format"),
        (b"GIF89a" + b"\0" * 50, 415, "unsupported_format"),
        (b"x" * (10 * 2**20 + 1), 413, "too_many_bytes"),
    ],
)
def test_each_cause_has_its_code(client: TestClient, content: bytes, status: int, code: str) -> None:
    answer = client.post(PREDICT, content=content, headers=JPEG)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert Problem.model_validate(answer.json()).request_id == answer.headers["x-request-id"]


def test_causes_that_need_a_picture(client: TestClient, toy: SimpleNamespace) -> None:
    photo = toy.jpeg(0)
    header_only = photo[: len(photo) // 2]
    tiny = toy.jpeg(0, side=16, ending=".png")
    damaged = bytearray(toy.jpeg(0, ending=".png"))
    damaged[len(damaged) // 2] ^= 0xFF
    found = [
        client.post(PREDICT, content=bytes(data), headers=JPEG).json()["code"] for data in (header_only, tiny, damaged)
    ]
    assert found == ["truncated", "too_small", "undecodable"]


def test_wrong_requests(client: TestClient, toy: SimpleNamespace) -> None:
    asked = [
        client.post(PREDICT, content=b"{}", headers={"Content-Type": "application/json"}),
        client.post(PREDICT, files={"picture": ("a.jpg", toy.jpeg(0), "image/jpeg")}),
        client.post(PREDICT, files=[("image", ("a.jpg", toy.jpeg(0), "image/jpeg"))] * 2),
        client.post(PREDICT, content=b"--x", headers={"Content-Type": "multipart/form-data"}),
        client.post(BATCH, content=toy.jpeg(0), headers=JPEG),
        client.post(BATCH, params={"same_pill": "perhaps"}, files={"images": ("a", toy.jpeg(0), "image/jpeg")}),
        client.get(PREDICT),
        client.get("/v1/broad/predict"),
        client.get("/page/../app.py"),
        client.get("/page/%2e%2e%2fapp.py"),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in asked] == [
        (415, "unsupported_media_type"),
        (400, "no_image"),
        (400, "too_many_images"),
        (400, "bad_form"),
        (415, "unsupported_media_type"),
        (422, "bad_parameter"),
        (405, "method_not_allowed"),
        (404, "not_found"),
        (404, "not_found"),
        (404, "not_found"),
    ]
    assert asked[6].headers["allow"] == "POST"


@pytest.mark.parametrize(
    "kind", ["image/jpg", "image/pjpeg", "IMAGE/JPEG; q=1", "image/*", "application/octet-stream", "", None,
             "application/x-www-form-urlencoded"],
)  # fmt: skip
def test_content_decides_whatever_a_client_calls_it(client: TestClient, toy: SimpleNamespace, kind: str | None) -> None:
    """As Android, curl without a header, and a form's file do."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(PREDICT, content=toy.jpeg(0), headers=headers)
    assert answer.status_code == 200
    assert client.post(PREDICT, content=b"{}", headers=headers).json()["code"] == "unsupported_format"


@pytest.mark.parametrize(("header", "language"), [("ko", "ko"), ("en-GB, ko;q=0.5", "en"), ("fr, ko;q=0.1", "ko")])
def test_errors_speak_the_clients_language(client: TestClient, header: str, language: str) -> None:
    answer = client.post(PREDICT, content=b"x", headers={**JPEG, "Accept-Language": header})
    kind = KINDS["unsupported_format"]
    assert answer.json()["title"] == (kind.ko if language == "ko" else kind.en).title
    assert answer.headers["content-language"] == language


def test_info_says_what_is_served(client: TestClient, bundle: Path) -> None:
    info = client.get("/v1/narrow/info").json()
    session = PillSession.load(bundle)
    assert info["model"]["sha256"] == session.sha256
    assert info["preprocessing"] == session.metadata.preprocessing.get_config()
    assert info["client_contract"] == ClientContract().get_config()
    assert info["classes"] == 6
    assert info["judgement"] is None


def test_retired_drugs_are_neither_listed_nor_answered(
    client_of: ClientOf, toy: SimpleNamespace, tmp_path: Path
) -> None:
    catalog = toy.toy_catalog(6, retired=(1,))
    graph = toy.toy_graph(toy.toy_colors(6), retired=(1,))
    model = toy.save_model(tmp_path / "retired.onnx", graph, toy.toy_metadata(catalog).to_props())
    with client_of(model=str(model)) as client:
        listed = [drug["index"] for drug in client.get("/v1/narrow/classes").json()["classes"]]
        assert listed == [0, 2, 3, 4, 5]
        assert client.get("/v1/narrow/info").json()["classes"] == 5
        answer = client.post(PREDICT, content=toy.jpeg(1), headers=JPEG).json()
        assert "K-990002" not in [entry["kcode"] for entry in answer["predictions"]]


def test_the_framework_gives_no_request_to_a_thread(
    client: TestClient, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain function as a route or dependency goes through one, at every request and without a word."""

    async def refuse(function: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{function} runs in a thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", refuse)
    assert client.post(PREDICT, content=toy.jpeg(), headers=JPEG).status_code == 200
    for path in ("/v1/narrow/info", "/v1/narrow/classes", "/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200, path


def test_no_path_is_redirected(client: TestClient) -> None:
    for answer in (
        client.get("/v1/narrow/info/", follow_redirects=False),
        client.post("/v1/narrow/predict/", follow_redirects=False),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_batch_is_given_up_when_its_time_is_over(
    client_of: ClientOf, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def slowly(*_: Any) -> Any:
        begun.append(time.monotonic())
        time.sleep(0.4)
        raise ProblemError("undecodable")

    monkeypatch.setattr("pillsnap.serving.narrow.answer_photo", slowly)
    files = [("images", ("a.jpg", toy.jpeg(0), "image/jpeg"))] * 10
    with client_of(deadline_s=0.6) as client:
        answer = client.post("/v1/narrow/batch_predict", files=files)
    assert (answer.status_code, answer.json()["code"]) == (503, "deadline_exceeded")
    assert len(begun) == 2  # the end of the block waits for the work


def test_a_photo_in_a_form_needs_no_room_on_the_disk(
    client: TestClient, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    photo = cv2.imencode(".png", noise)[1].tobytes()
    assert len(photo) > 2**22
    answer = client.post("/v1/narrow/predict", files={"image": ("a.png", photo, "image/png")})
    assert answer.status_code == 200, answer.text


def test_workers_without_room_for_their_counters_say_so(
    settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / f"counter_{os.getpid()}.db").write_bytes(b"")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ConfigError, match="no room for the counters of a worker"):
        create_app(settings())


def test_probes(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["registry"] == "not_followed"


def test_without_a_model_the_server_says_so(client_of: ClientOf, toy: SimpleNamespace) -> None:
    class Nothing:
        def look(self, present: Any) -> None:
            return None

        def kept(self) -> None:
            return None

    with client_of(source=Nothing()) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.post(PREDICT, content=toy.jpeg(0), headers=JPEG)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) > 0


def test_api_keys(client_of: ClientOf, toy: SimpleNamespace, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# phones\nphone-0123456789abcdef\n\nbff-0123456789abcdef\n")
    with client_of(keys_file=keys) as client:
        photo = toy.jpeg(0)
        statuses = [
            client.post(PREDICT, content=photo, headers={**JPEG, **given}).status_code
            for given in ({}, {"X-API-Key": "phone"}, {"X-API-Key": "# phones"}, {"X-API-Key": "bff-0123456789abcdef"})
        ]
        assert statuses == [401, 401, 401, 200]
        assert client.get("/healthz").status_code == 200
        refused = client.post(BATCH, files={"images": ("a", photo, "image/jpeg")})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")


def test_other_origins_are_let_in_only_where_named(client_of: ClientOf) -> None:
    asked = {"Origin": "https://pharmacy.example", "Access-Control-Request-Method": "POST"}
    with client_of() as client:
        closed = client.options(PREDICT, headers=asked)
        assert "access-control-allow-origin" not in closed.headers
    with client_of(origins=("https://pharmacy.example",)) as client:
        assert client.options(PREDICT, headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
        other = client.options(PREDICT, headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_other_host_names_are_refused(client_of: ClientOf) -> None:
    with client_of(hosts=("localhost", "::1")) as client:
        found = {
            host: client.get("/v1/narrow/info", headers={"Host": host}).status_code
            for host in ("localhost:8000", "LOCALHOST.", "[::1]:80", "[::1]", "evil.example", "localhost.evil.example")
        }
        assert list(found.values()) == [200, 200, 200, 200, 421, 421]
        assert client.get("/healthz", headers={"Host": "10.0.0.7"}).status_code == 200


def test_host_names_are_compared_as_names(settings: Callable[..., Any]) -> None:
    assert settings(hosts=("PillSnap.Example.", "::1", "[fe80::1]")).hosts == ("pillsnap.example", "::1", "fe80::1")


@pytest.mark.parametrize(
    "values",
    [{"hosts": ("name:8000",)}, {"hosts": ("http://name",)}, {"hosts": ("",)}, {"deadline_s": float("nan")},
     {"poll_s": float("inf")}],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(bundle: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ServeSettings.checked(model=str(bundle), threads=1, concurrency=1, **values)


def test_a_page_of_another_origin_can_read_a_refusal(client_of: ClientOf, toy: SimpleNamespace) -> None:
    origin = {"Origin": "https://pharmacy.example"}
    with client_of(origins=(origin["Origin"],), hosts=("testserver",)) as client:
        wrong = client.get("/v1/narrow/info", headers={**origin, "Host": "evil.example", "Accept-Language": "ko"})
        assert (wrong.status_code, wrong.headers["content-language"]) == (421, "ko")
        object.__setattr__(client.app.state.house, "slot", None)  # type: ignore[attr-defined]
        fault = client.post(PREDICT, content=toy.jpeg(0), headers={**JPEG, **origin})
        assert fault.status_code == 500
        counted = client.get("/metrics").text
    for answer in (wrong, fault):
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        assert answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'pillsnap_requests_total{code="internal",route="/v1/narrow/predict",status="500"} 1.0' in counted


def test_head_is_get_without_the_body(client: TestClient) -> None:
    for path in ("/", "/healthz", "/v1/narrow/info"):
        assert client.head(path).status_code == 200
    assert client.head(PREDICT).status_code == 405


def form(*parts: bytes, end: bytes = b"--B--\r\n", name: str = "a.jpg") -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + part + b"\r\n" for part in parts) + end


@pytest.mark.parametrize("end", [b"", b"--B\r\n", b"--B-"])
def test_a_form_that_breaks_off_is_not_taken_for_one_with_fewer_photos(
    client: TestClient, toy: SimpleNamespace, end: bytes
) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    whole = client.post(BATCH, content=form(toy.jpeg(1), toy.jpeg(1)), headers=kind)
    assert len(whole.json()["results"]) == 2
    broken = client.post(BATCH, content=form(toy.jpeg(1), toy.jpeg(1), end=end), headers=kind)
    assert (broken.status_code, broken.json()["code"]) == (400, "bad_form")


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "undefined", "none-such", "utf-8"])
def test_a_charset_of_the_clients_choice_breaks_nothing(client: TestClient, toy: SimpleNamespace, charset: str) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary=B; charset={charset}"}
    answer = client.post(BATCH, content=form(toy.jpeg(1), name="+2AA-\\ud800.jpg"), headers=kind)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or answer.json()["code"] == "bad_form"


def test_bodies_in_the_house_are_limited_in_all(
    client_of: ClientOf, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of() as client:
        photo = toy.jpeg(1)
        monkeypatch.setattr(guard, "MOST_BYTES", len(photo) - 1)
        full = client.post(PREDICT, content=photo, headers=JPEG)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        monkeypatch.setattr(guard, "MOST_BYTES", len(photo))
        for _ in range(3):  # what has left is not counted any more
            assert client.post(PREDICT, content=photo, headers=JPEG).status_code == 200


def test_the_time_of_a_request_begins_with_its_last_byte(client_of: ClientOf, toy: SimpleNamespace) -> None:
    photo = toy.jpeg(1)

    def slowly() -> Iterator[bytes]:
        yield photo[:100]
        time.sleep(1.2)
        yield photo[100:]

    async def ask(app: Any) -> int:
        chunks = slowly()

        async def receive() -> dict[str, Any]:
            chunk = next(chunks, None)
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        statuses: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        scope = {"type": "http", "method": "POST", "path": PREDICT, "query_string": b"", "root_path": "",
                 "headers": [(b"content-type", b"image/jpeg")], "http_version": "1.1"}  # fmt: skip
        await app(scope, receive, send)
        return statuses[0]

    with client_of() as client:
        assert client.portal is not None
        assert client.portal.call(ask, client.app) == 200
        text = client.get("/metrics").text
    assert 'pillsnap_request_seconds_bucket{le="1.0",route="/v1/narrow/predict"} 1.0' in text


@pytest.mark.parametrize(
    ("text", "message"), [("phone-ключ-0123456789abcdef", "no header can carry"), ("\ufeffshort", "under 16")]
)
def test_keys_that_could_never_match_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        guard.api_keys(file)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("phone-0123456789abcdef\n", encoding="utf-8-sig")
    keys = guard.api_keys(file)
    assert keys is not None
    assert guard.is_known("phone-0123456789abcdef", keys)


def test_security_headers_stand_on_everything(client: TestClient) -> None:
    for path in ("/healthz", "/v1/narrow/info", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_fault_says_nothing_of_itself(client_of: ClientOf, toy: SimpleNamespace, bundle: Path) -> None:
    with client_of() as client:
        model = client.app.state.house.slot.model  # type: ignore[attr-defined]

        def broken(*_: Any) -> None:
            raise RuntimeError(f"secret at {bundle}")

        model.session.answer = broken
        answer = client.post(PREDICT, content=toy.jpeg(0), headers=JPEG)
        assert answer.status_code == 500
        assert answer.json()["code"] == "internal"
        assert "secret" not in answer.text
        assert str(bundle) not in answer.text


def test_openapi_is_whole(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in (PREDICT, BATCH):
        operation = document["paths"][path]["post"]
        assert "multipart/form-data" in operation["requestBody"]["content"]
        assert {"200", "400", "401", "408", "413", "415", "422", "503"} <= set(operation["responses"])
        examples = operation["responses"]["422"]["content"][MEDIA_TYPE]["examples"]
        assert examples["truncated"]["value"]["code"] == "truncated"
    assert "example" in json.dumps(document["components"]["schemas"]["Prediction"])


def test_metrics_count_what_happened(client_of: ClientOf, toy: SimpleNamespace) -> None:
    with client_of() as client:
        client.post(PREDICT, content=toy.jpeg(0, side=64), headers=JPEG)
        client.post(PREDICT, content=b"x", headers=JPEG)
        text = client.get("/metrics").text
    assert 'pillsnap_requests_total{code="",route="/v1/narrow/predict",status="200"} 1.0' in text
    assert 'pillsnap_requests_total{code="unsupported_format",route="/v1/narrow/predict",status="415"} 1.0' in text
    assert 'pillsnap_photo_warnings_total{code="small_side"} 1.0' in text
    assert 'pillsnap_stage_seconds_count{stage="inference"} 1.0' in text
    assert "pillsnap_champion_refused 0.0" in text


def test_a_bundle_that_is_none_is_refused_at_the_start(tmp_path: Path, settings: Callable[..., Any]) -> None:
    from pillsnap.core.errors import BundleError

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not onnx")
    with pytest.raises(BundleError, match=r"broken\.onnx"):
        BundleSource(broken, 1).look(None)
