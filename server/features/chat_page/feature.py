"""The chat page, which prompts for the API key."""

from typing import Final

from ...feature import Feature
from . import FILES
from .routes import router

FEATURE: Final = Feature("chat_page", routers=(router,), public_paths=frozenset({"/", "/favicon.ico", *FILES}))
