"""Chat backend of a server that speaks OpenAI's API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson

from ...client.http_client import Address, ClientError, HttpClient
from ...client.openai_server import first_model, http_failure
from ...client.sse import EventParser
from ...terminal.failure import CommandError
from .backend import Message

_TIMEOUT_S: Final = 24 * 3600.0
"""Timeout of a whole response: the server has limits of its own, and the user has Ctrl-C."""

_DONE: Final = b"[DONE]"


class ServerBackend:
    """Streams `/v1/chat/completions`.

    Args:
      address: Address of the server.
      api_key: Key of the server; None sends none.
      model: Id of the model; None takes the first that the server lists.
      fields: Sampling fields of every request.
    """

    def __init__(self, address: Address, api_key: str | None, model: str | None, fields: Mapping[str, Any]) -> None:
        self._client = HttpClient(address, api_key, _TIMEOUT_S)
        self._model = model
        self._fields = fields

    async def start(self) -> str:
        """Queries the server's models, also if one is named, to find a wrong key or address early."""
        first = await first_model(self._client)
        self._model = self._model or first
        return self._model

    async def respond(self, messages: Sequence[Message], show: Callable[[str], None]) -> bool:
        body = {"model": self._model, "messages": [asdict(each) for each in messages], "stream": True, **self._fields}
        reader = _StreamReader(show)
        try:
            response = await self._client.post("/v1/chat/completions", body, reader.feed)
        except ClientError as error:
            raise CommandError(f"the server did not answer: {error}") from None
        if response.status != 200:
            raise CommandError(http_failure(response))
        return reader.is_truncated()

    async def close(self) -> None:
        await self._client.close()

    def exit_if_loading(self, status: int) -> None:
        pass


class _StreamReader:
    """Parses a stream of chunks and shows their text."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._events = EventParser()
        self._finish_reason: str | None = None
        self._error: str | None = None

    def feed(self, piece: bytes, now: float) -> None:
        for event in self._events.feed(piece):
            if event != _DONE and self._error is None:
                self._read(event)

    def is_truncated(self) -> bool:
        """Returns whether the token limit ended the response. Call it after the last piece.

        Raises:
          CommandError: The stream contained an error, or ended before the response did.
        """
        if self._error is None and self._finish_reason is None:
            self._error = "the stream ended before the response did"
        if self._error is not None:
            raise CommandError(self._error)
        return self._finish_reason == "length"

    def _read(self, event: bytes) -> None:
        try:
            chunk = orjson.loads(event)
            if "error" in chunk:
                self._error = " ".join(str(chunk["error"]["message"]).split())
                return
            for choice in chunk["choices"]:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                if text := choice.get("delta", {}).get("content"):
                    self._show(str(text))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            self._error = "the server does not stream OpenAI's chunks; see --url"
