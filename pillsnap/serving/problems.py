"""Every answer that is not an answer: RFC 9457 problem details, with a code for programs and two languages for people.

All texts stand here, and nothing of an exception's own text goes out: it may name paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from pillsnap.core.image_codes import Refusal
from pillsnap.core.image_validator import LEAST_SIDE_PX, MAX_UPLOAD_BYTES
from pillsnap.core.images import MAX_PIXELS

Language = Literal["ko", "en"]
_LANGUAGES: tuple[Language, ...] = ("en", "ko")
MEDIA_TYPE = "application/problem+json"
MOST_IMAGES = 10
_MIB = MAX_UPLOAD_BYTES // 2**20
_MEGAPIXELS = MAX_PIXELS // 10**6


@dataclass(frozen=True)
class Text:
    """Title and detail in one language."""

    title: str
    detail: str


@dataclass(frozen=True)
class Kind:
    """One cause."""

    status: int
    en: Text
    ko: Text


_AGAIN_EN, _AGAIN_KO = "Take the photo again.", "사진을 다시 찍어 주세요."
KINDS: dict[str, Kind] = {
    Refusal.EMPTY.value: Kind(
        400,
        Text("The picture is empty", "No bytes arrived. Choose the photo again."),
        Text("빈 파일입니다", "전송된 데이터가 없습니다. 사진을 다시 선택해 주세요."),
    ),
    Refusal.TOO_MANY_BYTES.value: Kind(
        413,
        Text("The picture is too large", f"At most {_MIB} MiB a picture are taken. Send it as JPEG of quality 85."),
        Text("파일이 너무 큽니다", f"사진은 {_MIB} MiB 이하여야 합니다. JPEG 품질 85로 보내 주세요."),
    ),
    Refusal.UNSUPPORTED_FORMAT.value: Kind(
        415,
        Text("Not a picture that is known here", "JPEG, PNG and WebP are taken; the content counts, not the name."),
        Text("지원하지 않는 형식입니다", "JPEG, PNG, WebP만 받습니다. 파일 이름이 아니라 내용으로 판단합니다."),
    ),
    Refusal.HEIC.value: Kind(
        415,
        Text(
            "A HEIC or AVIF photo",
            "Set the phone to JPEG and take the photo again. iPhone: Settings > Camera > Formats > Most Compatible. "
            "Android: Camera > Settings, turn high efficiency pictures (HEIF) off. Or save this photo as JPEG.",
        ),
        Text(
            "HEIC 또는 AVIF 사진입니다",
            "휴대폰을 JPEG로 설정한 뒤 다시 찍어 주세요. iPhone: 설정 > 카메라 > 포맷 > 높은 호환성. "
            "Android: 카메라 설정에서 고효율 사진(HEIF) 끄기. 또는 이 사진을 JPEG로 저장해 보내 주세요.",
        ),
    ),
    Refusal.RARE_JPEG.value: Kind(
        415,
        Text(
            "A rare kind of JPEG",
            "The file is sound, but of more than 8 bits, lossless, hierarchical, JPEG-LS, or with its height behind "
            "its pixels (DNL). Save it as a usual JPEG (8 bits, baseline).",
        ),
        Text(
            "드문 종류의 JPEG입니다",
            "파일은 정상이지만 8비트 초과, 무손실, 계층형, JPEG-LS 또는 높이가 뒤에 있는(DNL) JPEG입니다. "
            "일반 JPEG(8비트, 베이스라인)로 다시 저장해 주세요.",
        ),
    ),
    Refusal.NO_PIXEL_DATA.value: Kind(
        422,
        Text("The picture has no pixel data", f"The file is a JPEG's header with nothing behind it. {_AGAIN_EN}"),
        Text("픽셀 데이터가 없는 사진입니다", f"JPEG 헤더만 있고 내용이 없습니다. {_AGAIN_KO}"),
    ),
    Refusal.TRUNCATED.value: Kind(
        422,
        Text("The picture is cut off", f"The end of the file is missing. {_AGAIN_EN}"),
        Text("사진이 잘렸습니다", f"파일의 끝부분이 없습니다. {_AGAIN_KO}"),
    ),
    Refusal.NO_PIXELS.value: Kind(
        422,
        Text("The picture has no pixels", f"Its header says that a side is 0. {_AGAIN_EN}"),
        Text("픽셀이 없는 사진입니다", f"한 변의 길이가 0입니다. {_AGAIN_KO}"),
    ),
    Refusal.TOO_MANY_PIXELS.value: Kind(
        413,
        Text("The picture has too many pixels", f"At most {_MEGAPIXELS} million are decoded. Send a smaller one."),
        Text("해상도가 너무 높습니다", f"최대 {_MEGAPIXELS}백만 픽셀까지 받습니다. 더 작은 사진을 보내 주세요."),
    ),
    Refusal.TOO_MANY_SCANS.value: Kind(
        422,
        Text("An unusual JPEG", "It has more passes than any camera writes. Save it as a usual JPEG."),
        Text("일반적이지 않은 JPEG입니다", "스캔 수가 너무 많습니다. 일반 JPEG로 다시 저장해 주세요."),
    ),
    Refusal.UNDECODABLE.value: Kind(
        422,
        Text("The picture is damaged", f"It cannot be decoded. {_AGAIN_EN}"),
        Text("사진이 손상되었습니다", f"사진을 읽을 수 없습니다. {_AGAIN_KO}"),
    ),
    Refusal.TOO_SMALL.value: Kind(
        422,
        Text("The picture is too small", f"Its shorter side is under {LEAST_SIDE_PX} pixels. Go nearer to the pill."),
        Text("사진이 너무 작습니다", f"짧은 변이 {LEAST_SIDE_PX}픽셀보다 작습니다. 알약을 더 가까이에서 찍어 주세요."),
    ),
    "no_image": Kind(
        400,
        Text(
            "No picture in the request",
            "Send it as the body (image/jpeg), or as a file in the form field image (batch_predict: images).",
        ),
        Text(
            "요청에 사진이 없습니다",
            "본문(image/jpeg) 또는 폼 필드 image(batch_predict는 images)의 파일로 보내 주세요.",
        ),
    ),
    "too_many_images": Kind(
        400,
        Text("Too many pictures", f"predict takes one, batch_predict at most {MOST_IMAGES} in one request."),
        Text("사진이 너무 많습니다", f"predict는 한 장, batch_predict는 한 번에 {MOST_IMAGES}장까지 받습니다."),
    ),
    "bad_form": Kind(
        400,
        Text("The form cannot be read", "The body is not well-formed multipart/form-data."),
        Text("폼을 읽을 수 없습니다", "본문이 올바른 multipart/form-data가 아닙니다."),
    ),
    "unsupported_media_type": Kind(
        415,
        Text("Another Content-Type is needed", "Send the photo itself (image/jpeg) or multipart/form-data."),
        Text("Content-Type이 맞지 않습니다", "사진 자체(image/jpeg) 또는 multipart/form-data로 보내 주세요."),
    ),
    "bad_request": Kind(
        400,
        Text("The request cannot be read", "Its body ended early or is not what its headers say."),
        Text("요청을 읽을 수 없습니다", "본문이 도중에 끝났거나 헤더와 다릅니다."),
    ),
    "bad_parameter": Kind(
        422,
        Text("A parameter is wrong", "See /openapi.json for the parameters and their values."),
        Text("매개변수가 잘못되었습니다", "매개변수와 허용 값은 /openapi.json에 있습니다."),
    ),
    "slow_upload": Kind(
        408,
        Text("The upload took too long", "The connection is slow or was held. Try again."),
        Text("전송이 너무 오래 걸렸습니다", "연결이 느리거나 멈췄습니다. 다시 시도해 주세요."),
    ),
    "unauthorized": Kind(
        401,
        Text("An API key is needed", "Send it as the header X-API-Key."),
        Text("API 키가 필요합니다", "X-API-Key 헤더로 보내 주세요."),
    ),
    "wrong_host": Kind(
        421,
        Text("Another host name is needed", "This server does not answer under the name that was used."),
        Text("호스트 이름이 맞지 않습니다", "이 서버는 사용한 이름으로 응답하지 않습니다."),
    ),
    "not_found": Kind(
        404,
        Text("There is nothing here", "See /openapi.json for what there is."),
        Text("찾을 수 없습니다", "사용할 수 있는 주소는 /openapi.json에 있습니다."),
    ),
    "method_not_allowed": Kind(
        405,
        Text("Another method is needed", "See /openapi.json for the method of this address."),
        Text("허용되지 않는 메서드입니다", "이 주소의 메서드는 /openapi.json에 있습니다."),
    ),
    "overloaded": Kind(
        503,
        Text("The server is busy", "Too many photos wait already. Try again in a moment."),
        Text("서버가 바쁩니다", "대기 중인 사진이 너무 많습니다. 잠시 후 다시 시도해 주세요."),
    ),
    "deadline_exceeded": Kind(
        503,
        Text("The answer would come too late", "It was not ready in time. Try again, or send fewer photos at once."),
        Text("응답 시간이 초과되었습니다", "제한 시간 안에 답하지 못했습니다. 사진 수를 줄이거나 다시 시도해 주세요."),
    ),
    "not_ready": Kind(
        503,
        Text("No proven model is loaded", "The server waits for a champion that has proven itself. Try again later."),
        Text("사용할 수 있는 모델이 없습니다", "검증된 모델을 기다리고 있습니다. 잠시 후 다시 시도해 주세요."),
    ),
    "internal": Kind(
        500,
        Text("A fault of the server", "It was logged under the request_id."),
        Text("서버 오류입니다", "request_id로 기록되었습니다."),
    ),
}


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: str = Field(examples=["urn:pillsnap:problem:truncated"])
    title: str = Field(examples=["The picture is cut off"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The end of the file is missing. Take the photo again."])
    code: str = Field(examples=["truncated"])
    """One of `KINDS`; it never changes with the language."""
    request_id: str = Field(examples=["5f1c0a6c2f6f4f6c9d3f9f3f7a1d2b4c"])


@dataclass
class ProblemError(Exception):
    """Refuses a request."""

    code: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def problem(self, language: Language, request_id: str) -> Problem:
        """What is sent."""
        kind = KINDS[self.code]
        text = kind.ko if language == "ko" else kind.en
        return Problem(
            type=f"urn:pillsnap:problem:{self.code}",
            title=text.title,
            status=kind.status,
            detail=text.detail,
            code=self.code,
            request_id=request_id,
        )


def image_problem(code: str) -> ProblemError:
    """Of an ``ImageError``'s code."""
    return ProblemError(code if code in KINDS else Refusal.UNDECODABLE.value)


