"""``/v1/narrow``: photos in, drugs out; which model answers, and which drugs it knows."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

import pillsnap
from pillsnap.core.client_contract import ClientContract
from pillsnap.core.image_validator import ImageValidator
from pillsnap.serving.answering import Answered, answer_photo, combined
from pillsnap.serving.answers import (
    BatchAnswer,
    Classes,
    Drug,
    Info,
    Judgement,
    Model,
    NamedAnswer,
    NamedProblem,
    PredictAnswer,
)
from pillsnap.serving.house import InHouse, need_key
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import MOST_IMAGES, Language, ProblemError, language_of, responses
from pillsnap.serving.slot import LoadedModel
from pillsnap.serving.uploads import FORM_TYPE, IMAGE_TYPES, Photo, one_photo, several_photos

_PHOTO_PROBLEMS = (
    "empty", "no_image", "bad_form", "bad_request", "unauthorized", "slow_upload", "too_many_bytes",
    "too_many_pixels", "unsupported_format", "unsupported_media_type", "truncated", "undecodable", "no_pixels",
    "too_many_scans", "too_small", "heic", "rare_jpeg", "no_pixel_data", "too_many_images", "bad_parameter",
    "wrong_host", "overloaded", "deadline_exceeded", "not_ready",
)  # fmt: skip
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "minItems": 1, "maxItems": MOST_IMAGES, "items": _FILE}


def _body(description: str, kinds: tuple[str, ...], field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A request's body for the OpenAPI document: FastAPI does not see what a route reads by itself."""
    form = {"type": "object", "required": [field], "properties": {field: schema}}
    content = {**{kind: {"schema": _FILE} for kind in kinds}, FORM_TYPE: {"schema": form}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


router = APIRouter(prefix="/v1/narrow", tags=["narrow"])


@router.post(
    "/predict",
    response_model=PredictAnswer,
    responses=responses(*_PHOTO_PROBLEMS),
    dependencies=[Depends(need_key)],
    openapi_extra=_body(
        "The photo itself, or a form with one file `image`. At most 10 MiB; JPEG is expected.",
        IMAGE_TYPES,
        "image",
        _FILE,
    ),
)
async def predict(request: Request, house: InHouse) -> Any:
    """The five most probable drugs of one photo."""
    photo = await one_photo(request, house.settings.upload_s)
    began = time.perf_counter()
    model = house.slot.take()
    found = await house.workers.run(partial(answer_photo, model, photo.data, photo.name))
    house.shadow.see(photo.data, found)
    _count(house.metrics, found)
    return _json(PredictAnswer(**dict(found.answer), **_said_of(model, began)))


@router.post(
    "/batch_predict",
    response_model=BatchAnswer,
    responses=responses(*_PHOTO_PROBLEMS),
    dependencies=[Depends(need_key)],
    openapi_extra=_body(f"A form with 1 to {MOST_IMAGES} files, all named `images`.", (), "images", _FILES),
)
async def batch_predict(
    request: Request,
    house: InHouse,
    same_pill: Annotated[
        bool, Query(description="The photos show one pill (its sides): answer them together, too.")
    ] = False,
) -> Any:
    """The answers to several photos; one that cannot be read has a problem in place of an answer."""
    photos = await several_photos(request, house.settings.upload_s)
    began = time.perf_counter()
    model = house.slot.take()
    language = language_of(request.headers.get("accept-language"))
    answer = partial(_answer_all, model, photos, language, request.state.request_id, house.settings.deadline_s)
    results, found = await house.workers.run(answer)
    for entry in found:
        _count(house.metrics, entry)
    together = combined(model, found) if same_pill and found else None
    return _json(BatchAnswer(results=results, combined=together, **_said_of(model, began)))


@router.get("/info", responses=responses("not_ready", "wrong_host"))
async def info(house: InHouse) -> Info:
    """Which model answers, what the gate signed of it, and what it expects."""
    model = house.slot.take()
    metadata = model.session.metadata
    statement = model.statement
    judgement = None if statement is None else Judgement(
        verdict=statement.verdict,
        issued_at=statement.issued_at.isoformat(timespec="seconds"),
        figures=statement.figures,
    )  # fmt: skip
    return Info(
        model=Model.of(model),
        classes=len(metadata.classes) - len(metadata.retired_indices),
        judgement=judgement,
        unsure_below=model.session.unsure_below,
        engine=model.session.provider,
        preprocessing=metadata.preprocessing.get_config(),
        preprocessing_fingerprint=metadata.preprocessing_fingerprint,
        client_contract=ClientContract().get_config(),
        validator=ImageValidator().get_config(),
        most_images=MOST_IMAGES,
        pillsnap_version=pillsnap.__version__,
    )


@router.get("/classes", responses=responses("not_ready", "wrong_host"))
async def classes(house: InHouse) -> Classes:
    """The drugs that can be answered, by the index of the model's output."""
    model = house.slot.take()
    drugs = [
        Drug(index=index, kcode=entry.kcode, drug_name=entry.drug_name, manufacturer=entry.manufacturer)
        for index, entry in enumerate(model.session.metadata.classes)
        if not entry.retired
    ]
    return Classes(classes=drugs, model=Model.of(model))


def _answer_all(
    model: LoadedModel, photos: list[Photo], language: Language, request_id: str, deadline_s: float, waited_s: float
) -> tuple[list[NamedAnswer | NamedProblem], list[Answered]]:
    results: list[NamedAnswer | NamedProblem] = []
    found = []
    began = time.monotonic()
    for photo in photos:
        if waited_s + time.monotonic() - began > deadline_s:
            raise TimeoutError  # who asked has been told already
        try:
            entry = answer_photo(model, photo.data, photo.name, waited_s)
        except ProblemError as error:
            results.append(NamedProblem(name=photo.name, problem=error.problem(language, request_id)))
        else:
            results.append(NamedAnswer(name=photo.name, **dict(entry.answer)))
            found.append(entry)
    return results, found


def _said_of(model: LoadedModel, began: float) -> dict[str, Any]:
    """What stands in every answer."""
    return {
        "model": Model.of(model),
        "preprocessing_fingerprint": model.session.metadata.preprocessing_fingerprint,
        "processing_time_ms": round(1000 * (time.perf_counter() - began), 3),
    }


def _count(metrics: Metrics, found: Answered) -> None:
    answer = found.answer
    best = answer.predictions[0].confidence
    metrics.answered(answer.stages_ms, best, not answer.sure, [warning.code for warning in answer.warnings])


def _json(answer: PredictAnswer | BatchAnswer) -> Response:
    """Written out at once: FastAPI would check every value of our own answer a second time."""
    return Response(answer.model_dump_json(), media_type="application/json")
