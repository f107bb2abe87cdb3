"""Decides how much prefill runs between two decode steps, from the durations of steps."""

import math
from collections import Counter
from typing import Any, Final, NamedTuple, Protocol

from ..types.config import PREFILL_BLOCK, StepLimits
from ..types.request import Batch, DecodeBatch, PrefillBatch

DEFAULT_TARGET: Final = 2.9
"""Default target for the inter-token latency, in decode steps without other work."""

_PUNCTUAL: Final = 0.995
"""Share of the inter-token latencies during prefill that are planned to meet the target, so that the 99th percentile
does."""

OVERRUN: Final = 1 / 0.85
"""First estimate of `StepTimes.overrun`."""

_OVERRUN_STEP: Final = 0.1
"""Step size with which the estimate is updated."""

_OVERRUNS: Final = (1.05, 2.0)
"""Bounds of the estimate."""

_STREAMS_PER_PROMPT: Final = 8
"""Number of decoding requests with which each further waiting prompt adds one target."""

_FEW_PROMPTS: Final = 2
"""Number of waiting prompts beyond which each further one adds a target, for any number of decoding requests. With 2, a
burst of 32 prompts is prefilled in long chunks until the last three."""

_THROUGHPUT_STEPS: Final = 32
"""Maximum duration of prefill between two decode steps at throughput, in decode steps."""

_WEIGHT: Final = 1 / 8
"""Weight of a new duration in the mean."""

_MAX_GROWTH: Final = 2.0
"""Maximum ratio of a value to its mean that counts, so that a single outlier changes little."""


class PrefillBudget:
    """Time for prefill since the last decode step.

    At least one prefill step runs between two decode steps, so that neither kind starves. More of them, and longer
    chunks, run if the measured durations fit into the target for the inter-token latency.

    Args:
      limits: Compiled sizes of a step, and the target.
      times: Durations of steps.
    """

    def __init__(self, limits: StepLimits, times: "StepTimes") -> None:
        self._limits = limits
        self._times = times
        self._sizes = _sizes(limits.prefill_chunk)
        self._spent = 0.0
        self._held = 0.0  # seconds for which first tokens have been held
        self._has_delayed = False

    def spend(self, batch: PrefillBatch, num_decoding: int, *, is_holding: bool = False) -> None:
        """Records a prefill step. A step of unknown duration takes the whole budget.

        Args:
          num_decoding: Number of requests that wait for it.
          is_holding: Whether first tokens were held before it.
        """
        seconds = self._times.step(batch) or math.inf
        self._spent += seconds
        self._held = self._held + seconds if is_holding and not batch.first_tokens else 0.0
        self._has_delayed |= num_decoding > 0

    def renew(self) -> bool:
        """Resets the budget at a decode step; returns whether decoding requests have waited for prefill before it."""
        has_delayed, self._spent, self._has_delayed = self._has_delayed, 0.0, False
        return has_delayed

    def allows(self, batch: PrefillBatch, num_decoding: int, num_waiting: int, num_streams: int) -> bool:
        """Returns whether the next slice of a batch in progress may run before the next decode step.

        Args:
          num_decoding, num_waiting, num_streams: See `max_tokens`.
        """
        if not self._spent or not num_decoding:
            return True
        return (self._times.step(batch) or math.inf) <= self._left(num_decoding, num_waiting, num_streams)

    def max_tokens(self, num_decoding: int, num_waiting: int, num_streams: int) -> int:
        """Returns the maximum number of tokens of a new prefill batch now; 0 if a decode step comes first.

        Args:
          num_decoding: Number of requests that decode.
          num_waiting: Number of requests that need prefill; at least one.
          num_streams: Number of decoding requests to which the target applies.
        """
        if not num_decoding:
            return self._sizes[0]
        left = self._left(num_decoding, num_waiting, num_streams)
        if (fitting := next((size for size in self._sizes if self._seconds(size) <= left), 0)) or self._spent:
            return fitting
        return self._sizes[0 if self._target_s(num_streams) == 0 else -1]

    def max_held(
        self, batch: PrefillBatch, num_decoding: int, num_waiting: int, num_streams: int, *, is_holding: bool
    ) -> int:
        """Returns the maximum number of tokens of the batch after this one, if first tokens are held; 0 if they aren't.

        They are held if another prefill step runs before the next decode step anyway, and no longer than the target,
        for which requests that decode wait too.

        Args:
          batch: Batch that is planned and not spent.
          num_decoding, num_waiting, num_streams: See `max_tokens`, after this batch.
          is_holding: Whether first tokens are held already.
        """
        seconds, target_s = self._times.step(batch) or math.inf, self._target_s(num_streams)
        left = self._left(num_decoding, num_waiting, num_streams) - seconds
        if target_s != 0:
            quiet = self._times.quiet(num_streams) or 0.0
            left = min(left, target_seconds(target_s, quiet) - self._held - (seconds if is_holding else 0.0))
        slices = self._limits.prefill_layer_slices
        return next((size for size in self._sizes if slices * self._seconds(size) <= left), 0)

    def _left(self, num_decoding: int, num_waiting: int, num_streams: int) -> float:
        target_s = self._target_s(num_streams)
        return prefill_seconds(target_s, self._times, num_decoding, num_waiting, num_streams) - self._spent

    def _target_s(self, num_streams: int) -> float | None:
        return 0.0 if num_streams == 0 else self._limits.itl_target_s

    def _seconds(self, size: int) -> float:
        """Returns the seconds of the first step of a new batch."""
        return self._times.prefill(size) or math.inf


