"""`LLM`: a model in this process, for scripts and notebooks."""

import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Unpack, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...engine import AsyncEngine, EngineDeadError
from .bodies import ChatOptions, Conversation, Prompt, as_conversation, conversations_of, params_of, prompts_of
from .event_loop import EventLoopThread
from .local_service import STOP_TIMEOUT_S, open_service
from .outputs import RequestOutput
from .requests import GenerationRequest, chat, completion, final_outputs, outputs
from .sampling_params import RequestOutputKind, SamplingParams
from .settings import ModelSettings

_DEFAULTS: Final[Mapping[str, Any]] = {"itl_target_ms": 0.0}
"""Settings with another default than HTTP's: a batch needs throughput, not a short time between two tokens."""


class LLM:
    """A model in this process, for scripts and notebooks; `AsyncLLM` is for programs with an event loop.

        llm = LLM("demo")
        for output in llm.generate(["Once upon a time", "The sea is"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

    The constructor loads the model. Prompts of one call run side by side, in the batches in which `roost serve` would
    run them, and give the same results. Several threads may use one instance. The end of the process, or of a `with`
    block, stops the engine.

    Args:
      model: A directory, a name on Hugging Face, `random:2b` or `demo`: whatever `roost serve` takes.
      settings: Settings of `roost serve` under their names.

    Raises:
      RoostError: A setting is wrong, or the model cannot be loaded.
    """

    def __init__(self, model: str, **settings: Unpack[ModelSettings]) -> None:
        self._service = open_service(model, settings, _DEFAULTS)
        self._loop = EventLoopThread()
        self._stop = weakref.finalize(self, _stop, self._service.engine, self._loop)
        self._run(_load(self._service.engine))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Returns what the model generates after each prompt, in the order of the prompts.

        Args:
          prompts: One prompt or several; each is text, to which a BOS is added, or token ids.
          sampling_params: Parameters of all prompts, or of each. By default at most 16 tokens, as in vLLM, but with the
            temperature and the like of `generation_config.json`.
          use_tqdm: Whether a terminal shows a progress bar.

        Raises:
          RequestError: A prompt or a parameter is invalid.
          RoostError: A request failed.
        """
        listed = prompts_of(prompts)
        params = params_of(sampling_params, len(listed))
        return self._finish(list(map(completion, listed, params)), params, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Returns the model's next message of each conversation, in the order of the conversations.

        Args:
          messages: Messages of a conversation, oldest first, or several conversations.
          sampling_params: Parameters of all conversations, or of each. Without `max_tokens` the model decides when to
            end, unless the checkpoint sets a limit; vLLM's default is 16 tokens.
          use_tqdm: Whether a terminal shows a progress bar.
          options: Options of the prompts, such as tools.

        Raises:
          RequestError: A message or a parameter is invalid.
          RoostError: A request failed.
        """
        listed = conversations_of(messages)
        params = params_of(sampling_params, len(listed))
        requests = [chat(each, own, options) for each, own in zip(listed, params, strict=True)]
        return self._finish(requests, params, use_tqdm=use_tqdm)

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[RequestOutput]:
        """Yields what the model generates, as it comes; each output holds what is new.

        Closing the generator, which leaving the loop does in CPython, ends the request.

        Args:
          prompt: Text or token ids as for `generate`, or the messages of a conversation as for `chat`.
          sampling_params: Parameters, with the defaults of `generate` or `chat`.
          options: Options of a conversation's prompt.

        Raises:
          RequestError: The request is invalid.
          RoostError: The request failed.
        """
        params = sampling_params or SamplingParams()
        conversation = as_conversation(prompt)
        if conversation is not None:
            request = chat(conversation, params, options)
        else:
            request = completion(cast(Prompt, prompt), params)
        found = outputs(self._service, request, RequestOutputKind.DELTA)
        try:
            while (output := self._run(_next(found))) is not None:
                yield output
        finally:
            if self._stop.alive:
                self._run(found.aclose())

    def close(self) -> None:
        """Ends unfinished requests with an error and frees the model's memory. Callable more than once."""
        self._stop()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(
        self, requests: Sequence[GenerationRequest], params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        service = self._service
        max_running = service.max_choices // max((each.n for each in params), default=1)
        with _progress_bar(len(requests), is_shown=use_tqdm) as advance:
            return self._run(final_outputs(service, requests, max(max_running, 1), advance))

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        if not self._stop.alive:
            work.close()
            raise EngineDeadError("this LLM was closed")
        return self._loop.run(work)


async def _load(engine: AsyncEngine) -> None:
    engine.start()
    await engine.wait_ready()


async def _next(outputs: AsyncGenerator[RequestOutput]) -> RequestOutput | None:
    return await anext(outputs, None)


def _stop(engine: AsyncEngine, loop: EventLoopThread) -> None:
    engine.join(STOP_TIMEOUT_S)
    loop.stop()


@contextmanager
def _progress_bar(total: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """Shows a bar on stderr if it is a terminal; yields a function that advances it by one, on any thread."""
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (is_shown and console.is_terminal)) as progress:
        bar = progress.add_task("", total=total)
        yield lambda: progress.advance(bar)
