"""Anthropic's API: `/v1/messages`."""

from typing import Final

from ...feature import Feature
from ...http.error_responses import ErrorShape
from .errors import anthropic_body
from .response_schemas import MessageEvent
from .routes import router

FEATURE: Final = Feature(
    "anthropic",
    routers=(router,),
    events=(MessageEvent,),
    error_shape=ErrorShape("/v1/messages", "anthropic-version", anthropic_body),
)
