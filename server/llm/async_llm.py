"""`AsyncLLM`: a model in this process, for programs with an event loop."""

import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from ...engine import RoostError, StateFileError
from ..schemas.generation_fields import ChatFields, CompletionFields
from ..tenants import tenant
from ..text.tokenizer import TextUnavailableError, Tokenizer
from .arguments import checks_arguments
from .errors import RequestError, python_errors
from .local_model import LocalModel, ModelSettings, load_model_settings
from .outputs import RequestOutput, Score, State, state_of
from .requests import (
    ChatOptions,
    Conversation,
    Prompt,
    chat_fields,
    completion_fields,
    final_output,
    outputs,
    params_of,
    prompt_content,
    scored_fields,
)
from .sampling_params import SamplingParams
from .tokenizer import LLMTokenizer


class AsyncLLM(LocalModel):
    """A model in this process, for programs with an event loop.

    The model is loaded by the first request, or on entering `async with`; all requests must be made on one event loop.
    Requests run concurrently, in the batches in which `roost serve` would run them, and give the same results.

        async with AsyncLLM("demo") as llm:
            async for output in llm.chat([{"role": "user", "content": "Hello!"}]):
                print(output.outputs[0].text)

    Args:
      model: A directory, a name on Hugging Face, `random:2b` or `demo`, as for `roost serve`.
      settings: Settings of `roost serve` under their names.

    Raises:
      RoostError: A setting is wrong, or the model cannot be opened.
    """

    def __init__(self, model: str | Path, **settings: Unpack[ModelSettings]) -> None:
        super().__init__(load_model_settings(model, settings))

    @checks_arguments
    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        from_state: State | None = None,
        **vllm: Any,
    ) -> AsyncGenerator[RequestOutput]:
        """Yields the model's output after a prompt; `SamplingParams.output_kind` decides what an output holds.

        Breaking out of the loop ends the request once the generator is closed.

        Args:
          prompt: Text, to which a BOS is added, or token ids.
          sampling_params: Parameters. By default at most 16 tokens, as in vLLM, but with the temperature and other
            values of `generation_config.json`.
          request_id: Unique id of the request. Random by default.
          from_state: Saved state that the prompt continues, without a BOS between them.
          vllm: Other arguments of vLLM's method, which must be None.

        Raises:
          RequestError: The request is invalid.
          RoostError: The model cannot be loaded, or the request failed.
        """
        (params,) = params_of(sampling_params, 1)
        return self._outputs(completion_fields(prompt, params, from_state), params, request_id)

    @checks_arguments
    def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        from_state: State | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[RequestOutput]:
        """Yields the model's next message of a conversation; see `generate`.

        Args:
          messages: Messages, oldest first.
          sampling_params: Parameters. Without `max_tokens` the model decides when to end, unless the checkpoint sets a
            limit; vLLM's default is 16 tokens.
          request_id: Unique id of the request. Random by default.
          from_state: Saved state that the conversation continues; `messages` are only the messages after the state.
          options: Options of the prompt, such as tools.

        Raises:
          RequestError: The request is invalid.
          RoostError: The model cannot be loaded, or the request failed.
        """
        (params,) = params_of(sampling_params, 1)
        return self._outputs(chat_fields(messages, params, options, from_state), params, request_id)

    @checks_arguments
    async def score(self, context: Prompt, continuation: Prompt) -> Score:
        """Returns the log-likelihood of a continuation after a context; see `LLM.score`."""
        await self.start()
        before, scored = _encode_pair(self.service.model.tokenizer, context, continuation)
        output = await final_output(self.service, scored_fields([*before, *scored]))
        entries = [entry for entry in (output.prompt_logprobs or ())[len(before) :] if entry is not None]
        pairs = [(entry[token_id].logprob, entry) for token_id, entry in zip(scored, entries, strict=True)]
        logprobs = tuple(logprob for logprob, _ in pairs)
        is_greedy = all(logprob >= max(each.logprob for each in entry.values()) for logprob, entry in pairs)
        return Score(math.fsum(logprobs), is_greedy, tuple(scored), logprobs)

    @checks_arguments
    async def save_state(self, request: RequestOutput | str, index: int = 0) -> State:
        """Saves the state of a choice that is running or ended recently; see `LLM.save_state`."""
        self.check_usable()
        request_id = request if isinstance(request, str) else request.request_id
        with python_errors():
            return state_of(await self.service.save_state(request_id, index))

    @checks_arguments
    async def export_state(self, state: State, path: str | Path) -> None:
        """Writes a state into a file; see `LLM.export_state`."""
        self.check_usable()
        with python_errors(), _file_errors(path, "written"):
            service = self.service
            data = await service.export_state(service.states.get(state.id, tenant.get()))
            await service.workers.run(partial(Path(path).write_bytes, data))

    @checks_arguments
    async def load_state(self, path: str | Path) -> State:
        """Saves the state in a file; see `LLM.load_state`."""
        await self.start()
        with python_errors(), _file_errors(path, "read"):
            service = self.service
            return state_of(await service.import_state(await service.workers.run(Path(path).read_bytes)))

    @checks_arguments
    async def delete_state(self, state: State) -> None:
        """Deletes a state; see `LLM.delete_state`."""
        with python_errors():
            self.service.states.delete(state.id, tenant.get())

    async def get_tokenizer(self) -> LLMTokenizer:
        """Returns the model's tokenizer, which needs no weights."""
        return LLMTokenizer(self.service)

    async def start(self) -> None:
        """Loads the weights and compiles, if that has not been done.

        Raises:
          RoostError: The weights do not match the model, or the model does not fit the memory.
          EngineDeadError: The instance was closed, or the process was forked.
        """
        await super().start()

    async def close(self) -> None:
        """Ends unfinished requests with an error and frees the model's memory. Callable more than once."""
        await super().close()

    def __repr__(self) -> str:
        return self.described("AsyncLLM")

    async def __aenter__(self) -> "AsyncLLM":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _outputs(
        self, body: CompletionFields | ChatFields, params: SamplingParams, request_id: str | None
    ) -> AsyncGenerator[RequestOutput]:
        await self.start()
        async with aclosing(outputs(self.service, body, request_id, params.output_kind)) as found:
            async for output in found:
                yield output


