"""Roost's native endpoints: tokens in and out, templates, aborts, profiles."""

from typing import Final

from ...feature import Feature
from . import abort, debug, generate, render, tokenize
from .response_schemas import TokensChunk

FEATURE: Final = Feature(
    "native",
    routers=(generate.router, tokenize.router, render.router, abort.router),
    admin_routers=(debug.router,),
    fields={"token_ids": "/generate"},
    events=(TokensChunk,),
)
