"""What the routes work with: a model, the engine that runs it, and the way from choices to a response."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from uuid import uuid4

from fastapi import Depends, Request, Response
from starlette.types import Receive

from ...engine import AsyncEngine, EngineDeadError, QueueFullError, RequestTimeoutError, SamplingParams
from .. import request_warnings
from ..api.common.responding import AnswerWriter
from ..api.common.schema_base import Body, TermsFields
from ..api.common.sliced_response import SlicedResponse
from ..api.common.sse import large_to_json, to_json
from ..api.common.streaming import EventStream, first_delta, stream_events
from ..api.common.unknown_fields import FieldCheck
from ..api.openai.schemas import GenerationBody
from ..errors import bad_value, grammars_busy, model_loading, not_generating, prompt_too_long, unknown_model
from ..http_requests import until_disconnect
from ..observability.logging import request_id
from ..observability.metrics import Metrics
from ..tenancy.memory import is_large, keep
from ..tenancy.open_requests import OpenRequests
from ..tenancy.tenant import tenant
from ..tenancy.tenant_locks import TenantLocks
from ..tenancy.workers import Workers
from ..text.grammar import Grammar, GrammarBusyError, GrammarCompiler, GrammarError
from ..text.served_model import ServedModel
from ..text.stop_strings import StopStringsBuilder
from .answer_size import answer_size
from .background import Background
from .choices import Choice, Terms
from .delta import Delta
from .generation import Generation, collect
from .output_constraint import Wish
from .prompts import Prompt, PromptEncoder
from .response_store import ResponseStore
from .running import RunningGenerations
from .sent_responses import SentResponses
from .state_files import StateFiles
from .state_store import StateStore, StoredState

_LONGEST_WAIT_S: Final = 3600.0
"""Of an event loop's timer, which cannot be endless; no grammar takes so long."""

_MANY_VALUES: Final = 1024
"""Tokens and alternatives of an answer that take some milliseconds to write."""

PATIENCE_S: Final = 1.0
"""How long a stream waits for its first token before it says 200: a full queue is known by then."""


