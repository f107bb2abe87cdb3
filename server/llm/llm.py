"""`LLM`: a model in this process, for scripts and notebooks."""

import weakref
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Unpack, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...engine import AsyncEngine, EngineDeadError
from . import states
from .errors import RequestError
from .event_loop import EventLoopThread
from .local_service import STOP_TIMEOUT_S, open_service
from .outputs import RequestOutput
from .prompts import ChatOptions, Conversation, Prompt, as_conversation, conversations_of, params_of, prompts_of
from .requests import GenerationRequest, chat, completion, final_output, outputs, run_all
from .sampling_params import RequestOutputKind, SamplingParams
from .scoring import Score, score
from .settings import ModelSettings
from .states import State

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
        from_state: State | None = None,
    ) -> list[RequestOutput]:
        """Returns what the model generates after each prompt, in the order of the prompts.

        Args:
          prompts: One prompt or several; each is text, to which a BOS is added, or token ids.
          sampling_params: Parameters of all prompts, or of each. By default at most 16 tokens, as in vLLM, but with the
            temperature and the like of `generation_config.json`.
          use_tqdm: Whether a terminal shows a progress bar.
          from_state: Saved state that each prompt continues, without a BOS between them.

        Raises:
          RequestError: A prompt or a parameter is invalid.
          RoostError: A request failed.
        """
        listed = prompts_of(prompts)
        params = params_of(sampling_params, len(listed))
        requests = [completion(prompt, own, state=from_state) for prompt, own in zip(listed, params, strict=True)]
        return self._finish(requests, params, use_tqdm=use_tqdm)

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
        *,
        from_state: State | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[RequestOutput]:
        """Yields what the model generates, as it comes; each output holds what is new.

        Closing the generator, which leaving the loop does in CPython, ends the request.

        Args:
          prompt: Text or token ids as for `generate`, or the messages of a conversation as for `chat`.
          sampling_params: Parameters, with the defaults of `generate` or `chat`.
          from_state: Saved state that a prompt continues; not for a conversation.
          options: Options of a conversation's prompt.

        Raises:
          RequestError: The request is invalid.
          RoostError: The request failed.
        """
        params = sampling_params or SamplingParams()
        conversation = as_conversation(prompt)
        if conversation is None:
            request = completion(cast(Prompt, prompt), params, state=from_state)
        elif from_state is None:
            request = chat(conversation, params, options)
        else:
            raise RequestError("from_state: a conversation cannot continue a state: its prefix is cached anyway")
        with self._open():
            yield from self._loop.iterate(outputs(self._service, request, RequestOutputKind.DELTA))

    def fork(
        self,
        state: State,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continues a state with each prompt on its own; see `generate`. The state stays as it is."""
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, from_state=state)

    def score(self, pairs: Sequence[tuple[Prompt, Prompt]], *, use_tqdm: bool = True) -> list[Score]:
        """Returns the log-likelihood of a continuation after a context, for each pair, as lm-eval defines it.

        A pair of texts is encoded as one text, and white space at the context's end counts for the continuation. A BOS
        is put in front of every pair; `("", text)` scores a whole text. vLLM's method of this name compares embeddings.

        Args:
          pairs: Context and continuation, both text or both token ids.
          use_tqdm: Whether a terminal shows a progress bar.

        Raises:
          RequestError: A pair is invalid.
          RoostError: A request failed.
        """
        service = self._service
        jobs = [partial(score, service, context, continuation) for context, continuation in pairs]
        return self._run_all(jobs, service.limits.max_choices, is_shown=use_tqdm)

    def save_state(self, request: RequestOutput | str, index: int = 0) -> State:
        """Saves the state of a choice that was generated lately, or is being streamed, so that requests continue it.

        Args:
          request: Output of the request, or its id.
          index: Index of the choice.

        Raises:
          RequestError: There is no such choice any more.
          RoostError: There is no room for the state.
        """
        return self._run(states.save(self._service, request, index))

    def export_state(self, state: State, path: str | Path) -> None:
        """Writes a state into a file, which `load_state`, `roost serve` and `roost generate` take.

        Raises:
          RoostError: The state was deleted, or the file cannot be written.
        """
        self._run(states.export(self._service, state, Path(path)))

    def load_state(self, path: str | Path) -> State:
        """Saves the state in a file.

        Raises:
          RoostError: The file cannot be read, is broken, of another model, or not signed with `state_key`.
        """
        return self._run(states.load(self._service, Path(path)))

    def delete_state(self, state: State) -> None:
        """Deletes a state and frees its memory.

        Raises:
          RequestError: The state was deleted before.
        """
        states.delete(self._service, state)

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
        max_running = service.limits.max_choices // max((each.n for each in params), default=1)
        jobs = [partial(final_output, service, request) for request in requests]
        return self._run_all(jobs, max(max_running, 1), is_shown=use_tqdm)

    def _run_all[Result](
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, Result]]], max_running: int, *, is_shown: bool
    ) -> list[Result]:
        with _progress_bar(len(jobs), is_shown=is_shown) as advance:
            return self._run(run_all(jobs, max_running, advance))

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        try:
            with self._open():
                return self._loop.run(work)
        except EngineDeadError:
            work.close()
            raise

    @contextmanager
    def _open(self) -> Iterator[None]:
        """
        Raises:
          EngineDeadError: The instance was closed before or meanwhile.
        """
        if not self._stop.alive:
            raise EngineDeadError("this LLM was closed")
        try:
            yield
        except CancelledError:
            raise EngineDeadError("this LLM was closed") from None


async def _load(engine: AsyncEngine) -> None:
    engine.start()
    await engine.wait_ready()


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
