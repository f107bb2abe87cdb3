"""Descriptions of responses in `/openapi.json` that FastAPI cannot derive."""

from typing import Any, Final

from ...error_responses import AnthropicErrorBody
from ...errors import ErrorBody

type Responses = dict[int | str, dict[str, Any]]

ERRORS: Final[Responses] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
ANTHROPIC_ERRORS: Final[Responses] = {"4XX": {"model": AnthropicErrorBody}, "5XX": {"model": AnthropicErrorBody}}

STREAMABLE: Final[Responses] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
"""A JSON object or a stream of events."""

PLAIN_TEXT: Final[Responses] = {200: {"content": {"text/plain": {}}}}
