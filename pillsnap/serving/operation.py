"""For who runs the server: probes and figures."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from pillsnap.serving.answers import Health, Model, Readiness
from pillsnap.serving.house import InHouse

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "no model yet"}})
async def readyz(house: InHouse) -> Response:
    """Whether there is a model, and how things stand with the registry."""
    model = house.slot.model
    standing = house.follower.standing
    followed = house.settings.followed is not None
    state = Readiness(
        ready=model is not None,
        model=None if model is None else Model.of(model),
        registry=("up" if standing.source_up else "down") if followed else "not_followed",
        kept_copy=model is not None and model.kept,
        refused=standing.refused,
    )
    return JSONResponse(state.model_dump(), 200 if state.ready else 503)


@router.get("/metrics", response_class=Response)
async def show_metrics(house: InHouse) -> Response:
    """For Prometheus."""
    return Response(house.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