@dataclass(frozen=True, slots=True)
class Service:
    """
    Attributes:
      max_prompt_tokens: the longest prompt; None takes any that its body has room for.
      max_choices: the most that one request may ask for; more could never be admitted together.
      keep_alive_s: silence after which a stream gives a sign of life.
      proof_s: how long the engine may take to prove that it generates.
      request_timeout_s: how long any request may take.
      salt_by_key: whether requests of different tenants share no remembered states.
      state_key: signs states that are exported, and is demanded of those that are imported.
      saves: lets each tenant save one state at a time, as each takes a part of an engine step.
      files: memory for state files that are being sent or received.
      sent: what clients have received of answers.
      workers: threads for what takes long.
    """

    engine: AsyncEngine
    model: ServedModel
    metrics: Metrics
    prompts: PromptEncoder
    grammars: GrammarCompiler
    max_choices: int = 256
    max_prompt_tokens: int | None = None
    keep_alive_s: float = 15.0
    proof_s: float = 10.0
    request_timeout_s: float = math.inf
    salt_by_key: bool = False
    check_fields: FieldCheck = field(default_factory=FieldCheck)
    running: RunningGenerations = field(default_factory=RunningGenerations)
    responses: ResponseStore = field(default_factory=ResponseStore)
    background: Background = field(default_factory=Background)
    state_key: bytes | None = field(default=None, repr=False)
    states: StateStore = field(default_factory=StateStore)
    saves: TenantLocks = field(default_factory=TenantLocks)
    files: StateFiles = field(default_factory=StateFiles)
    sent: SentResponses = field(default_factory=SentResponses)
    stop_strings: StopStringsBuilder = field(default_factory=StopStringsBuilder)
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    workers: Workers = field(default_factory=Workers)

    @property
    def is_busy(self) -> bool:
        """Whether anybody still gets an answer, or one is made that is fetched later."""
        return self.open_requests.count > 0 or self.background.is_busy

    def check(self, body: Body) -> None:
        """
        Raises:
          ApiError: the model is not this one, or a field asks for what is not there yet.
        """
        if body.model is not None and body.model != self.model.id:
            raise unknown_model(body.model)
        self.check_fields(body)

    def check_alive(self) -> None:
        """
        Raises:
          EngineDeadError: no request will ever be served again.
        """
        if self.engine.error is not None:
            raise EngineDeadError("the engine has stopped")

    async def check_generates(self) -> None:
        """Makes one token, as for any other request.

        Raises:
          ApiError: the queue is full, or the token does not come in time.
          EngineDeadError: the engine died over it.
        """
        prompt = Prompt((self.model.tokenizer.bos_id or 0,))
        choice = Choice(0, prompt, SamplingParams(max_tokens=1))
        try:
            async with asyncio.timeout(self.proof_s), self.generation(f"health-{uuid4().hex}", [choice]) as generation:
                await collect(generation)
        except TimeoutError:
            raise not_generating(f"no token came within {self.proof_s:g} s") from None
        except QueueFullError as error:
            raise not_generating(str(error)) from None

    def check_count(self, num_prompts: int, num_candidates: int = 1) -> None:
        """
        Raises:
          ApiError: these are too many choices for one request.
        """
        if num_prompts * num_candidates > self.max_choices:
            param = "prompt" if num_prompts > 1 else "n"
            raise bad_value(param, f"one request may ask for {self.max_choices} choices (prompts times n)")

    async def prepare[T](self, work: Callable[[], T]) -> T:
        """Returns what `work` makes of the current request; a large one is for a worker thread."""
        return await self.workers.run(work) if is_large() else work()

    async def json_answer(self, make: Callable[[], Any], *, num_values: int = 0) -> Response:
        """A response whose content `make` returns; a large one is made on a worker thread.

        Args:
          num_values: number of tokens and alternatives that were generated for it.
        """
        if is_large() or num_values >= _MANY_VALUES:
            return SlicedResponse(await self.workers.run(lambda: large_to_json(make())))
        return json_response(make())

    async def choices(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        wish: Wish | None,
        begun: StoredState | None = None,
        *,
        receive: Receive,
    ) -> list[Choice]:
        """Every prompt with every one of the params, prompt by prompt.

        Args:
          wish: what all of them have to keep to.
          begun: with what all of the prompts begin.
          receive: tells when the client hangs up; nothing is compiled for one that has.

        Raises:
          ApiError: these are too many or too long, or the wish cannot be fulfilled.
          ClientDisconnect: the client has hung up.
          RequestTimeoutError: to find that out took too long.
        """
        terms = self._terms(body)
        self.check_count(len(prompts), len(params))
        longest = max(len(prompt.token_ids) for prompt in prompts)
        if self.max_prompt_tokens is not None and longest > self.max_prompt_tokens:
            raise prompt_too_long(longest, self.max_prompt_tokens)
        size = await self.prepare(lambda: answer_size(body, prompts, params, self.model.tokenizer))
        keep(size.prompt_bytes)
        stop = await self.stop_strings.build(body.stop_strings)
        grammar = None if wish is None else await until_disconnect(receive, self._grammar(body, wish, terms.deadline))
        pairs = [(prompt, each) for prompt in prompts for each in size.params]
        return [
            Choice(
                index,
                prompt,
                each,
                stop,
                body.include_stop_str_in_output,
                fork_of=index - index % len(params) if index % len(params) else None,
                grammar=grammar,
                may_call=body.may_call,
                terms=terms,
                cache_salt=self._salt(body) if begun is None else begun.state.salt,
                state=None if begun is None else begun.state.snapshot,
                state_is_imported=begun is not None and begun.state.is_imported,
                sends_ids=body.sends_ids,
            )
            for index, (prompt, each) in enumerate(pairs)
        ]

    def begun(self, from_state: str | None) -> StoredState | None:
        """The state that a request goes on from.

        Raises:
          ApiError: there is none of that id.
        """
        return None if from_state is None else self.states.get(from_state, tenant.get())

    def _salt(self, body: GenerationBody) -> str:
        return f"{tenant.get()}\n{body.cache_salt}" if self.salt_by_key else body.cache_salt

    def _terms(self, body: TermsFields) -> Terms:
        """From now on; the operator's limit holds whatever the client wishes."""
        now = time.monotonic()
        patience = math.inf if body.queue_timeout is None else body.queue_timeout
        seconds = self.request_timeout_s if body.timeout is None else min(body.timeout, self.request_timeout_s)
        return Terms(tenant.get(), priority=body.priority, start_by=now + patience, deadline=now + seconds)

    async def _grammar(self, body: GenerationBody, wish: Wish, deadline: float) -> Grammar:
        """An answer ends where its grammar does, so nothing else may ask it to go on."""
        for name, asked in (("ignore_eos", body.ignore_eos), ("min_tokens", body.min_tokens)):
            if asked:
                raise bad_value(name, f"{name} cannot be combined with {wish.param}, whose grammar ends the answer")
        try:
            async with asyncio.timeout(min(deadline - time.monotonic(), _LONGEST_WAIT_S)):
                return await self._compiled(wish)
        except GrammarError as error:
            raise wish.refused(error) from None
        except GrammarBusyError as error:
            raise grammars_busy(f"{wish.param}: {error}") from None
        except TimeoutError:
            raise RequestTimeoutError(f"{wish.param} took longer to compile than the request had time") from None

    async def _compiled(self, wish: Wish) -> Grammar:
        """What was asked for, or else the first fallback that can be compiled, which is reported.

        Raises:
          GrammarError: see `GrammarCompiler.compile`; of what was asked for.
        """
        try:
            return await self.grammars.compile(wish.spec)
        except GrammarError:
            for fallback in wish.fallbacks:
                with suppress(GrammarError):
                    grammar = await self.grammars.compile(fallback.spec)
                    request_warnings.warn(fallback.warning)
                    return grammar
            raise

    async def respond(
        self,
        request: Request,
        answer_id: str,
        choices: Sequence[Choice],
        writer: AnswerWriter,
        *,
        stream: bool,
        report_warnings: bool = False,
    ) -> Response:
        """Runs the choices for as long as the client is there.

        Args:
          answer_id: under which clients, and the engine, know this.
          report_warnings: whether the body says what was dropped or ignored of the request.

        Raises:
          Exception: the engine refused a choice or failed, and no part of an answer has been sent.
        """
        async with AsyncExitStack() as resources:
            generation = await resources.enter_async_context(self.generation(answer_id, choices))
            report = {"warnings": request_warnings.current()} if report_warnings else {}
            if not stream:
                whole = await until_disconnect(request.receive, collect(generation))
                generation.sent.reorder(writer.order(whole))
                num_values = sum(_num_values(choice) for choice in whole)
                answer = self.json_answer(lambda: {**writer.whole(whole), **report}, num_values=num_values)
                response = await until_disconnect(request.receive, answer)
                writer.finish()
                return response
            first = await until_disconnect(request.receive, first_delta(generation, PATIENCE_S))
            events = stream_events(generation, first, writer, self.keep_alive_s, self.workers, report)
            return EventStream(events, resources.pop_all())  # from here on it is the response that closes them

    @asynccontextmanager
    async def generation(self, answer_id: str, choices: Sequence[Choice]) -> AsyncGenerator[Generation]:
        """The choices under way, until the end of the `with` block; meanwhile they can be aborted by id."""
        firsts = [choice for choice in choices if choice.fork_of is None]
        for first in firsts:
            self.metrics.track_prompt(f"{answer_id}-{first.index}", len(choices) // len(firsts))
        with self.sent.track(answer_id, len(choices)) as sent:
            tokenizer = self.model.tokenizer
            started = Generation.start(self.engine, tokenizer, self.metrics, answer_id, choices, sent)
            with closing(started) as generation, self.running.track(generation, answer_id, request_id.get()):
                yield generation


def _num_values(choice: Delta) -> int:
    """Number of tokens of a choice, and of their alternatives."""
    return len(choice.token_ids) + sum(len(entry.top) + len(entry.named) for entry in choice.logprobs)


def json_response(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _ready_service(request: Request) -> Service:
    service = await _service(request)
    service.check_alive()
    if not service.engine.is_ready:
        raise model_loading()
    return service


AnyService = Annotated[Service, Depends(_service)]
"""For routes that answer in every state."""

ReadyService = Annotated[Service, Depends(_ready_service)]
"""For routes that need the model: 503 while it loads and when it is dead."""
