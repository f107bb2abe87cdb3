"""Chat backend of a model in this process."""

from collections.abc import Sequence
from contextlib import aclosing

from ....engine import FinishReason, RoostError, SavedState, StateFileError, pack_ids
from ...generation.prompts import Prompt, without_end_token
from ...generation.spec import Choice
from ...schemas.body import MAX_MESSAGES
from ...terminal.failure import CommandError
from ...text.chat_template import ChatFormatError, Message
from ..local_model import LocalModel, sampling_params
from ..sampling_options import SamplingOptions
from .backend import ChatTurn, LoadedState, Reply


class LocalChat:
    """Generates responses with a local engine, whose prefix cache restores the conversation so far.

    Raises:
      ConfigError: A sampling option is out of range.
      CommandError: The model has no chat template.
    """

    def __init__(self, local: LocalModel, sampling: SamplingOptions) -> None:
        self._local = local
        self._sampling = sampling
        self._num_sent: dict[str, int] = {}
        self._states: dict[str, SavedState] = {}
        self._prompt([ChatTurn("user", "")], None)
        sampling_params(sampling, self._local.model)

    async def start(self) -> str:
        try:
            await self._local.start()
        except RoostError as error:
            raise CommandError(str(error)) from None
        return self._local.model.id

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        state = None if state_id is None else self._states[state_id]
        choice = Choice(
            0,
            self._prompt(messages, state),
            sampling_params(self._sampling, self._local.model),
            cache_salt=state_id or "",
            state=None if state is None else state.snapshot,
            state_is_imported=state is not None and state.is_imported,
        )
        reply.id = f"chat-{len(self._num_sent)}"
        self._num_sent[reply.id] = 0
        try:
            async with aclosing(self._local.generate(reply.id, choice)) as deltas:
                async for delta in deltas:
                    self._num_sent[reply.id] = delta.num_sent
                    reply.show(delta.text)
                    reply.is_truncated = delta.finish_reason is FinishReason.LENGTH
        except RoostError as error:
            raise CommandError(str(error)) from None

    async def save(self, reply: Reply) -> bytes:
        assert reply.id is not None
        engine = self._local.engine
        try:
            state = await engine.save(f"{reply.id}-0", self._num_sent[reply.id])
        except RoostError as error:
            raise CommandError(str(error)) from None
        return engine.state_format.export(state, self._local.state_key)

    async def load(self, data: bytes) -> LoadedState:
        try:
            state = self._local.engine.state_format.load(data, self._local.state_key)
        except StateFileError as error:
            raise CommandError(f"the file {error}") from None
        state_id = f"state-{len(self._states)}"
        self._states[state_id] = state
        messages = self._local.model.chat_format.decode(state.token_ids, MAX_MESSAGES) or ()
        return LoadedState(state_id, state.num_tokens, [ChatTurn(each.role, each.content) for each in messages])

    async def close(self) -> None:
        await self._local.engine.stop()

    def exit_if_loading(self, status: int) -> None:
        self._local.exit_if_loading(status)

    def _prompt(self, messages: Sequence[ChatTurn], state: SavedState | None) -> Prompt:
        model, turns = self._local.model, [Message(each.role, each.content) for each in messages]
        try:
            if state is None:
                return Prompt(model.chat_format.encode(turns))
            history = without_end_token(state, model.end_token_ids)
            return Prompt(pack_ids(history, model.chat_format.encode_after_reply(turns)))
        except ChatFormatError as error:
            raise CommandError(f"{model.id} cannot chat: {error}") from None
