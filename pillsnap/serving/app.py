"""The FastAPI application: routes, and what stands around them (ids, limits, keys, languages, headers)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

import pillsnap
from pillsnap.core.client_contract import ClientContract
from pillsnap.core.image_validator import ImageValidator
from pillsnap.serving.answering import Answered, answer_photo, combined
from pillsnap.serving.answers import (
    BatchAnswer,
    Classes,
    Drug,
    Health,
    Info,
    Judgement,
    Model,
    NamedAnswer,
    NamedProblem,
    PredictAnswer,
    Readiness,
)
from pillsnap.serving.following import Follower
from pillsnap.serving.guard import Guard, api_keys, key_checker
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import MEDIA_TYPE, MOST_IMAGES, Language, ProblemError, language_of, responses
from pillsnap.serving.settings import ServeSettings
from pillsnap.serving.shadow import Shadow
from pillsnap.serving.slot import LoadedModel, Slot
from pillsnap.serving.sources import BundleSource, ModelSource, RegistrySource
from pillsnap.serving.uploads import FORM_TYPE, IMAGE_TYPES, Photo, one_photo, several_photos
from pillsnap.serving.workers import Workers

_log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
_CLIENT = Path(pillsnap.__file__).parent / "clients" / "pillsnap_client.js"
_PHOTO_PROBLEMS = (
    "empty", "no_image", "bad_form", "bad_request", "unauthorized", "slow_upload", "too_many_bytes",
    "too_many_pixels", "unsupported_format", "unsupported_media_type", "truncated", "undecodable", "no_pixels",
    "too_many_scans", "too_small", "too_many_images", "bad_parameter", "wrong_host", "overloaded",
    "deadline_exceeded", "not_ready",
)  # fmt: skip
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "minItems": 1, "maxItems": MOST_IMAGES, "items": _FILE}


def from_environment() -> FastAPI:
    """The application of a worker process (`ServeSettings.to_environment`). Raises ConfigError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pillsnap").setLevel(logging.INFO)  # a worker process has not gone through the command line
    settings = ServeSettings.from_environment()
    return create_app(settings, source_of(settings))


def source_of(settings: ServeSettings) -> ModelSource:
    """Where the model comes from. Raises ConfigError."""
    followed = settings.followed
    if followed is None:
        return BundleSource(Path(settings.model), settings.threads)
    return RegistrySource(*followed, settings.home, settings.threads)


