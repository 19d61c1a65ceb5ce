"""From a photo's bytes to an answer: checks, the session, and what is said of it. Runs in a worker thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import ImageError
from pillsnap.core.image_validator import MAX_UPLOAD_BYTES, ImageValidator, refuse_small
from pillsnap.core.images import inspect
from pillsnap.inference.session import Candidate
from pillsnap.serving.answers import Identification, Image, PhotoAnswer, Prediction
from pillsnap.serving.problems import ProblemError, image_problem
from pillsnap.serving.slot import LoadedModel

TOP = 5
_LEAST = 1e-12


@dataclass(frozen=True)
class Answered:
    """An answer, and the probabilities behind it."""

    answer: PhotoAnswer
    probabilities_K: NDArray[np.float32]
    doubted: bool
    """The picture is too poor for any answer to be sure."""


def answer_photo(model: LoadedModel, data: bytes, name: str, waited_s: float) -> Answered:
    """Answer one photo; ``waited_s`` is the time that it had to wait for its turn.

    Raises:
        ProblemError: it cannot be used; with the code of the cause.
    """
    if not data:
        raise ProblemError("empty")
    if len(data) > MAX_UPLOAD_BYTES:
        raise ProblemError("too_many_bytes")
    try:
        header = inspect(data)
        width, height = header.upright_size
        refuse_small(header, "image")
        told = model.session.answer(data, TOP, header=header)
    except ImageError as error:
        raise image_problem(error.code) from error
    answer = PhotoAnswer(
        **identification(model, told.candidates, doubted=bool(told.doubts)).model_dump(),
        image=Image(format=header.format, width=width, height=height, size_kb=round(len(data) / 1024, 1)),
        warnings=[*ImageValidator().remarks(header, name or None), *told.doubts],
        stages_ms={name: round(value, 3) for name, value in {"queue": 1000 * waited_s, **told.stages_ms}.items()},
    )
    return Answered(answer, told.probabilities_K, bool(told.doubts))


def identification(model: LoadedModel, candidates: Sequence[Candidate], *, doubted: bool) -> Identification:
    """Candidates as they are sent, and whether the best one is sure enough to be shown as an answer."""
    unsure_below = model.session.unsure_below
    return Identification(
        predictions=[
            Prediction(
                rank=entry.rank,
                kcode=entry.kcode,
                drug_name=entry.drug_name,
                manufacturer=entry.manufacturer,
                confidence=round(entry.confidence, 6),
            )
            for entry in candidates
        ],
        sure=not doubted and candidates[0].confidence >= unsure_below,
        unsure_below=unsure_below,
    )


def combined(model: LoadedModel, answers: Sequence[Answered]) -> Identification:
    """One answer to several photos of the same pill: the normalised geometric mean of their probabilities.

    The product of experts without its sharpening: two photos that say the same are as sure as each of them, and a drug
    that one photo rules out is out. A product (independent evidence) would call two blurred photos of one mistake sure.
    With a picture among them that nothing can be seen in the whole is not sure.
    """
    log_NK = np.log(np.maximum(np.stack([entry.probabilities_K for entry in answers]).astype(np.float64), _LEAST))
    probabilities_K = softmax(log_NK.mean(axis=0))
    doubted = any(entry.doubted for entry in answers)
    return identification(model, model.session.rank(probabilities_K, TOP), doubted=doubted)


def softmax(logits_K: NDArray[np.float64]) -> NDArray[np.float32]:
    """Probabilities that add up to 1."""
    powers_K = np.exp(logits_K - logits_K.max())
    return np.asarray(powers_K / powers_K.sum(), np.float32)
