"""Anthropic's API: `/v1/messages`."""

from typing import Final

from ...feature import Feature
from .errors import anthropic_body
from .response_schemas import MessageEvent
from .routes import router

FEATURE: Final = Feature(
    "anthropic", routers=(router,), events=(MessageEvent,), error_shapes={"/v1/messages": anthropic_body}
)
