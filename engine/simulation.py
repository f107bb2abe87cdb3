"""A simulated device for the real scheduler: the durations of its steps, its clock, its faults, and its tokens.

Tokens are a pure function of a prompt, its seed, a position and the token mask. States have the true size, but no
content. Letters in shapes: R rows, W words of a token mask.
"""

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int

from .capacity.roofline import Roofline, compute_roofline, find_device
from .checkpoint.source import ModelSource, model_identity
from .devices.platform import TPU
from .model.sharding import Collectives
from .types.config import MAX_PREFILL_ROWS, ONE_DEVICE, PREFILL_BLOCK, SIMULATED, EngineConfig, FaultKind, Simulation
from .types.errors import ConfigError, EngineDeadError
from .types.host_memory import ArrayFormat, HostArray, id_bytes, shown_bytes
from .types.output_constraint import TokenMask, mask_of_ids, words_of_mask
from .types.request import Batch, DecodeBatch, Pending, PrefillBatch, PrefillChunk, Request, RowResult, TokenLogprobs
from .types.sampling_params import NO_TOKEN
from .types.snapshot import BlockState, SavedStateFormat, Snapshot, window_edges
from .worker.served import Devices, Served

_SLOWDOWN: Final = 10.0
"""Factor of all durations on a slow device."""

_MAX_SLEEP_S: Final = 3600.0
"""Maximum time of one sleep: Python refuses an infinite one."""

_WEYL: Final = np.uint64(0x9E3779B97F4A7C15)

_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Constants of splitmix64."""

_FIRST_WORD: Final = 1024
"""First token id that is drawn: lower ones are control tokens and bytes in Gemma's vocabulary."""

_DRAW_BITS: Final = 32


class Efficiency(NamedTuple):
    """Share of the roofline's speed that steps reach.

    Attributes:
      decode: Share in decode steps.
      prefill: Share in prefill steps.
    """

    decode: float
    prefill: float


EFFICIENCIES: Final[Mapping[str, Efficiency]] = {"v5e": Efficiency(0.62, 0.92), "v6e": Efficiency(0.62, 0.71)}
"""Efficiencies of 2B by device, for decode steps of all slots and prefill steps of 512 tokens, from the schedules of
the TPU's compiler (benchmarks/tpu-programs.md). Decode steps of few slots are faster: 0.88 for 8 slots of a v5e."""

INT8_EFFICIENCIES: Final[Mapping[str, Efficiency]] = {"v5e": Efficiency(0.51, 0.80), "v6e": Efficiency(0.47, 0.62)}
"""The same with matrices and windows in int8. The prefill of a v6e was not measured: it is as much lower as a v5e's."""


@dataclass(frozen=True, slots=True)
class StepDurations:
    """Durations of steps in seconds.

    Attributes:
      roofline: Roofline of the model on its devices.
      simulation: Settings, which may replace the roofline's durations.
    """

    roofline: Roofline
    simulation: Simulation

    def decode_seconds(self, rows: int, window_tokens: int) -> float:
        """Returns the duration of a decode step.

        Args:
          rows: Number of slots that the step takes, including those without a request.
          window_tokens: Total tokens in the attention windows of its requests.
        """
        if self.simulation.step_ms is not None:
            return self.simulation.step_ms / 1e3
        return self.roofline.decode_seconds(rows, window_tokens) / self._efficiency.decode

    def prefill_seconds(self, tokens: int, first_token_steps: int = 0) -> float:
        """Returns the duration of a prefill step.

        Args:
          tokens: Number of tokens with padding; 0 if only first tokens are sampled.
          first_token_steps: Steps that sample the first tokens of up to `MAX_PREFILL_ROWS` prompts each.
        """
        if self.simulation.prefill_tokens_per_s is not None:
            return tokens / self.simulation.prefill_tokens_per_s
        roofline = self.roofline
        prefill = roofline.prefill_seconds(tokens) if tokens else 0.0
        return (prefill + first_token_steps * roofline.logits_seconds()) / self._efficiency.prefill

    @property
    def _efficiency(self) -> Efficiency:
        if self.simulation.efficiency is not None:
            return Efficiency(self.simulation.efficiency, self.simulation.efficiency)
        is_int8 = self.roofline.quantize == self.roofline.config.kv_dtype == "int8"
        measured = INT8_EFFICIENCIES if is_int8 else EFFICIENCIES
        return measured.get(self.simulation.device, measured["v6e"])  # the lower one of both


