"""Chat backend of a model in this process."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager

from ...engine import RoostError, StateFileError
from ..llm.async_llm import ConfiguredLLM
from ..llm.errors import python_errors
from ..llm.local_model import one_request_at_a_time
from ..llm.outputs import State, state_of
from ..llm.sampling_params import RequestOutputKind, SamplingParams
from ..settings import load_settings
from ..tenants import tenant
from ..terminal.exits import INTERRUPTED_STATUS, CommandError
from ..text.chat_format import ChatFormatError, Message
from .chat import ChatTurn, LoadedState, Reply
from .options import ChatSessionOptions


class LocalChat:
    """Generates responses with `AsyncLLM`, whose prefix cache restores the conversation so far.

    Raises:
      ConfigError, RequestError: A setting or a sampling option cannot be used.
      CommandError: The model has no chat template.
    """

    def __init__(self, options: ChatSessionOptions) -> None:
        settings = load_settings({"model": options.model or "demo", **options.settings})
        self._params = SamplingParams(**options.sampling(), output_kind=RequestOutputKind.DELTA)
        self._llm = ConfiguredLLM(one_request_at_a_time(settings))
        self._service = self._llm.service
        self._states: dict[str, State] = {}
        self._num_replies = 0
        try:
            self._service.model.chat_format.encode([Message("user", "")])
        except ChatFormatError as error:
            raise CommandError(f"{self._service.model.id} cannot chat: {error}") from None

    async def start(self) -> str:
        with _command_errors():
            try:
                await self._llm.start()
            except asyncio.CancelledError:
                self._llm.exit_if_loading(INTERRUPTED_STATUS)
                raise
        return self._service.model.id

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        state = None if state_id is None else self._states[state_id]
        reply.id = f"chat-{self._num_replies}"
        self._num_replies += 1
        outputs = self._llm.chat(messages, self._params, reply.id, from_state=state)
        with _command_errors():
            async with aclosing(outputs):
                async for output in outputs:
                    reply.show(output.outputs[0].text)
                    reply.is_truncated = output.outputs[0].finish_reason == "length"

    async def save(self, reply: Reply) -> bytes:
        assert reply.id is not None
        with _command_errors():
            stored = await self._service.save_state(reply.id, 0)
            try:
                return await self._service.export_state(stored)
            finally:
                self._service.states.delete(stored.id, tenant.get())

    async def load(self, data: bytes) -> LoadedState:
        with _command_errors():
            stored = await self._service.import_state(data)
            self._states[stored.id] = state_of(stored)
            return await self._service.described_state(stored)

    async def close(self) -> None:
        await self._llm.close()


@contextmanager
def _command_errors() -> Iterator[None]:
    """Raises errors of the service as errors of the command."""
    try:
        with python_errors():
            yield
    except StateFileError as error:
        raise CommandError(f"the file {error}") from None
    except RoostError as error:
        raise CommandError(str(error)) from None
