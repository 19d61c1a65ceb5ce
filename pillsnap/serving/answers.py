"""The form of every answer: what a client may rely on, and the OpenAPI document's examples."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.image_codes import Finding
from pillsnap.serving.problems import Problem
from pillsnap.serving.slot import LoadedModel


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)  # they are the document's descriptions


class Prediction(_Answer):
    """One drug that the photo may show."""

    rank: int = Field(examples=[1])
    kcode: str = Field(examples=["K-030864"])
    drug_name: str = Field(examples=["가상정 10밀리그램"])
    manufacturer: str = Field(examples=["가상제약"])
    confidence: float = Field(ge=0, le=1, examples=[0.93])
    """Calibrated probability."""


class Model(_Answer):
    """Which model answered."""

    name: str = Field(examples=["pillsnap"])
    version: str | None = Field(examples=["3"])
    """Of the registry; null: a bundle that was given as a file, which no gate vouches for."""
    alias: str | None = Field(examples=["champion"])
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Of the ONNX file."""

    @classmethod
    def of(cls, model: LoadedModel) -> Self:
        """As it is named in answers."""
        return cls(name=model.name, version=model.version, alias=model.alias, sha256=model.session.sha256)


class Image(_Answer):
    """What arrived."""

    format: str = Field(examples=["jpeg"])
    width: int = Field(examples=[512])
    height: int = Field(examples=[512])
    size_kb: float = Field(examples=[31.2])


class Identification(_Answer):
    """The most probable drugs, and how sure that is."""

    predictions: list[Prediction]
    """At most five, the best first."""
    sure: bool = Field(examples=[True])
    """False: the best confidence is under ``unsure_below``, or nothing can be seen in a picture (see ``warnings``). Do
    not show it as an answer."""
    unsure_below: float = Field(examples=[0.5])


class PhotoAnswer(Identification):
    """The answer to one photo."""

    image: Image
    warnings: list[Finding]
    """Remarks on the photo, by the codes of ``/info`` (``validator.warnings``); none stops an answer. With one of
    ``validator.never_sure`` (too dark, too bright, blank, blurred, noise, damaged) ``sure`` is false."""
    stages_ms: dict[str, float] = Field(examples=[{"queue": 0.1, "decode": 0.6, "prepare": 1.4, "inference": 9.0}])


class PredictAnswer(PhotoAnswer):
    """``POST /v1/narrow/predict``."""

    model: Model
    preprocessing_fingerprint: str = Field(examples=["73fddbcf93a7b388"])
    processing_time_ms: float = Field(examples=[11.4])
    """From the last byte of the request to the answer."""


class NamedAnswer(PhotoAnswer):
    """One photo of a batch."""

    name: str = Field(examples=["front.jpg"])
    """As the client calls it."""


class NamedProblem(_Answer):
    """One photo of a batch that cannot be answered."""

    name: str = Field(examples=["back.jpg"])
    problem: Problem


class BatchAnswer(_Answer):
    """``POST /v1/narrow/batch_predict``: one result a photo, in the order of the request."""

    results: list[NamedAnswer | NamedProblem]
    combined: Identification | None
    """With ``same_pill=true``: the answer to all photos that could be read, taken together."""
    model: Model
    preprocessing_fingerprint: str
    processing_time_ms: float


class Judgement(_Answer):
    """What the gate signed of the model."""

    verdict: str = Field(examples=["PROMOTE"])
    issued_at: str = Field(examples=["2026-11-25T03:00:00+00:00"])
    figures: dict[str, str] = Field(examples=[{"top1": "92.5 %", "real_top1": "90.4 %"}])


class Info(_Answer):
    """``GET /v1/narrow/info``."""

    model: Model
    classes: int = Field(examples=[100])
    """Drugs that can be answered."""
    judgement: Judgement | None
    """None: the model was given as a file."""
    unsure_below: float
    engine: str
    preprocessing: dict[str, Any]
    preprocessing_fingerprint: str
    client_contract: dict[str, Any]
    """What a client does to a photo before it sends it; see ``pillsnap/clients``."""
    validator: dict[str, Any]
    """Limits and codes of what is taken."""
    most_images: int
    pillsnap_version: str


class Drug(_Answer):
    """One drug that can be answered."""

    index: int
    kcode: str
    drug_name: str
    manufacturer: str


class Classes(_Answer):
    """``GET /v1/narrow/classes``."""

    classes: list[Drug]
    model: Model


class Health(_Answer):
    """``GET /healthz``: the process answers."""

    status: Literal["ok"] = "ok"


class Readiness(_Answer):
    """``GET /readyz``."""

    ready: bool
    model: Model | None
    registry: Literal["up", "down", "not_followed"]
    kept_copy: bool
    """The model is the last proven one from disk: the registry has not answered since the start."""
    refused: str | None
    """``not_proven`` or ``not_loadable``: the registry names another model, which is not served."""