class SimulatedDevice:
    """Runs steps in sequence, each as soon as it is dispatched and the previous one has ended.

    Args:
      simulation: Jitter and faults.
      seed: Seed of the jitter.
    """

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self._simulation = simulation
        self._random = random.Random(seed)
        self._num_steps = 0
        self._free_at = 0.0

    def dispatch(self, seconds: float) -> float:
        """Starts a step of this duration; returns the time of its end, in seconds of `time.monotonic`.

        Raises:
          EngineDeadError: The device is lost, by a fault of the simulation.
        """
        seconds *= 1 + self._simulation.jitter * self._random.uniform(-1, 1)
        fault = self._simulation.fault
        if fault is not None and self._num_steps >= fault.after:
            seconds = _with_fault(fault.kind, seconds, self._num_steps)
        self._num_steps += 1
        self._free_at = max(self._free_at, time.monotonic()) + seconds
        return self._free_at


def _with_fault(kind: FaultKind, seconds: float, step: int) -> float:
    match kind:
        case FaultKind.STUCK:
            return float("inf")
        case FaultKind.SLOW:
            return _SLOWDOWN * seconds
        case FaultKind.DYING:
            raise EngineDeadError(f"the simulated device was lost after {step} steps, as --simulate asks for")


def wait_until(end: float) -> None:
    """Waits until a time of `time.monotonic`, which may be infinite."""
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _MAX_SLEEP_S))


