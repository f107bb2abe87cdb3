"""Anthropic's message batches: `/v1/messages/batches`."""

from typing import Final

from ...feature import Feature
from .routes import router

FEATURE: Final = Feature("message_batches", requires=("anthropic", "batches"), routers=(router,))
