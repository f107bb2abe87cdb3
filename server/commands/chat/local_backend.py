"""Chat backend of a model in this process."""

from collections.abc import Callable, Sequence
from contextlib import aclosing

from ....engine import FinishReason, RoostError
from ...generation.prompts import Prompt
from ...generation.spec import Choice
from ...terminal.failure import CommandError
from ...text.chat_template import ChatFormatError
from ...text.chat_template import Message as Turn
from ..local_model import LocalModel, sampling_params
from ..sampling_options import SamplingOptions
from .backend import Message


class LocalBackend:
    """Generates responses with a local engine, whose prefix cache restores the conversation so far.

    Raises:
      ConfigError: A sampling option is out of range.
      CommandError: The model has no chat template.
    """

    def __init__(self, local: LocalModel, sampling: SamplingOptions) -> None:
        self._local = local
        self._sampling = sampling
        self._num_responses = 0
        self._prompt([Message("user", "")])
        sampling_params(sampling, self._local.model)

    async def start(self) -> str:
        try:
            await self._local.start()
        except RoostError as error:
            raise CommandError(str(error)) from None
        return self._local.model.id

    async def respond(self, messages: Sequence[Message], show: Callable[[str], None]) -> bool:
        choice = Choice(0, self._prompt(messages), sampling_params(self._sampling, self._local.model))
        self._num_responses += 1
        reason = None
        try:
            async with aclosing(self._local.generate(f"chat-{self._num_responses}", choice)) as deltas:
                async for delta in deltas:
                    show(delta.text)
                    reason = delta.finish_reason
        except RoostError as error:
            raise CommandError(str(error)) from None
        return reason is FinishReason.LENGTH

    async def close(self) -> None:
        await self._local.engine.stop()

    def exit_if_loading(self, status: int) -> None:
        self._local.exit_if_loading(status)

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        try:
            return Prompt(tuple(self._local.model.chat_format.encode([Turn(m.role, m.content) for m in messages])))
        except ChatFormatError as error:
            raise CommandError(f"{self._local.model.id} cannot chat: {error}") from None