def language_of(accept_language: str | None) -> Language:
    """The better of the two languages for an Accept-Language header (RFC 9110, 12.5.4); English where it says nothing.

    A header that cannot be read counts as none.
    """
    named: dict[Language, float] = {}
    others = 0.0
    for part in (accept_language or "")[:500].split(","):
        tag, _, parameter = part.strip().lower().partition(";")
        quality = _quality(parameter)
        primary = tag.strip().split("-")[0]
        if primary == "*":
            others = quality
        for language in _LANGUAGES:
            if primary == language:
                named[language] = max(quality, named.get(language, 0.0))
    best: tuple[float, Language] = (0.0, "en")
    for language in (*named, *_LANGUAGES):  # of equal ones, the one that is named first
        quality = named.get(language, others)
        if quality > best[0]:
            best = (quality, language)
    return best[1]


def _quality(parameter: str) -> float:
    key, _, value = parameter.strip().partition("=")
    if not key:
        return 1.0
    try:
        found = float(value)
    except ValueError:
        return 0.0
    return found if key.strip() == "q" and 0 <= found <= 1 else 0.0


def problem_response(error: ProblemError, accept_language: str | None, request_id: str) -> JSONResponse:
    """What a client is sent, in its language."""
    language = language_of(accept_language)
    problem = error.problem(language, request_id)
    headers = {"Content-Language": language, "Vary": "Accept-Language", **error.headers}
    return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of problems, by status."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = KINDS[code]
        entry = found.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: {"examples": {}}}})
        entry["description"] = f"{entry['description']}, {code}".removeprefix(", ")
        entry["model"] = Problem
        example = ProblemError(code).problem("en", "0" * 32).model_dump()
        entry["content"][MEDIA_TYPE]["examples"][code] = {"value": example}
    return found
