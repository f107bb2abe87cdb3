"""The page to chat on, which asks for the API key itself."""

from typing import Final

from ...feature import Feature
from . import FILES
from .routes import router

FEATURE: Final = Feature("chat_page", routers=(router,), public_paths=frozenset({"/", *FILES}))
