"""The FastAPI application: routes, errors, and what stands around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

import pillsnap
from pillsnap.serving import narrow, operation, pages
from pillsnap.serving.guard import Guard
from pillsnap.serving.house import House
from pillsnap.serving.problems import ProblemError, problem_response
from pillsnap.serving.process import end_with_parent
from pillsnap.serving.settings import ServeSettings
from pillsnap.serving.sources import ModelSource


def from_environment() -> FastAPI:
    """The application of a worker process (`ServeSettings.to_environment`). Raises ConfigError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pillsnap").setLevel(logging.INFO)  # a worker process has not gone through the command line
    end_with_parent()
    return create_app(ServeSettings.from_environment())


def create_app(settings: ServeSettings, source: ModelSource | None = None) -> FastAPI:
    """The application; ``source`` of models takes the place of the one that the settings name. Raises ConfigError."""
    house = House.of(settings, source)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await house.open()
        yield
        await house.close()

    app = FastAPI(
        redirect_slashes=False,  # a redirect names the scheme and the host that this process sees, not the proxy's
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
    app.state.house = house
    for routes in (narrow, operation, pages):
        app.include_router(routes.router)
    _handle_errors(app)
    app.add_middleware(Guard, settings=settings, metrics=house.metrics)
    if settings.origins:  # outermost: a page of another origin must be able to read a refusal, too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type", "X-API-Key", "Accept-Language"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    return app


def _handle_errors(app: FastAPI) -> None:
    def send(request: Request, error: ProblemError) -> Response:
        request.state.code = error.code
        return problem_response(error, request.headers.get("accept-language"), request.state.request_id)

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
