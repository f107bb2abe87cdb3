"""Runs batches of the real scheduler on a simulated device. States have the true size, but no content."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..capacity.roofline import Roofline, compute_roofline, find_device
from ..checkpoint.source import ModelSource, model_identity
from ..devices.platform import TPU
from ..model.sharding import Collectives
from ..types.config import (
    MAX_PREFILL_ROWS,
    ONE_DEVICE,
    PREFILL_BLOCK,
    SIMULATED,
    EngineConfig,
    Simulation,
)
from ..types.errors import ConfigError
from ..types.host_memory import ArrayFormat, HostArray, shown_bytes
from ..types.request import Batch, DecodeBatch, PrefillBatch, PrefillChunk, Request, RowResult, TokenLogprobs
from ..types.snapshot import BlockState, SavedStateFormat, Snapshot, window_edges
from ..worker.served import Devices, Served
from .device import SimulatedDevice, SlotTokens, StepDurations, wait_until


@dataclass(frozen=True, slots=True)
class SimulatedBatch:
    """A batch on a simulated device.

    Attributes:
      results: One result per row.
      end: Time at which the device is done, in seconds of `time.monotonic`.
    """

    results: tuple[RowResult, ...]
    end: float

    def wait(self) -> tuple[RowResult, ...]:
        """Waits for the device and returns one result per row."""
        wait_until(self.end)
        return self.results


class SimulatedRunner:
    """Replaces `ModelRunner`; `simulated_runner` builds one.

    Args:
      served: The model on its devices, without parameters.
      state_format: Format of saved states.
      device: Clock of the device.
      output_tokens: Mean length of texts.
    """

    compiles_since_ready = 0
    is_compiling = False
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

    @property
    def slots(self) -> int:
        """Number of requests that run at a time."""
        return self.served.slots

    @property
    def window(self) -> int:
        """Number of tokens that attention looks back on."""
        return self.state_format.snapshot.window

    def close(self) -> None:
        """Does nothing: the runner holds no resources."""

    def run(self, batch: Batch) -> SimulatedBatch:
        """Dispatches a batch to the device, without waiting for it.

        Raises:
          EngineDeadError: The device is lost, by a fault of the simulation.
        """
        return self._run_decode(batch) if isinstance(batch, DecodeBatch) else self._run_prefill(batch)

    def snapshot(self, slot: int, length: int) -> Snapshot:
        """Returns a state of the size of the slot's after `length` tokens."""
        edges = pairwise(window_edges(length, self.window))
        return Snapshot(length, self._recurrent(), tuple(self._window(end - start) for start, end in edges))

    def _run_decode(self, batch: DecodeBatch) -> SimulatedBatch:
        for source, target in batch.moves:
            self._tokens.move(source, target)
        for row in batch.replays:
            position = len(row.request.prompt_token_ids) + row.num_tokens - 1
            self._tokens.start(row.slot, row.request, position, row.mask)
        for slot, mask in batch.masks:
            self._tokens.set_mask(slot, mask)
        slots, (rows, _) = np.array(batch.slots), self.served.decode_places(batch.slots)
        seconds = self._durations.decode_seconds(rows, self._tokens.window_tokens(slots, self.window))
        drawn = zip(batch.requests, self._tokens.draw(slots), strict=True)
        results = tuple(self._result(request, token) for request, token in drawn)
        return SimulatedBatch(results, self._device.dispatch(seconds))

    def _run_prefill(self, batch: PrefillBatch) -> SimulatedBatch:
        firsts = batch.first_tokens
        for row in firsts:
            self._tokens.start(row.slot, row.request, len(row.request.prompt_token_ids) - 1, row.mask)
        drawn = self._tokens.draw(np.array([row.slot for row in firsts], np.int64))
        tokens = (self._result(row.request, token) for row, token in zip(firsts, drawn, strict=True))
        num_steps = -(-len(firsts) // MAX_PREFILL_ROWS)
        seconds = self._durations.prefill_seconds(self._padded_tokens(batch.chunks), num_steps)
        return SimulatedBatch((*map(self._chunk, batch.chunks), *tokens), self._device.dispatch(seconds))

    def _chunk(self, chunk: PrefillChunk) -> RowResult:
        states = partial(partial, self._block_states, chunk) if self._keeps_snapshots and chunk.length else None
        return RowResult(prompt_logprobs=self._scores(chunk), block_states=states)

    def _padded_tokens(self, chunks: Sequence[PrefillChunk]) -> int:
        """Returns the number of tokens of the compiled shape that fits the chunks; 0 if they have none."""
        length = max((chunk.length for chunk in chunks), default=0)
        if not length:
            return 0
        homes = [chunk.slot // self.limits.shard_rows for chunk in chunks]
        shape = self.served.fit(max(map(homes.count, homes)), length)
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