class SlotTokens:
    """Draws the next tokens of slots.

    A token is drawn from the middle of the vocabulary, where Gemma's words are. Texts end with a geometric distribution
    of their lengths, unless the request ignores ends. Temperature, biases and penalties have no effect, except that
    greedy requests don't depend on their seed.

    Args:
      vocab_size: Number of token ids.
      output_tokens: Mean length of texts.
    """

    def __init__(self, rows: int, vocab_size: int, output_tokens: int) -> None:
        self._first = min(_FIRST_WORD, vocab_size // 2)
        self._num_words = max(1, vocab_size * 7 // 8 - self._first)
        self._end_bound = max(1, 2**_DRAW_BITS // output_tokens)
        self._mask_words = words_of_mask(vocab_size)
        self._keys: Any = np.zeros(rows, np.uint64)
        self._positions: Any = np.zeros(rows, np.int64)
        self._min_positions: Any = np.zeros(rows, np.int64)
        self._end_ids: Any = np.full(rows, NO_TOKEN, np.int64)
        self._stop_ids = [frozenset[int]()] * rows
        self._masks: dict[int, TokenMask] = {}

    def start(self, slot: int, request: Request, position: int, mask: TokenMask | None) -> None:
        """Sets a slot's state.

        Args:
          request: Request that owns it.
          position: Position of the last token so far.
          mask: Mask of the next token, if an output constraint decides it.
        """
        params = request.params
        self._keys[slot] = _key(request)
        self._positions[slot] = position
        self._min_positions[slot] = len(request.prompt_token_ids) + params.min_tokens
        self._end_ids[slot] = min(params.stop_ids, default=NO_TOKEN)
        self._stop_ids[slot] = params.stop_ids
        if mask is None and params.static_mask is not None:
            mask = params.static_mask.mask(self._mask_words)
        self.set_mask(slot, mask)

    def set_mask(self, slot: int, mask: TokenMask | None) -> None:
        """Sets the mask of a slot's next tokens; None allows all."""
        if mask is None:
            self._masks.pop(slot, None)
        else:
            self._masks[slot] = mask

    def move(self, source: int, target: int) -> None:
        """Copies a slot onto another."""
        for column in (self._keys, self._positions, self._min_positions, self._end_ids):
            column[target] = column[source]
        self._stop_ids[target] = self._stop_ids[source]
        self.set_mask(target, self._masks.get(source))

    def window_tokens(self, slots: Int[np.ndarray, " R"], window: int) -> int:
        """Returns the total number of tokens in the attention windows of some slots."""
        return int(np.minimum(self._positions[slots] + 1, window).sum())

    def draw(self, slots: Int[np.ndarray, " R"]) -> list[int]:
        """Returns the next token of each slot."""
        self._positions[slots] += 1
        positions, ends = self._positions[slots], self._end_ids[slots]
        draws = _mixed(self._keys[slots] + positions.astype(np.uint64) * _WEYL)
        may_end = (ends != NO_TOKEN) & (positions >= self._min_positions[slots])
        wants_end = may_end & (draws >> np.uint64(_DRAW_BITS) < np.uint64(self._end_bound))
        words = self._first + (draws % np.uint64(self._num_words)).astype(np.int64)
        tokens: list[int] = np.where(wants_end, ends, words).tolist()
        if self._masks:
            for row, slot in enumerate(slots.tolist()):
                if (mask := self._masks.get(slot)) is not None:
                    if not may_end[row]:
                        mask = mask & ~mask_of_ids(self._stop_ids[slot], len(mask))
                    tokens[row] = _allowed(tokens[row], int(ends[row]), int(draws[row]), mask)
        return tokens


def _allowed(token: int, end: int, draw: int, mask: TokenMask) -> int:
    """Returns the token if the mask allows it; otherwise the end if it is allowed; otherwise another allowed token."""
    for each in (token, end):
        if each != NO_TOKEN and mask[each // 32] >> np.uint32(each % 32) & 1:
            return each
    words = np.flatnonzero(mask)
    if not len(words):
        return NO_TOKEN
    index = int(words[draw % len(words)])
    bits = [bit for bit in range(32) if int(mask[index]) >> bit & 1]
    return 32 * index + bits[(draw >> _DRAW_BITS) % len(bits)]


def _key(request: Request) -> int:
    """Returns 64 bits for a prompt, and the seed if tokens are sampled."""
    digest = hashlib.blake2b(id_bytes(request.prompt_token_ids), digest_size=8)
    if request.params.temperature > 0:
        digest.update(request.params.seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _mixed(x: Any) -> Any:
    """Returns the outputs of splitmix64 for an array of states."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


class SimulatedRunner:
    """Replaces `ModelRunner`; `simulated_runner` builds one.

    Args:
      served: The model on its devices, without parameters.
      state_format: Format of saved states.
      device: Clock of the device.
      output_tokens: Mean length of texts.
    """

    compiles_since_ready = 0
    restore_seconds = 0.0

    def __init__(
        self,
        served: Served,
        state_format: SavedStateFormat,
        durations: StepDurations,
        device: SimulatedDevice,
        output_tokens: int,
    ) -> None:
        self.served = served
        self.limits = served.limits()
        self.state_format = state_format
        self._durations = durations
        self._device = device
        self._keeps_snapshots = served.settings.state_cache_gib != 0
        self._tokens = SlotTokens(served.rows, served.config.vocab_size, output_tokens)

    def close(self) -> None:
        """Does nothing: the runner holds no resources."""

    def run(self, batch: Batch) -> Pending:
        """Dispatches a batch to the device, without waiting for it.

        Raises:
          EngineDeadError: The device is lost, by a fault of the simulation.
        """
        return self._run_decode(batch) if isinstance(batch, DecodeBatch) else self._run_prefill(batch)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns a state of the size of the slot's after `length` tokens."""
        edges = pairwise(window_edges(length, self.served.config.window))
        return Snapshot(length, self._recurrent(), tuple(self._window(end - start) for start, end in edges))

    def _run_decode(self, batch: DecodeBatch) -> Pending:
        for source, target in batch.moves:
            self._tokens.move(source, target)
        for row in batch.replays:
            position = len(row.request.prompt_token_ids) + row.num_tokens - 1
            self._tokens.start(row.slot, row.request, position, row.mask)
        for slot, mask in batch.masks:
            self._tokens.set_mask(slot, mask)
        slots, (rows, _) = np.array(batch.slots), self.served.decode_places(batch.slots)
        seconds = self._durations.decode_seconds(rows, self._tokens.window_tokens(slots, self.served.config.window))
        drawn = zip(batch.requests, self._tokens.draw(slots), strict=True)
        return self._pending([self._result(request, token) for request, token in drawn], seconds)

    def _run_prefill(self, batch: PrefillBatch) -> Pending:
        firsts = batch.first_tokens
        for row in firsts:
            self._tokens.start(row.slot, row.request, len(row.request.prompt_token_ids) - 1, row.mask)
        drawn = self._tokens.draw(np.array([row.slot for row in firsts], np.int64))
        tokens = (self._result(row.request, token) for row, token in zip(firsts, drawn, strict=True))
        num_steps = -(-len(firsts) // MAX_PREFILL_ROWS)
        seconds = self._durations.prefill_seconds(self._padded_tokens(batch.chunks), num_steps)
        return self._pending([*map(self._chunk, batch.chunks), *tokens], seconds)

    def _pending(self, results: Sequence[RowResult], seconds: float) -> Pending:
        end = self._device.dispatch(seconds)

        def wait() -> Sequence[RowResult]:
            wait_until(end)
            return results

        return wait

    def _chunk(self, chunk: PrefillChunk) -> RowResult:
        states = partial(partial, self._block_states, chunk) if self._keeps_snapshots and chunk.length else None
        return RowResult(prompt_logprobs=self._scores(chunk), block_states=states)

    def _padded_tokens(self, chunks: Sequence[PrefillChunk]) -> int:
        """Returns the number of tokens of the compiled shape that fits the chunks; 0 if they have none.

        Where the settings have a rate, it is the number in the chunks' blocks: a shape for few tokens takes as long as
        reading the weights, which a rate does not know.
        """
        if self._durations.simulation.prefill_tokens_per_s is not None:
            return sum(-(-chunk.length // PREFILL_BLOCK) * PREFILL_BLOCK for chunk in chunks)
        if not any(chunk.length for chunk in chunks):
            return 0
        shape, _, _ = self.served.prefill_places(chunks)
        return shape.rows * shape.length * self.served.devices.shards.data

    def _result(self, request: Request, token: int) -> RowResult:
        num_top = request.params.logprobs
        if num_top is None:
            return RowResult((token,))
        named = request.params.logprob_token_ids
        return RowResult((token,), (_logprobs(token, num_top, self.served.config.vocab_size, named),))

    def _scores(self, chunk: PrefillChunk) -> tuple[TokenLogprobs, ...]:
        request, num_top = chunk.request, chunk.request.params.prompt_logprobs
        if num_top is None:
            return ()
        following = request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        return tuple(_logprobs(token, num_top, self.served.config.vocab_size) for token in following)

    def _block_states(self, chunk: PrefillChunk) -> tuple[BlockState, ...]:
        formats = self.state_format.snapshot
        recurrent = self._recurrent()
        ends = [min(start + PREFILL_BLOCK, chunk.length) for start in range(0, chunk.length, PREFILL_BLOCK)]
        hidden = _unfilled(formats.hidden) if chunk.is_last else None
        return tuple(
            BlockState(recurrent, self._window(end - start), hidden if end == chunk.length else None)
            for start, end in pairwise((0, *ends))
        )

    def _recurrent(self) -> tuple[HostArray, ...]:
        return tuple(map(_unfilled, self.state_format.snapshot.recurrent.values()))

    def _window(self, tokens: int) -> HostArray:
        return _unfilled(self.state_format.snapshot.tokens(tokens))


def simulated_runner(source: ModelSource, config: EngineConfig, simulation: Simulation) -> SimulatedRunner:
    """Returns a runner with the shapes of a TPU's programs, for any device.

    Args:
      source: The model, whose weights are not read.

    Raises:
      ConfigError: The device is unknown, or the model does not fit it.
    """
    source = source.with_kv_dtype(config.kv_dtype)
    dtype = source.config.dtype if config.dtype == "auto" else config.dtype
    quantize = config.quantize or source.config.quantize
    shards = config.shards or ONE_DEVICE
    roofline = compute_roofline(
        source.config,
        find_device(simulation.device),
        np.dtype(dtype).itemsize,
        quantize=quantize,
        shards=shards,
        chunk=config.prefill_chunk,
    )
    devices = Devices(TPU, Collectives(shards.data, shards.model))
    served = Served(source.config, config, devices, np.dtype(dtype), config.slots or _slots(roofline, simulation))
    identity = f"{SIMULATED}-{model_identity(source, dtype, quantize, config.seed)}"
    durations, device = StepDurations(roofline, simulation), SimulatedDevice(simulation, config.seed)
    return SimulatedRunner(served, served.state_format(identity), durations, device, simulation.output_tokens)


def _slots(roofline: Roofline, simulation: Simulation) -> int:
    """Returns the number of slots that fit the device.

    Raises:
      ConfigError: The model does not fit the device.
    """
    if not roofline.slots:
        device, needed = shown_bytes(roofline.device.memory_bytes), shown_bytes(roofline.memory_bytes(1))
        raise ConfigError(
            f"simulate: {simulation.device} has {device}, and the model with one slot needs {needed}; "
            "set slots, or simulate another device"
        )
    return roofline.slots


def _unfilled(of: ArrayFormat) -> HostArray:
    """Returns zeros that count as many bytes as an array of this format, but take only a few."""
    shape, dtype = of
    zero: Any = np.zeros((), dtype)
    return np.broadcast_to(zero, shape)


def _logprobs(token: int, num_top: int, vocab_size: int, named: Sequence[int] = ()) -> TokenLogprobs:
    """Returns log-probabilities -1 of the token itself, and -1, -2, … of it and the ids after it."""
    top = tuple(((token + rank) % vocab_size, -1.0 - rank) for rank in range(num_top))
    return TokenLogprobs(-1.0, top, tuple((each, -1.0) for each in named))
