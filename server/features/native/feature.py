"""Roost's native endpoints, and `POST /debug/profile`: device profiles, for operators with an admin key."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from ....engine import record_profile
from ...feature import Feature
from ...http.routes import ReadyService
from . import generate, prompts

router = APIRouter()

_ONE: Final = asyncio.Lock()
"""JAX records one profile at a time; another one waits."""


@router.post("/debug/profile", response_class=Response, responses={200: {"content": {"application/zip": {}}}})
async def profile(service: ReadyService, seconds: Annotated[float, Query(gt=0, le=60)] = 2.0) -> Response:
    """Records a profile of the host and the device, and returns files for xprof and Perfetto, zipped."""
    async with _ONE:
        content = await asyncio.to_thread(_record, seconds)
    headers = {"content-disposition": 'attachment; filename="profile.zip"'}
    return Response(content, media_type="application/zip", headers=headers)


def _record(seconds: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        record_profile(Path(folder, "profile"), seconds)
        return Path(shutil.make_archive(f"{folder}/profile", "zip", f"{folder}/profile")).read_bytes()


FEATURE: Final = Feature(
    "native",
    routers=(generate.router, prompts.router),
    admin_routers=(router,),
    path_hints={"use {root}/generate": "/inference/v1/generate", "use {root}/tokenize": "/chat_tokenize /v1/tokenize"},
    events=(generate.TokensChunk,),
)
