"""OpenAI's responses and conversations: `/v1/responses` and `/v1/conversations`."""

from typing import Final

from ...feature import Feature
from ...observability.request_metrics import RowCollector
from .builder import ResponseEvent
from .collector import StoreStats
from .conversation_routes import router as conversations
from .open_responses import open_responses
from .response_table import TABLES
from .routes import router

FEATURE: Final = Feature(
    "responses",
    routers=(router, conversations),
    path_hints={"use {root}/v1/responses and {root}/v1/conversations": "/v1/assistants /v1/threads /v1/realtime"},
    events=(ResponseEvent,),
    tables=TABLES,
    open=open_responses,
    unused_collectors=lambda: (RowCollector(StoreStats().rows),),
)
