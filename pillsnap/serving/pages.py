"""The pharmacist's page and its files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

import pillsnap.clients
from pillsnap.serving.problems import ProblemError

_FOLDER = Path(__file__).parent / "page"
_CLIENT = Path(pillsnap.clients.__file__).parent
_FILES = {
    path.name: path
    for path in (*_FOLDER.glob("*.js"), *_FOLDER.glob("*.css"), *_FOLDER.glob("*.svg"), *_CLIENT.glob("*.js"))
}
"""By name: nothing else of the disk can be asked for."""
router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(_FOLDER / "index.html")


@router.get("/page/{name}")
async def page_file(name: str) -> FileResponse:
    """One of its files. Raises ProblemError (``not_found``)."""
    if name not in _FILES:
        raise ProblemError("not_found")
    return FileResponse(_FILES[name])