class Durations(Protocol):
    """Durations of decode steps, measured or planned."""

    @property
    def overrun(self) -> float:
        """See `StepTimes.overrun`."""

    def decode(self, num_requests: int) -> float | None:
        """Returns the seconds of a step with a token for each request; None if no decode step was measured."""

    def quiet(self, num_requests: int) -> float | None:
        """Returns the seconds per token of each request without other work; None if no decode step was measured."""


def prefill_seconds(
    target_s: float | None, times: Durations, num_decoding: int, num_waiting: int, num_streams: int
) -> float:
    """Returns the seconds for prefill between two decode steps; 0 or less if a decode step alone takes all the time.

    The target is a limit for requests that decode, and holds while at most one prompt is waiting. It grows with the
    number of waiting prompts, because they wait longer than any token does: earlier if few requests decode, and beyond
    `_FEW_PROMPTS` prompts for any number of decoding requests.

    Args:
      target_s: Seconds between two tokens of a request; 0 stands for throughput, None for the default.
      times: Durations of steps.
      num_decoding: Number of requests that decode; at least one.
      num_waiting: Number of requests that need prefill; at least one.
      num_streams: Number of decoding requests to which the target applies. If it is 0, so is the
        target.
    """
    step = times.decode(num_decoding)
    if step is None:
        return 0.0
    if target_s == 0:
        return _THROUGHPUT_STEPS * step
    quiet = times.quiet(num_streams)
    assert quiet is not None
    num_targets = max(1.0, _STREAMS_PER_PROMPT * (num_waiting - 1) / num_streams, num_waiting - _FEW_PROMPTS)
    return target_seconds(target_s, quiet) * num_targets / times.overrun - step


def target_seconds(target_s: float | None, quiet: float) -> float:
    """Returns the target for the inter-token latency, in seconds.

    Args:
      target_s: The configured target; None stands for the default.
      quiet: Seconds of a decode step without other work.
    """
    return DEFAULT_TARGET * quiet if target_s is None else target_s


def _sizes(chunk: int) -> tuple[int, ...]:
    """Returns the maximum numbers of tokens of a prefill batch, in falling order: a chunk, and powers of two below."""
    sizes = [PREFILL_BLOCK]
    while 2 * sizes[-1] < chunk:
        sizes.append(2 * sizes[-1])
    return tuple(dict.fromkeys((chunk, *reversed(sizes))))


class _Prefill(NamedTuple):
    """A kind of prefill step.

    Attributes:
      tokens: Number of tokens of its compiled shape, per data shard.
      layer_slice: Index of the slice of the layers.
      samples: Whether first tokens are sampled after it.
    """

    tokens: int
    layer_slice: int = 0
    samples: bool = False


