"""The service behind every API: the way from a spec to a generation, its limits, responses by id, and saved states."""

import asyncio
import math
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

from ...engine import (
    MAX_TOKENS,
    AsyncEngine,
    EngineStoppedError,
    QueueFullError,
    Request,
    RequestTimeoutError,
    SamplingParams,
    SavedState,
    TenantStore,
    UnknownRequestError,
    pack_ids,
)
from ..constraints.grammar_compiler import GrammarCompiler
from ..constraints.grammar_process import Grammar
from ..constraints.grammar_spec import GrammarBusyError, GrammarError
from ..constraints.output_constraint import OutputConstraint
from ..errors import kinds
from ..errors.request_errors import ApiError, bad_value, warn
from ..observability.logging import request_id
from ..observability.metrics import Metrics
from ..schemas.body import MAX_MESSAGES
from ..tenants import Workers, tenant
from ..text.served_model import ServedModel
from .admission import Admissions, PreemptibleAdmission, admission
from .generation import MAX_UNREAD_BYTES, Generation, SentResponse, collect
from .prompts import Prompt, PromptEncoder
from .spec import GenerationSpec, PromptCopies, response_size
from .state_store import Prefix, StateStore, StoredState

MAX_RESPONSES: Final = 1000
"""Maximum number of ended responses whose records are kept."""

MAX_BYTES: Final = 4 * 2**20
"""Maximum memory of the records of ended responses."""

_OBJECT_BYTES: Final = 1024
"""Memory of a record in addition to its arrays: the objects, the id, and the dictionary entries."""

_LONGEST_WAIT_S: Final = 3600.0
"""Maximum seconds for compiling a grammar, since a timer of the event loop must be finite."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that apply to every request.

    Attributes:
      max_choices: Maximum number of choices of one request; more could never be admitted together.
      max_choices_tokens: Maximum prompt tokens of all choices of a request that needs more slots than exist; more could
        never wait together. None sets no limit.
      max_prompt_tokens: Maximum tokens of a prompt; None leaves only the limit on the body.
      keep_alive_s: Seconds of silence after which a stream sends a keep-alive.
      proof_s: Timeout of a health check's generation, in seconds.
      request_timeout_s: Maximum time of any request, in seconds.
      max_unread_bytes: Maximum estimated memory of a choice's deltas that a slow reader leaves unread.
    """

    max_choices: int = 256
    max_choices_tokens: int | None = None
    max_prompt_tokens: int | None = None
    keep_alive_s: float = 15.0
    proof_s: float = 10.0
    request_timeout_s: float = math.inf
    max_unread_bytes: int = MAX_UNREAD_BYTES


type _Key = tuple[str, str]
"""Tenant and id."""


@dataclass(slots=True)
class TrackedResponses:
    """Running responses, and records of recently ended ones. Each tenant sees only its own.

    A running response has two ids: its own, and the id of its HTTP request. Clients may choose the latter, so several
    responses may share one.
    """

    _running: defaultdict[_Key, set[Generation]] = field(default_factory=lambda: defaultdict(set))
    _sent: dict[_Key, SentResponse] = field(default_factory=dict)
    _ended: TenantStore[_Key, SentResponse] = field(default_factory=lambda: TenantStore(MAX_RESPONSES, MAX_BYTES))

    @property
    def num_bytes(self) -> int:
        """Memory that records of ended responses take."""
        return self._ended.num_bytes

    @contextmanager
    def track(self, generation: Generation, response_id: str, request_id: str) -> Iterator[None]:
        """Makes a generation findable by its ids while the `with` block runs, and its sent tokens for some time after
        it.
        """
        key = tenant.get(), response_id
        keys = {key, (key[0], request_id)}
        self._sent[key] = generation.sent
        for each in keys:
            self._running[each].add(generation)
        try:
            yield
        finally:
            for each in keys:
                self._running[each].discard(generation)
                if not self._running[each]:
                    del self._running[each]
            if self._sent.get(key) is generation.sent:  # otherwise a response that was given up is running again
                del self._sent[key]
            sent = generation.sent
            num_bytes = sys.getsizeof(sent.num_tokens) + sys.getsizeof(sent.order) + _OBJECT_BYTES
            self._ended.put(key, key[0], sent, num_bytes)

    def abort(self, any_id: str) -> int:
        """Aborts all of the tenant's generations with an id, and returns the number of choices that were unfinished."""
        return sum(generation.abort() for generation in self._running.get((tenant.get(), any_id), ()))

    def find(self, response_id: str, index: int) -> tuple[str, int] | None:
        """Returns the id of the engine's request for a choice, by its index in a response, and the number of its tokens
        whose text was sent whole; None if the choice does not exist.
        """
        key = tenant.get(), response_id
        sent = self._sent.get(key) or self._ended.get(key)
        if sent is None or index >= len(sent.order):
            return None
        place = sent.order[index]
        return engine_request_id(response_id, place), sent.num_tokens[place]


