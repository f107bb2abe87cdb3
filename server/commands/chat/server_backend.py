"""Chat backend of a server with OpenAI's API."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any, Final

import orjson

from ...client.http_client import Address, ClientError, HttpClient, Response
from ...client.openai_server import EventParser, first_model, http_failure
from ...features.index import modules_of
from ...terminal.failure import CommandError
from .backend import ChatTurn, LoadedState, Reply

_TIMEOUT_S: Final = 24 * 3600.0
"""Timeout of a whole response: the server has its own limits, and the user can press Ctrl-C."""

_DONE: Final = b"[DONE]"


class ServerChat:
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
        """Requests the server's models, even if one is named, to find a wrong key or address early."""
        first = await first_model(self._client)
        self._model = self._model or first
        return self._model

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        body = {"model": self._model, "messages": [asdict(each) for each in messages], "stream": True, **self._fields}
        reader = _StreamReader(reply)
        await self._exchange(
            self._client.post(
                "/v1/chat/completions", body if state_id is None else {**body, "from_state": state_id}, reader.feed
            )
        )
        reader.end()

    async def save(self, reply: Reply) -> bytes:
        return await _states().save(self._client, self._exchange, reply.id)

    async def load(self, data: bytes) -> LoadedState:
        state = await _states().load(self._client, self._exchange, data)
        messages = [ChatTurn(each["role"], each["content"]) for each in state.get("messages", ())]
        return LoadedState(state["id"], state["tokens"], messages)

    async def close(self) -> None:
        await self._client.close()

    def exit_if_loading(self, status: int) -> None:
        pass

    async def _exchange(self, exchange: Awaitable[Response]) -> Response:
        try:
            response = await exchange
        except ClientError as error:
            raise CommandError(f"the server did not answer: {error}") from None
        if response.status != 200:
            raise CommandError(http_failure(response))
        return response


def _states() -> ModuleType:
    """Returns the client of the feature that saves states.

    Raises:
      CommandError: The feature does not exist.
    """
    found = next(modules_of("client"), None)
    if found is None:
        raise CommandError("this version saves no states")
    return found


class _StreamReader:
    """Parses a stream of chunks into a reply."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._events = EventParser()
        self._finish_reason: str | None = None
        self._error: str | None = None

    def feed(self, piece: bytes, now: float) -> None:
        for event in self._events.feed(piece):
            if event != _DONE and self._error is None:
                self._read(event)

    def end(self) -> None:
        """Ends the reply after the last piece.

        Raises:
          CommandError: The stream contained an error, or ended before the response did.
        """
        if self._error is None and self._finish_reason is None:
            self._error = "the stream ended before the response did"
        if self._error is not None:
            raise CommandError(self._error)
        self._reply.is_truncated = self._finish_reason == "length"

    def _read(self, event: bytes) -> None:
        try:
            chunk = orjson.loads(event)
            if "error" in chunk:
                self._error = " ".join(str(chunk["error"]["message"]).split())
                return
            self._reply.id = chunk.get("id") or self._reply.id
            for choice in chunk["choices"]:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                if text := choice.get("delta", {}).get("content"):
                    self._reply.show(str(text))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            self._error = "the server does not stream OpenAI's chunks; see --url"
