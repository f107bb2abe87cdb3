"""Backends that respond to a chat: their interface, and the one of a server with OpenAI's API."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any, Final, Protocol, runtime_checkable

import orjson

from ...client.http_client import Address, ClientError, HttpClient, Response
from ...client.openai_server import EventParser, first_model, http_failure
from ...features.index import modules_of
from ...terminal.failure import CommandError
from ..options import ChatSessionOptions


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """Message of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(slots=True)
class Reply:
    """A response that a backend writes.

    Attributes:
      show: Called with each piece of text.
      id: Id under which the backend saves its state; None until the response starts.
      is_truncated: Whether the token limit ended it.
    """

    show: Callable[[str], None] = field(repr=False)
    id: str | None = None
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class LoadedState:
    """A saved state that conversations continue.

    Attributes:
      id: Id of the state, known to the backend that loaded it.
      num_tokens: Number of tokens of its history.
      messages: Messages of its chat; empty if its tokens are not a chat in the model's format.
    """

    id: str
    num_tokens: int
    messages: Sequence[ChatTurn] = ()

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "LoadedState":
        """Returns the state of the object that the API shows."""
        turns = [ChatTurn(each["role"], each["content"]) for each in described.get("messages", ())]
        return cls(described["id"], described["tokens"], turns)


@runtime_checkable
class ChatBackend(Protocol):
    """Responds to a conversation. Its coroutines run in one event loop.

    All of them raise `CommandError`: the server cannot be reached or refuses, the model cannot be loaded, or a file
    holds no state of it.
    """

    async def start(self) -> str:
        """Prepares the backend.

        Returns:
          The model's name.
        """

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        """Responds to the last message. Cancelling it stops the response.

        Args:
          messages: The conversation, or the messages after the state.
          reply: Receives the response.
          state_id: Id of a loaded state that the messages continue.
        """

    async def save(self, reply: Reply) -> bytes:
        """Returns the state after a response, as a file."""

    async def load(self, data: bytes) -> LoadedState:
        """Loads the state in a file."""

    async def close(self) -> None:
        """Releases the backend's resources."""

    def exit_if_loading(self, status: int) -> None:
        """Exits the process if `start` was interrupted while loading, since loading cannot be interrupted otherwise."""


_TIMEOUT_S: Final = 24 * 3600.0
"""Timeout of a whole response: the server has its own limits, and the user can press Ctrl-C."""

_DONE: Final = b"[DONE]"


class ServerChat:
    """Streams `/v1/chat/completions`.

    Args:
      options: Options of the command.
      address: Address of the server.
    """

    def __init__(self, options: ChatSessionOptions, address: Address) -> None:
        self._client = HttpClient(address, options.api_key, _TIMEOUT_S)
        self._model = options.model
        self._fields = options.sampling()

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
        return LoadedState.of(state)

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