@dataclass(slots=True)
class OpenRequests:
    """Number of open requests, and the progress of shutdown.

    Shutdown has two steps, so that load balancers stop routing here before requests are refused: first readiness fails,
    then new requests are refused.

    Attributes:
      is_draining: Whether shutdown has begun. Readiness fails then.
      is_accepting: Whether new requests are accepted.
      count: Number of open requests.
    """

    is_draining: bool = False
    is_accepting: bool = True
    count: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """The model, the engine and the stores that the routes of every API use.

    Attributes:
      limits: Limits of every request.
      salt_by_key: Whether each tenant has separate prefix cache entries.
      state_key: Key that signs exported states and verifies imported ones.
      is_shared_without_keys: Whether different people are the same tenant, since the server has no API keys.
      tracked: Running responses, and the tokens that clients have received.
      admissions: Admissions of all work, with the threads for long work.
      loading: Returns the progress of loading the model as text; empty if it is unknown.
    """

    engine: AsyncEngine
    model: ServedModel
    metrics: Metrics
    prompts: PromptEncoder
    grammars: GrammarCompiler
    limits: Limits = field(default_factory=Limits)
    salt_by_key: bool = False
    state_key: bytes | None = field(default=None, repr=False)
    is_shared_without_keys: bool = False
    states: StateStore = field(default_factory=StateStore)
    tracked: TrackedResponses = field(default_factory=TrackedResponses)
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    admissions: Admissions = field(default_factory=Admissions)
    loading: Callable[[], str] = str

    @property
    def workers(self) -> Workers:
        """Threads for long work."""
        return self.admissions.workers

    @property
    def engine_identity(self) -> str | None:
        """Identity of the engine. Only the same engine repeats its tokens bit for bit. None if the engine has no
        checkpoints.
        """
        formats = self.engine.request_snapshot_format
        return None if formats is None else formats.engine

    @property
    def trusts_state_files(self) -> bool:
        """Whether prompts without a `cache_salt` restore the states of files that their tenant imported.

        They do not if any client could forge a file for another client's prompts.
        """
        return self.state_key is not None or not self.is_shared_without_keys

    def check_alive(self) -> None:
        """Checks that the engine runs.

        Raises:
          EngineStoppedError: The engine has stopped permanently.
        """
        if self.engine.error is not None:
            raise EngineStoppedError("the engine has stopped")

    async def check_generates(self) -> None:
        """Generates one token, as for any other request.

        Raises:
          ApiError: The queue is full, or the token does not come in time.
          EngineDeadError: The engine died.
        """
        prompt, response_id = Prompt((self.model.tokenizer.bos_id or 0,)), f"health-{uuid4().hex}"
        spec = GenerationSpec([prompt], [SamplingParams(max_tokens=1)], holds_output=False)
        try:
            async with asyncio.timeout(self.limits.proof_s), self.generation(response_id, spec) as generation:
                await collect(generation)
        except TimeoutError:
            raise ApiError(kinds.NOT_GENERATING, f"no token came within {self.limits.proof_s:g} s") from None
        except QueueFullError as error:
            raise ApiError(kinds.NOT_GENERATING, str(error)) from None

    def check_count(self, num_prompts: int, num_candidates: int = 1) -> None:
        """Checks the number of choices of one request.

        Raises:
          ApiError: The request has too many choices.
        """
        requested = num_prompts * num_candidates
        if requested > self.limits.max_choices:
            limit = (
                f"one request may ask for at most {self.limits.max_choices} choices (prompts times n), got {requested}"
            )
            raise bad_value("prompt" if num_prompts > 1 else "n", limit)

    def _check_lengths(self, spec: GenerationSpec) -> None:
        """Checks that each prompt may run, and that all choices can wait together unless there are slots for all.

        Raises:
          ApiError: A prompt is too long, or the choices have more prompt tokens than the queue takes.
        """
        limits, lengths = self.limits, [len(prompt.token_ids) for prompt in spec.prompts]
        num_choices, total = len(lengths) * len(spec.params), sum(lengths) * len(spec.params)
        most = limits.max_choices_tokens
        if most is not None and total > most and num_choices > max(self.engine.stats.slots, 1):
            message = f"one request may have at most {most} prompt tokens in all its choices, got {total}"
            raise bad_value("prompt" if len(lengths) > 1 else "n", message)
        if limits.max_prompt_tokens is not None and max(lengths) > limits.max_prompt_tokens:
            message = f"the prompt has {max(lengths)} tokens, and this server takes {limits.max_prompt_tokens}"
            raise ApiError(kinds.CONTEXT_TOO_LONG, message)

    async def requests(self, spec: GenerationSpec, response_id: str) -> list[Request]:
        """Returns the engine's requests for the choices of a spec, prompt by prompt.

        All choices of a prompt but the first are forks of it. Their memory is charged to the current admission.

        Args:
          response_id: Id by which clients and the engine know the choices.

        Raises:
          ApiError: There are too many choices, they are too long, or the constraint cannot be compiled.
          RequestTimeoutError: The constraint took too long to compile.
        """
        own, params = admission.get(), spec.params
        self.check_count(len(spec.prompts), len(params))
        self._check_lengths(spec)
        now = time.monotonic()
        start_by = math.inf if spec.queue_timeout_s is None else now + spec.queue_timeout_s
        # The operator's timeout applies to every request except lines of batches, which may wait for hours.
        longest_s = math.inf if own.preemptible else self.limits.request_timeout_s
        deadline = now + min(math.inf if spec.timeout_s is None else spec.timeout_s, longest_s)
        if spec.holds_output or spec.copies != PromptCopies():
            prompt_bytes, params = response_size(spec, self.model.tokenizer.max_token_bytes)
            await own.keep(prompt_bytes)
        has_prediction = spec.prediction and self.engine.stats.drafts is not None
        predicted_ids = await self.prompts.prediction(spec.prediction) if has_prediction else ()
        if isinstance(own, PreemptibleAdmission):
            await own.settle()
        grammar = None if spec.constraint is None else await self._grammar(spec, spec.constraint, deadline)
        prefilled = spec.earlier_ids if spec.replay is None else ()
        if prefilled:
            params = [_remaining(each, len(prefilled)) for each in params]
        has_states = spec.state is not None or self.states.has_imported
        requests: list[Request] = []
        for prompt in spec.prompts:
            token_ids = pack_ids(prompt.token_ids, prefilled) if prefilled else prompt.token_ids
            state = self.restored_state(spec, prompt) if has_states else None
            first_id = engine_request_id(response_id, len(requests))
            for each in params:
                request_id = engine_request_id(response_id, len(requests))
                requests.append(
                    Request(
                        request_id,
                        token_ids,
                        each,
                        stepwise=bool(spec.stop),
                        constraint=None if grammar is None else grammar.constraint(prefilled),
                        fork_of=None if request_id == first_id else first_id,
                        tenant=own.owner,
                        priority=spec.priority,
                        start_by=start_by,
                        deadline=deadline,
                        preemptible=own.preemptible,
                        cache_salt=self.salt(spec.cache_salt) if state is None else state.state.salt,
                        state=None if state is None else state.state.snapshot,
                        state_is_imported=state is not None and state.state.is_imported,
                        replay=spec.replay,
                        predicted_token_ids=predicted_ids,
                    )
                )
        return requests

    def saved_state(self, state_id: str | None) -> StoredState | None:
        """Returns the saved state that a request continues, if it names one.

        Raises:
          ApiError: No state has this id.
        """
        return None if state_id is None else self.states.get(state_id, tenant.get(), "from_state")

    def salt(self, cache_salt: str) -> str:
        """Returns the salt of the prefix cache for the tenant's requests with a `cache_salt`."""
        return f"{tenant.get()}\n{cache_salt}" if self.salt_by_key else cache_salt

    def restored_state(self, spec: GenerationSpec, prompt: Prompt) -> StoredState | None:
        """Returns the saved state that a prompt continues: its spec's, or an imported one that it begins with."""
        return spec.state or self.states.imported(tenant.get(), spec.cache_salt, prompt.token_ids)

    async def save_state(self, response_id: str, index: int) -> StoredState:
        """Saves the state of a choice that is running or ended recently, up to the tokens whose text was sent whole.

        Args:
          response_id: Id of the response.
          index: Index of the choice.

        Raises:
          ApiError: The choice does not exist, or its state has no room.
        """
        message = f"no request with the id {response_id!r} and a choice {index} is running or ended recently"
        unknown = ApiError(kinds.NO_SUCH_OBJECT, message, param="request_id")
        async with self.states.saves.hold():
            sent = self.tracked.find(response_id, index)
            if sent is None:
                raise unknown
            try:
                state = await self.engine.save(*sent)
            except UnknownRequestError:
                raise unknown from None
        if state.tenant != tenant.get():
            raise unknown
        if state.num_tokens > MAX_TOKENS:
            raise bad_value("request_id", f"request_id: a state may have {MAX_TOKENS} tokens, not {state.num_tokens}")
        return self._keep_state(state)

    async def described_state(self, stored: StoredState) -> dict[str, Any]:
        """Returns the object that the API shows, with the messages of a chat."""
        decode, token_ids = self.model.chat_format.decode, stored.state.token_ids
        messages = await self.workers.run(lambda: decode(token_ids, MAX_MESSAGES))
        found = {} if messages is None else {"messages": [asdict(message) for message in messages]}
        return stored.described() | found

    async def export_state(self, stored: StoredState) -> bytes:
        """Returns a state as a file, signed if there is a key."""
        return await self.workers.run(lambda: self.engine.state_format.export(stored.state, self.state_key))

    async def import_state(self, data: bytes, cache_salt: str = "") -> StoredState:
        """Saves the state in a file.

        Prompts of the tenant that begin with its tokens and have its salt restore it, unless it is not trusted and
        its salt is empty.

        A state that is signed with the service's key also enters the prefix cache that the tenant's requests use.
        Snapshots after any other state are kept separate, under a salt that no other request shares.

        Args:
          cache_salt: `cache_salt` of the requests that may restore the state.

        Raises:
          StateFileError: The file is broken, belongs to another model, or is not signed with the service's key.
          ApiError: The state has no room.
        """

        def load() -> tuple[SavedState, Prefix | None]:
            state = self.engine.state_format.load(data, self.state_key)
            return state, Prefix.of(state, cache_salt) if cache_salt or self.trusts_state_files else None

        state, prefix = await self.workers.run(load)
        salt = f"import-{uuid4().hex}" if state.is_imported else self.salt(cache_salt)
        stored = self._keep_state(replace(state, salt=salt), prefix)
        if not state.is_imported:
            async with self.states.saves.hold():
                await self.engine.insert(stored.state)
        return stored

    def _keep_state(self, state: SavedState, prefix: Prefix | None = None) -> StoredState:
        """Stores a state. All states together take at most as much memory as the prefix cache may take."""
        return self.states.keep(state, tenant.get(), self.engine.stats.cache.budget, prefix)

    async def _grammar(self, spec: GenerationSpec, constraint: OutputConstraint, deadline: float) -> Grammar:
        """Returns the compiled grammar. The grammar ends the output, so other fields must not require more tokens."""
        for name, is_set in (("ignore_eos", spec.ignore_eos), ("min_tokens", spec.params[0].min_tokens > 0)):
            if is_set:
                raise bad_value(
                    name, f"{name} cannot be combined with {constraint.param}, whose grammar ends the answer"
                )
        try:
            async with asyncio.timeout(min(deadline - time.monotonic(), _LONGEST_WAIT_S)):
                return await self._compiled(constraint)
        except GrammarError as error:
            raise constraint.refused(error) from None
        except GrammarBusyError as error:
            raise ApiError(kinds.OVERLOADED, f"{constraint.param}: {error}") from None
        except TimeoutError:
            raise RequestTimeoutError(f"{constraint.param} took longer to compile than the request had time") from None

    async def _compiled(self, constraint: OutputConstraint) -> Grammar:
        """Returns the requested grammar, or its fallback if only that can be compiled, which is reported.

        Raises:
          GrammarError: Neither can be compiled.
        """
        try:
            return await self.grammars.compile(constraint.spec)
        except GrammarError:
            if constraint.fallback is None:
                raise
        grammar = await self.grammars.compile(constraint.fallback)
        warn(f"{constraint.param}: parameters")
        return grammar

    @asynccontextmanager
    async def generation(
        self, response_id: str, spec: GenerationSpec, requests: Sequence[Request] = ()
    ) -> AsyncGenerator[Generation]:
        """Runs the choices of a spec until the end of the `with` block, during which they can be aborted by id.

        Args:
          response_id: Id by which clients and the engine know the choices.
          requests: The result of `requests` for the spec, if it was called before.

        Raises:
          ApiError, RequestTimeoutError: See `requests`.
        """
        requests = requests or await self.requests(spec, response_id)
        started = Generation.start(
            self.engine, self.model.tokenizer, self.metrics.requests, spec, requests, self.limits.max_unread_bytes
        )
        with closing(started) as generation, self.tracked.track(generation, response_id, request_id.get()):
            yield generation


def engine_request_id(response_id: str, index: int) -> str:
    """Returns the id of the engine's request for a choice of a response."""
    return f"{response_id}-{index}"


def _remaining(params: SamplingParams, num_generated: int) -> SamplingParams:
    """Returns the sampling parameters for the remaining tokens."""
    max_tokens = None if params.max_tokens is None else params.max_tokens - num_generated
    return replace(params, max_tokens=max_tokens, min_tokens=max(params.min_tokens - num_generated, 0))