class StepTimes:
    """Durations of steps by size, as exponentially weighted means of the served steps.

    They decide when chunks are prefilled and how long the chunks are, but don't affect results: states at block
    boundaries don't depend on how a prompt is split. Unmeasured sizes are estimated from the nearest size, as if twice
    the tokens took no longer, so that the next larger size is tried. Any thread may ask for them.

    Attributes:
      overrun: Ratio of measured inter-token latencies to planned ones: a percentile of the ratio of the time from one
        decode step to the next, with prefill between them, to the sum of the mean durations of its steps.

    Args:
      limits: Compiled sizes of a step.
    """

    def __init__(self, limits: StepLimits) -> None:
        self.overrun = OVERRUN
        self._limits = limits
        self._rank = {slot: rank for rank, slot in enumerate(limits.slot_order)}
        self._prefill: dict[_Prefill, float] = {}
        self._decode: dict[int, float] = {}
        self._quiet: dict[int, float] = {}
        self._without_tokens: dict[bool, float] = {}  # by whether prompts are restored
        self._planned = self._taken = 0.0  # since the last decode step
        self._has_prefill = False

    def record(self, batch: Batch, seconds: float) -> None:
        """Adds the duration of a batch."""
        self._update_overrun(batch, seconds)
        means, kind = self._means_of(batch)
        if isinstance(batch, DecodeBatch):
            seconds /= batch.steps
        elif isinstance(kind, _Prefill) and kind not in means:
            seconds = min(seconds, _MAX_GROWTH * (self._estimate(kind) or math.inf))
        means[kind] = updated(means.get(kind), seconds)

    def _means_of(self, batch: Batch) -> tuple[dict[Any, float], Any]:
        """Returns the mean durations of steps like this one, and its kind among them."""
        if isinstance(batch, DecodeBatch):
            return self._decode if batch.steps == 1 else self._quiet, self._rows_of(batch)
        if not batch.num_tokens:
            return self._without_tokens, bool(batch.chunks)
        return self._prefill, self._kind(batch)

    def _update_overrun(self, batch: Batch, seconds: float) -> None:
        """Updates the percentile by stochastic approximation, if the step ends an interval with prefill.

        A sample above it adds nearly a step, and each other sample subtracts a small amount, so that the share
        `_PUNCTUAL` of all samples is below it.
        """
        mean = self._mean(batch)
        self._planned += math.nan if mean is None else mean
        self._taken += seconds
        if not isinstance(batch, DecodeBatch):
            self._has_prefill = True
            return
        if self._has_prefill and not math.isnan(self._planned):
            least, most = _OVERRUNS
            is_above = self._taken > self.overrun * self._planned
            self.overrun = min(max(self.overrun + _OVERRUN_STEP * (is_above - (1 - _PUNCTUAL)), least), most)
        self._planned = self._taken = 0.0
        self._has_prefill = False

    def decode(self, num_requests: int) -> float | None:
        """Returns the seconds of a step with a token for each request; None if no decode step was measured."""
        rows = self._rows(num_requests)
        return self._decode.get(rows) or self._quiet.get(rows) or self.quiet(num_requests)

    def quiet(self, num_requests: int) -> float | None:
        """Returns the seconds per token of each request without other work; None if no decode step was measured."""
        rows = self._rows(num_requests)
        return self._quiet.get(rows) or _nearest(self._decode, rows) or _nearest(self._quiet, rows)

    def has_decode(self, num_requests: int) -> bool:
        """Returns whether a decode step of this compiled size was measured."""
        rows = self._rows(num_requests)
        return rows in self._decode or rows in self._quiet

    def prefill(self, tokens: int) -> float | None:
        """Returns the seconds of the first step of a new batch; None if no prefill step was measured.

        Args:
          tokens: Number of tokens per data shard.
        """
        return self._estimate(_Prefill(tokens))

    def step(self, batch: PrefillBatch) -> float | None:
        """Returns the seconds of a planned prefill step; None if no step of its kind was measured."""
        return self._estimate(self._kind(batch)) if batch.num_tokens else self._mean(batch)

    def _mean(self, batch: Batch) -> float | None:
        """Returns the mean duration of steps of the same kind; None if none was measured."""
        if isinstance(batch, DecodeBatch):
            return self._decode.get(self._rows_of(batch))
        means, kind = self._means_of(batch)
        return means.get(kind)

    def _estimate(self, kind: _Prefill) -> float | None:
        if (known := self._prefill.get(kind)) is not None:
            return known
        if not self._prefill:
            return None
        nearest = min(tuple(self._prefill), key=lambda other: _distance(kind, other))
        ratio = kind.tokens / nearest.tokens
        return (max(ratio / 2, 1) if ratio > 1 else ratio) * self._prefill[nearest]

    def _kind(self, batch: PrefillBatch) -> _Prefill:
        group = self._limits.shard_rows
        rows = max(Counter(chunk.slot // group if group else 0 for chunk in batch.chunks).values())
        length = PREFILL_BLOCK
        while length < max(chunk.length for chunk in batch.chunks):
            length *= 2
        return _Prefill(rows * length, batch.layer_slice, bool(batch.first_tokens))

    def _rows_of(self, batch: DecodeBatch) -> int:
        """Returns the number of rows of a step, including free slots between the slots of its requests."""
        return self._rows(1 + max(self._rank.get(slot, slot) for slot in batch.slots))

    def _rows(self, num_requests: int) -> int:
        """Returns the number of rows of the step that is compiled for this number of requests."""
        return next((rows for rows in self._limits.decode_rows if rows >= num_requests), num_requests)


def updated(mean: float | None, value: float, weight: float = _WEIGHT) -> float:
    """Returns a moving average after one more value, of which at most `_MAX_GROWTH` times the mean counts."""
    return value if mean is None else mean + weight * (min(value, _MAX_GROWTH * mean) - mean)


def _nearest(table: dict[int, float], size: int) -> float | None:
    """Returns the entry of the nearest size by ratio; None if there is none."""
    return table[min(tuple(table), key=lambda other: abs(math.log(other / size)))] if table else None


def _distance(kind: _Prefill, other: _Prefill) -> tuple[float, bool]:
    ratio = abs(math.log(other.tokens / kind.tokens))
    return ratio, other.samples != kind.samples