class ConfiguredLLM(AsyncLLM):
    """`AsyncLLM` whose settings are loaded, for `LLM` and for commands."""

    __init__ = LocalModel.__init__


@contextmanager
def _file_errors(path: str | Path, done: str) -> Iterator[None]:
    """Adds the name of the file to errors about it."""
    try:
        yield
    except StateFileError as error:
        raise StateFileError(f"{path} {error}") from None
    except OSError as error:
        raise RoostError(f"{path}: cannot be {done} ({error.strerror})") from None


def _encode_pair(tokenizer: Tokenizer, context: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
    """Returns the tokens of both, with BOS in front.

    Texts are encoded together, so that their tokens are the whole text's. White space at the context's end belongs
    to the continuation, whose first token would include it.

    Raises:
      RequestError: One of them has no tokens, or one is text and the other token ids.
    """
    first, second = prompt_content(context, "context", may_be_empty=True), prompt_content(continuation, "continuation")
    if isinstance(first, str) and isinstance(second, str):
        whole = _encode(tokenizer, first + second)
        first = _encode(tokenizer, first.rstrip())
        second = whole[len(first) :]
    if isinstance(first, str) or isinstance(second, str):
        raise RequestError("continuation must be text if context is, and token ids if context is", "continuation")
    before = list(first) if tokenizer.bos_id is None else [tokenizer.bos_id, *first]
    if not second:
        raise RequestError("continuation: the text has no tokens of its own", "continuation")
    if not before:
        raise RequestError("context must have a token: this model has no BOS", "context")
    return before, second


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except TextUnavailableError as error:
        raise RequestError(str(error), "context") from None
