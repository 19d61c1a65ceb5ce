"""The bytes of a request's photos, never more than allowed and never for longer: before anything is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from pillsnap.core.image_validator import MAX_UPLOAD_BYTES
from pillsnap.serving.problems import MOST_IMAGES, ProblemError

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
"""What the documents name. A body's content decides: clients call a JPEG image/jpg, image/pjpeg, or nothing."""
_NO_PHOTO = ("text/", "multipart/", "message/", "application/json", "application/xml")
"""Such a body is something else, and that is said in place of what its bytes are not."""
FORM_TYPE = "multipart/form-data"
_FORM_ROOM = 64 * 1024
"""Bytes of a form around its photos: boundaries, headers, names."""
MultiPartParser.spool_max_size = MAX_UPLOAD_BYTES  # no photo touches the disk; how many may be in memory says `guard`
_LONGEST_NAME = 100
_TAIL = 512
"""Bytes in which a form's end must stand: a boundary has 70 at most."""


@dataclass(frozen=True)
class Photo:
    """One photo as it came."""

    data: bytes
    name: str
    """As the client calls it; '' where it does not."""


async def one_photo(request: Request, timeout_s: float) -> Photo:
    """The photo of a request: its body, or the form field ``image``.

    Raises:
        ProblemError: too large, too slow, another Content-Type, no photo, more than one.
    """
    kind = _media_type(request)
    if kind == FORM_TYPE:
        async with _form(request, 1, timeout_s) as form:
            photos = await _photos(form, "image")
        if len(photos) != 1:
            raise ProblemError("no_image" if not photos else "too_many_images")
        return photos[0]
    if not kind.startswith(_NO_PHOTO):
        limited = _limited(request, MAX_UPLOAD_BYTES)
        async with _in_time(timeout_s):
            return Photo(await limited.body(), "")
    raise ProblemError("unsupported_media_type")


async def several_photos(request: Request, timeout_s: float) -> list[Photo]:
    """The photos of a form's field ``images``, 1 to 10. Raises ProblemError."""
    if _media_type(request) != FORM_TYPE:
        raise ProblemError("unsupported_media_type")
    async with _form(request, MOST_IMAGES, timeout_s) as form:
        photos = await _photos(form, "images")
    if not photos:
        raise ProblemError("no_image")
    return photos


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def _form(request: Request, files: int, timeout_s: float) -> AsyncIterator[FormData]:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    ending = b"--" + options.get(b"boundary", b"") + b"--"
    limited = _limited(request, files * MAX_UPLOAD_BYTES + _FORM_ROOM, ending)
    async with _in_time(timeout_s):
        try:
            # one file more than allowed is let in, to be told apart from a form that cannot be read
            async with limited.form(max_files=files + 1, max_fields=files, max_part_size=_FORM_ROOM) as form:
                if sum(isinstance(value, UploadFile) for _, value in form.multi_items()) > files:
                    raise ProblemError("too_many_images")
                yield form
        except (UnicodeError, LookupError) as error:  # of a charset that the client names
            raise ProblemError("bad_form") from error
        except HTTPException as error:  # Starlette's, for a form that its parser refuses
            raise ProblemError("too_many_images" if "Too many files" in str(error.detail) else "bad_form") from error


async def _photos(form: FormData, field: str) -> list[Photo]:
    photos = []
    for value in form.getlist(field):
        if isinstance(value, UploadFile):
            if (value.size or 0) > MAX_UPLOAD_BYTES:
                raise ProblemError("too_many_bytes")
            name = (value.filename or "")[:_LONGEST_NAME].encode("utf-8", "replace").decode()  # no lone surrogates
            photos.append(Photo(await value.read(), name))
    return photos


def _limited(request: Request, limit: int, ending: bytes = b"") -> Request:
    """The request, whose body raises ``too_many_bytes`` as soon as it is longer than ``limit``, and not at its end.

    A form must have its ``ending``: the parser would take one that breaks off for one with fewer files.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise ProblemError("too_many_bytes", {"Connection": "close"})
    received = 0
    tail = b""

    async def receive() -> Message:
        nonlocal received, tail
        message = await request.receive()
        body = message.get("body", b"")
        received += len(body)
        if received > limit:
            raise ProblemError("too_many_bytes", {"Connection": "close"})
        if ending:
            tail = (tail + body[-_TAIL:])[-_TAIL:]
            if not message.get("more_body", False) and ending not in tail:
                raise MultiPartException("the form breaks off")
        return message

    return Request(request.scope, receive)


@asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise ProblemError("slow_upload", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise ProblemError("bad_request") from None
