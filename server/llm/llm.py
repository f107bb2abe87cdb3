"""`LLM`: a model in this process, for scripts and notebooks, on an event loop in a separate thread."""

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, as_completed
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Unpack, cast

from rich.console import Console
from tqdm import tqdm

from ...engine import EngineDeadError
from ..schemas.generation_fields import ChatFields, CompletionFields
from .arguments import checks_arguments
from .async_llm import ConfiguredLLM
from .local_model import ModelSettings, load_model_settings
from .outputs import RequestOutput, Score, State
from .requests import (
    ChatOptions,
    Conversation,
    Prompt,
    as_conversation,
    chat_fields,
    completion_fields,
    conversations_of,
    final_output,
    pairs_of,
    params_of,
    prompts_of,
)
from .sampling_params import RequestOutputKind, SamplingParams
from .tokenizer import LLMTokenizer

_DEFAULTS: Final[Mapping[str, Any]] = {"itl_target_ms": 0.0}
"""Settings with another default than HTTP's: a batch needs throughput, not a short time between two tokens."""


class LLM:
    """A model in this process, for scripts and notebooks; `AsyncLLM` is for programs with an event loop.

        llm = LLM("demo")
        for output in llm.generate(["Once upon a time", "The sea is"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

    The constructor loads the model. Prompts of one call run concurrently, in the batches in which `roost serve` would
    run them, and give the same results. Several threads may use one instance. The end of the process, or of a `with`
    block, stops the engine.

    Args:
      model: A directory, a name on Hugging Face, `random:2b` or `demo`, as for `roost serve`.
      settings: Settings of `roost serve` under their names.

    Raises:
      RoostError: A setting is wrong, or the model cannot be loaded.
    """

    def __init__(self, model: str | Path, **settings: Unpack[ModelSettings]) -> None:
        self._llm = ConfiguredLLM(load_model_settings(model, settings, _DEFAULTS))
        self._loop = EventLoopThread()
        self._stop = weakref.finalize(self, _stop, self._llm, self._loop)
        self._run(self._llm.start())

    @checks_arguments
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        from_state: State | None = None,
        **vllm: Any,
    ) -> list[RequestOutput]:
        """Returns the model's output for each prompt, in the order of the prompts.

        Args:
          prompts: One prompt or several; each is text, to which a BOS is added, or token ids.
          sampling_params: Parameters of all prompts, or a list with one for each. By default at most 16 tokens, as in
            vLLM, but with the temperature and other values of `generation_config.json`.
          use_tqdm: Whether a terminal or a notebook shows a progress bar.
          from_state: Saved state that each prompt continues, without a BOS between them.
          vllm: Other arguments of vLLM's method, which must be None.

        Raises:
          RequestError: A prompt or a parameter is invalid.
          RoostError: A request failed.
        """
        listed = prompts_of(prompts)
        params = params_of(sampling_params, len(listed))
        bodies = [completion_fields(prompt, own, from_state) for prompt, own in zip(listed, params, strict=True)]
        return self._finish(bodies, use_tqdm=use_tqdm)

    @checks_arguments
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        from_state: State | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Returns the model's next message of each conversation, in the order of the conversations.

        Args:
          messages: Messages of a conversation, oldest first, or several conversations.
          sampling_params: Parameters of all conversations, or a list with one for each. Without `max_tokens` the model
            decides when to end, unless the checkpoint sets a limit; vLLM's default is 16 tokens.
          use_tqdm: Whether a terminal or a notebook shows a progress bar.
          from_state: Saved state that each conversation continues; `messages` are only the messages after the state.
          options: Options of the prompts, such as tools.

        Raises:
          RequestError: A message or a parameter is invalid.
          RoostError: A request failed.
        """
        listed = conversations_of(messages)
        params = params_of(sampling_params, len(listed))
        bodies = [chat_fields(each, own, options, from_state) for each, own in zip(listed, params, strict=True)]
        return self._finish(bodies, use_tqdm=use_tqdm)

    @checks_arguments
    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        from_state: State | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[RequestOutput]:
        """Yields the model's output as it is generated. Each item holds only the new text and tokens.

        Closing the generator, which leaving the loop does in CPython, ends the request.

        Args:
          prompt: Text or token ids as for `generate`, or the messages of a conversation as for `chat`.
          sampling_params: Parameters, with the defaults of `generate` or `chat`.
          from_state: Saved state that the prompt or the conversation continues.
          options: Options of a conversation's prompt.

        Raises:
          RequestError: The request is invalid.
          RoostError: The request failed.
        """
        (given,) = params_of(sampling_params, 1)
        params = replace(given, output_kind=RequestOutputKind.DELTA)
        conversation = as_conversation(prompt)
        if conversation is None:
            outputs = self._llm.generate(cast(Prompt, prompt), params, from_state=from_state, **options)
        else:
            outputs = self._llm.chat(conversation, params, from_state=from_state, **options)
        with self._open():
            yield from self._loop.iterate(outputs)

    @checks_arguments
    def fork(
        self,
        state: State,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continues a state with each prompt separately; see `generate`. The state is unchanged."""
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, from_state=state)

    @checks_arguments
    def score(self, pairs: Sequence[tuple[Prompt, Prompt]], *, use_tqdm: bool = True) -> list[Score]:
        """Returns the log-likelihood of a continuation after a context, for each pair, as lm-eval defines it.

        A pair of texts is encoded as one text, and white space at the context's end counts for the continuation. A BOS
        is put in front of every pair; `("", text)` scores a whole text. vLLM's method of the same name compares
        embeddings.

        Args:
          pairs: Context and continuation, both text or both token ids.
          use_tqdm: Whether a terminal or a notebook shows a progress bar.

        Raises:
          RequestError: A pair is invalid.
          RoostError: A request failed.
        """
        jobs = [partial(self._llm.score, context, continuation) for context, continuation in pairs_of(pairs)]
        return self._run_all(jobs, self._llm.service.limits.max_choices, is_shown=use_tqdm)

    @checks_arguments
    def save_state(self, request: RequestOutput | str, index: int = 0) -> State:
        """Saves the state of a recent or streaming choice, so that later requests can continue it.

        Args:
          request: Output of the request, or its id.
          index: Index of the choice.

        Raises:
          RequestError: The choice does not exist any more.
          RoostError: The state has no room.
        """
        return self._run(self._llm.save_state(request, index))

    @checks_arguments
    def export_state(self, state: State, path: str | Path) -> None:
        """Writes a state into a file, which `load_state`, `roost serve` and `roost generate` accept.

        Raises:
          RoostError: The state was deleted, or the file cannot be written.
        """
        self._run(self._llm.export_state(state, path))

    @checks_arguments
    def load_state(self, path: str | Path) -> State:
        """Saves the state in a file.

        Raises:
          RoostError: The file cannot be read, is broken, belongs to another model, or is not signed with `state_key`.
        """
        return self._run(self._llm.load_state(path))

    @checks_arguments
    def delete_state(self, state: State) -> None:
        """Deletes a state and frees its memory.

        Raises:
          RequestError: The state was deleted before.
        """
        self._run(self._llm.delete_state(state))

    def get_tokenizer(self) -> LLMTokenizer:
        """Returns the model's tokenizer."""
        return LLMTokenizer(self._llm.service)

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns the parameters that the checkpoint's `generation_config.json` sets, which are also the defaults."""
        defaults = self._llm.service.model.defaults
        return SamplingParams(**defaults.sampling, max_tokens=defaults.max_tokens)

    def __repr__(self) -> str:
        return self._llm.described("LLM")

    def close(self) -> None:
        """Ends unfinished requests with an error and frees the model's memory. Callable more than once."""
        self._stop()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self, bodies: Sequence[CompletionFields | ChatFields], *, use_tqdm: bool) -> list[RequestOutput]:
        service = self._llm.service
        max_running = service.limits.max_choices // max((body.n for body in bodies), default=1)
        jobs = [partial(final_output, service, body) for body in bodies]
        return self._run_all(jobs, max(max_running, 1), is_shown=use_tqdm)

    def _run_all[Result](
        self, jobs: Sequence[Callable[[], Coroutine[Any, Any, Result]]], max_running: int, *, is_shown: bool
    ) -> list[Result]:
        """Returns the results of jobs in their order. A terminal or a notebook shows how many have ended."""
        console, running = Console(stderr=True), asyncio.Semaphore(max_running)
        is_shown = is_shown and bool(jobs) and (console.is_terminal or console.is_jupyter)

        async def run(job: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
            async with running:
                return await job()

        with self._open(), tqdm(total=len(jobs), desc="prompts", disable=not is_shown) as bar:
            futures = [self._loop.submit(run(job)) for job in jobs]
            try:
                for ended in as_completed(futures):
                    ended.result()
                    bar.update()  # in this thread, since a notebook shows it in the cell that began the thread
            finally:
                for future in futures:
                    future.cancel()
        return [future.result() for future in futures]

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        try:
            with self._open():
                return self._loop.run(work)
        except EngineDeadError:
            work.close()
            raise

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Checks that the instance is open when the `with` block begins and ends.

        Raises:
          EngineDeadError: The instance was closed before or during the block, or the process was forked.
        """
        self._llm.check_usable()
        try:
            yield
        except CancelledError:
            self._llm.check_usable()  # raises, since only closing cancels
            raise


class _End:
    """Marker after the last item."""


class EventLoopThread:
    """Runs coroutines on an event loop in a separate thread."""

    def __init__(self) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="roost-loop", daemon=True)
        self._thread.start()
        self._loop, self._stopped = self._started.result()

    def submit[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine, and returns its result to come."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a coroutine, which is cancelled if the caller is interrupted.

        Raises:
          Exception: Any error of the coroutine.
          CancelledError: The loop was stopped.
        """
        future = self.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate[T](self, items: AsyncGenerator[T]) -> Generator[T]:
        """Yields the items of an asynchronous generator, which is closed at the end.

        A task reads ahead, since a task that is cancelled with the loop closes the generator in order.

        Raises:
          Exception: Any error of the generator.
          CancelledError: The loop was stopped.
        """
        found: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

        async def read() -> None:
            async with aclosing(items):
                async for item in items:
                    found.put(item)

        reading = self.submit(read())
        reading.add_done_callback(lambda _: found.put(_End()))
        try:
            while not isinstance(item := found.get(), _End):
                yield item
            reading.result()
        finally:
            reading.cancel()

    def stop(self) -> None:
        """Cancels running coroutines, and ends the thread. Callable more than once."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()


def _stop(model: ConfiguredLLM, loop: EventLoopThread) -> None:
    model.join()
    loop.stop()