def create_app(settings: ServeSettings, source: ModelSource) -> FastAPI:
    """The application for one source of models.

    Raises:
        ConfigError: the file of API keys cannot be read, or holds none.
    """
    metrics = Metrics()
    slot = Slot()
    follower = Follower(slot, source, settings.poll_s, metrics)
    workers = Workers(settings.concurrency, settings.queue, settings.deadline_s)
    shadow = Shadow.of(settings, metrics)
    need_key = Depends(key_checker(api_keys(settings.keys_file)))

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(follower.start)
        await asyncio.to_thread(shadow.start)
        yield
        await asyncio.to_thread(follower.stop)
        await asyncio.to_thread(shadow.stop)
        workers.close()

    app = FastAPI(
        title="PillSnap",
        version=pillsnap.__version__,
        summary="Which of 100 Korean drugs is on this photo?",
        description=(
            "An answer is an aid and never a replacement for reading the imprint. Errors are problem details "
            "(RFC 9457) with a `code`; their texts follow Accept-Language (ko, en)."
        ),
        lifespan=life,
        docs_url=None,  # their scripts come from another host
        redoc_url=None,
    )
    app.state.slot, app.state.follower, app.state.workers, app.state.metrics = slot, follower, workers, metrics
    _handle_errors(app)

    @app.post(
        "/v1/narrow/predict",
        response_model=PredictAnswer,
        responses=responses(*_PHOTO_PROBLEMS),
        dependencies=[need_key],
        tags=["narrow"],
        openapi_extra=_body(
            "The photo itself, or a form with one file `image`. At most 10 MiB; JPEG is expected.",
            {**dict.fromkeys(IMAGE_TYPES, {"schema": _FILE}), FORM_TYPE: {"schema": _form("image", _FILE)}},
        ),
    )
    async def predict(request: Request) -> Any:
        """The five most probable drugs of one photo."""
        photo = await one_photo(request, settings.upload_s)
        began = time.perf_counter()
        model = slot.take()
        found = await workers.run(partial(answer_photo, model, photo.data, photo.name))
        shadow.see(photo.data, found)
        _count(metrics, found)
        return _json(
            PredictAnswer(
                **dict(found.answer),
                model=_model(model),
                preprocessing_fingerprint=model.session.metadata.preprocessing_fingerprint,
                processing_time_ms=_since(began),
            )
        )

    @app.post(
        "/v1/narrow/batch_predict",
        response_model=BatchAnswer,
        responses=responses(*_PHOTO_PROBLEMS),
        dependencies=[need_key],
        tags=["narrow"],
        openapi_extra=_body(
            f"A form with 1 to {MOST_IMAGES} files, all named `images`.",
            {FORM_TYPE: {"schema": _form("images", _FILES)}},
        ),
    )
    async def batch_predict(
        request: Request,
        same_pill: Annotated[
            bool, Query(description="The photos show one pill (its sides): answer them together, too.")
        ] = False,
    ) -> Any:
        """The answers to several photos; one that cannot be read has a problem in place of an answer."""
        photos = await several_photos(request, settings.upload_s)
        began = time.perf_counter()
        model = slot.take()
        language = language_of(request.headers.get("accept-language"))
        request_id = request.state.request_id
        results, found = await workers.run(partial(_answer_all, model, photos, language, request_id))
        for entry in found:
            _count(metrics, entry)
        return _json(
            BatchAnswer(
                results=results,
                combined=combined(model, found) if same_pill and found else None,
                model=_model(model),
                preprocessing_fingerprint=model.session.metadata.preprocessing_fingerprint,
                processing_time_ms=_since(began),
            )
        )

    @app.get("/v1/narrow/info", responses=responses("not_ready", "wrong_host"), tags=["narrow"])
    async def info() -> Info:
        """Which model answers, what the gate signed of it, and what it expects."""
        model = slot.take()
        metadata = model.session.metadata
        statement = model.statement
        return Info(
            model=_model(model),
            classes=len(metadata.classes) - len(metadata.retired_indices),
            judgement=None
            if statement is None
            else Judgement(
                verdict=statement.verdict,
                issued_at=statement.issued_at.isoformat(timespec="seconds"),
                figures=statement.figures,
            ),
            unsure_below=model.unsure_below,
            engine=model.session.provider,
            preprocessing=metadata.preprocessing.get_config(),
            preprocessing_fingerprint=metadata.preprocessing_fingerprint,
            client_contract=ClientContract().get_config(),
            validator=ImageValidator().get_config(),
            most_images=MOST_IMAGES,
            pillsnap_version=pillsnap.__version__,
        )

    @app.get("/v1/narrow/classes", responses=responses("not_ready", "wrong_host"), tags=["narrow"])
    async def classes() -> Classes:
        """The drugs that can be answered, by the index of the model's output."""
        model = slot.take()
        drugs = [
            Drug(index=index, kcode=entry.kcode, drug_name=entry.drug_name, manufacturer=entry.manufacturer)
            for index, entry in enumerate(model.session.metadata.classes)
            if not entry.retired
        ]
        return Classes(classes=drugs, model=_model(model))

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """The process answers."""
        return Health()

    @app.get("/readyz", responses={503: {"model": Readiness, "description": "no model yet"}}, tags=["operation"])
    async def readyz() -> Response:
        """Whether there is a model, and how things stand with the registry."""
        model = slot.model
        standing = follower.standing
        followed = settings.followed is not None
        state = Readiness(
            ready=model is not None,
            model=None if model is None else _model(model),
            registry=("up" if standing.source_up else "down") if followed else "not_followed",
            kept_copy=model is not None and model.kept,
            refused=standing.refused,
        )
        return JSONResponse(state.model_dump(), 200 if state.ready else 503)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def show_metrics() -> Response:
        """For Prometheus."""
        metrics.waiting.set(workers.inside)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    files = {path.name: path for path in _PAGE.iterdir() if path.suffix in {".js", ".css", ".svg"}}
    files[_CLIENT.name] = _CLIENT

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        if name not in files:
            raise ProblemError("not_found")
        return FileResponse(files[name])

    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type", "X-API-Key", "Accept-Language"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app


def _body(description: str, content: dict[str, Any]) -> dict[str, Any]:
    """Of a request, for the OpenAPI document: FastAPI does not see what a route reads by itself."""
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [field], "properties": {field: schema}}


def _answer_all(
    model: LoadedModel, photos: list[Photo], language: Language, request_id: str, waited_s: float
) -> tuple[list[NamedAnswer | NamedProblem], list[Answered]]:
    results: list[NamedAnswer | NamedProblem] = []
    found = []
    for photo in photos:
        try:
            entry = answer_photo(model, photo.data, photo.name, waited_s)
        except ProblemError as error:
            results.append(NamedProblem(name=photo.name, problem=error.problem(language, request_id)))
        else:
            results.append(NamedAnswer(name=photo.name, **dict(entry.answer)))
            found.append(entry)
    return results, found


def _handle_errors(app: FastAPI) -> None:
    def send(request: Request, error: ProblemError) -> Response:
        language = language_of(request.headers.get("accept-language"))
        request.state.code = error.code
        problem = error.problem(language, request.state.request_id)
        headers = {"Content-Language": language, "Vary": "Accept-Language", **error.headers}
        return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)

    @app.exception_handler(ProblemError)
    async def refused(request: Request, error: ProblemError) -> Response:
        return send(request, error)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        return send(request, ProblemError("bad_parameter"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        return send(request, ProblemError(codes.get(error.status_code, "bad_request"), error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        _log.error("request %s failed", request.state.request_id, exc_info=error)
        return send(request, ProblemError("internal"))


def _model(model: LoadedModel) -> Model:
    return Model(name=model.name, version=model.version, alias=model.alias, sha256=model.session.sha256)


def _count(metrics: Metrics, found: Answered) -> None:
    answer = found.answer
    best = answer.predictions[0].confidence
    metrics.answered(answer.stages_ms, best, not answer.sure, [warning.code for warning in answer.warnings])


def _json(answer: PredictAnswer | BatchAnswer) -> Response:
    """Written out at once: FastAPI would check every value of our own answer a second time."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 3)
