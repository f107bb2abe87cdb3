"""Roost's native endpoints, and `POST /debug/profile`: device profiles, for operators with an admin key."""

import asyncio
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from ....engine import record_profile
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...feature import Feature
from ...http.routes import ReadyService
from . import generate, prompts

router = APIRouter()

_ONE: Final = asyncio.Lock()
"""JAX records one profile at a time."""


@router.post("/debug/profile", response_class=Response, responses={200: {"content": {"application/zip": {}}}})
async def profile(service: ReadyService, seconds: Annotated[float, Query(gt=0, le=60)] = 2.0) -> Response:
    """Records a profile of the host and the device, and returns files for xprof and Perfetto, zipped."""
    if _ONE.locked():
        raise ApiError(kinds.PROFILE_IN_PROGRESS, "a profile is being recorded; wait for its end")
    async with _ONE:
        content = await asyncio.to_thread(_record, seconds)
    headers = {"content-disposition": 'attachment; filename="profile.zip"'}
    return Response(content, media_type="application/zip", headers=headers)


def _record(seconds: float) -> bytes:
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        record_profile(Path(folder), seconds)
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))
    return content.getvalue()


FEATURE: Final = Feature(
    "native",
    routers=(generate.router, prompts.router),
    admin_routers=(router,),
    fields={"token_ids": "/generate"},
    events=(generate.TokensChunk,),
)
