"""OpenAI's stored chat completions: `GET /v1/chat/completions`."""

from typing import Final

from ...feature import Feature
from .open_stored_chats import open_stored_chats
from .routes import router
from .tables import TABLES

FEATURE: Final = Feature("stored_chats", routers=(router,), tables=TABLES, open=open_stored_chats)
