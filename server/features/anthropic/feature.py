"""Anthropic's API: `/v1/messages`."""

from typing import Final

from ...feature import Feature
from .response_schemas import MessageEvent
from .routes import router

FEATURE: Final = Feature("anthropic", routers=(router,), events=(MessageEvent,))
