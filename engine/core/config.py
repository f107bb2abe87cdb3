"""The engine's settings and what it reports about itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .errors import ConfigError
from .mesh import ONE_DEVICE, HostGroup, MeshShape

PREFILL_BLOCK: Final = 64
"""The absolute grid, in tokens, on which prompts are cut; states at its points don't depend on the cut."""

MAX_TOKENS: Final = 2**20
"""Maximum length of one token history. Longer ones are neither kept nor imported."""

MAX_PREFILL_ROWS: Final = 8
"""Prompts that are read in one step, and first tokens that are sampled in one, at most."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """
    Attributes:
      slots: requests that run at the same time; None takes what memory allows (at least 8).
      max_queue: requests that may wait for a slot.
      max_queue_tokens: that their prompts may have together; None is no limit.
      tenants: how many share slots and queue; where there are several, none may fill the queue.
      reserved_slots: slots kept free for tenants with nothing running; None keeps one where there are several tenants.
      prefill_chunk: the most prompt tokens read in one step, a multiple of `PREFILL_BLOCK`.
      dtype: "float32", "bfloat16", or "auto" for the checkpoint's own.
      quantize: "int8" keeps the matrices so and computes their products so; all else stays in `dtype`.
      seed: makes random weights; requests bring their own seeds.
      state_cache_gib: host memory for states of prompts that were read; None takes an eighth of what is available, 0
        remembers nothing.
      state_cache_inexact: also what generating has left is gone on from, though reading the same tokens gives others in
        the last bits.
      state_cache_dir: a folder in which they outlive the process; None keeps none.
      state_cache_dir_gib: the most that may lie there of this model's.
      state_key: signs states that are saved as files; then no others are taken. None signs nothing.
      compile_cache: a folder in which compiled programs are kept from one start to the next; None keeps none.
      shards: what the model and its slots are cut into, one for each device; None takes all devices there are.
      hosts: the machines that the devices belong to, where they are several.
    """

    slots: int | None = None
    max_queue: int = 256
    max_queue_tokens: int | None = None
    tenants: int = 1
    reserved_slots: int | None = None
    prefill_chunk: int = 512
    dtype: str = "auto"
    seed: int = 0
    quantize: str | None = None
    state_cache_gib: float | None = None
    state_cache_inexact: bool = False
    state_cache_dir: Path | None = None
    state_cache_dir_gib: float = 16.0
    state_key: bytes | None = field(default=None, repr=False)
    compile_cache: Path | None = None
    shards: MeshShape | None = ONE_DEVICE
    hosts: HostGroup | None = None

    def __post_init__(self) -> None:
        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"slots must be at least 1, not {self.slots}")
        if self.max_queue < 1:
            raise ConfigError(f"max_queue must be at least 1, not {self.max_queue}")
        if self.max_queue_tokens is not None and self.max_queue_tokens < 1:
            raise ConfigError(f"max_queue_tokens must be at least 1, not {self.max_queue_tokens}")
        if self.reserved_slots is not None and self.reserved_slots < 0:
            raise ConfigError(f"reserved_slots must be at least 0, got {self.reserved_slots}")
        if self.slots is not None and (self.reserved_slots or 0) >= self.slots:
            raise ConfigError(f"reserved_slots must be less than slots ({self.slots}), got {self.reserved_slots}")
        if self.prefill_chunk < PREFILL_BLOCK or self.prefill_chunk % PREFILL_BLOCK:
            raise ConfigError(f"prefill_chunk must be a multiple of {PREFILL_BLOCK}, not {self.prefill_chunk}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, not {self.dtype!r}")
        if self.state_cache_gib is not None and not 0 <= self.state_cache_gib < float("inf"):
            raise ConfigError(f"state_cache_gib must be at least 0, not {self.state_cache_gib}")
        if self.quantize not in (None, "int8"):
            raise ConfigError(f"quantize must be int8 or None, not {self.quantize!r}")


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How large a device step may be, in shapes that are compiled.

    Attributes:
      prefill_chunk: the most prompt tokens in one step.
      prefill_beside_decode: the same while more requests generate than wait for their prompts to be read; what a
        running request waits for is then at most this many. Both are `PREFILL_BLOCK` times a power of two.
      prefill_rows: the most prompts in one step.
      prefill_layer_slices: Number of steps for a chunk of one prompt with at most `PREFILL_BLOCK` tokens, each of which
        runs a slice of the layers, so that a decode step waits for one slice only. Other chunks take one step.
      decode_steps: the most tokens per request in one dispatch.
      decode_rows: the compiled numbers of slots, in rising order; a step reads the first so many slots.
      mask_words: of a token mask.
      slot_order: the slots, those to be taken first in front; empty is from 0 up.
      shard_rows: slots that follow one another and whose prompts are read by the same devices; the limits of prefill
        are for each such group. 0 is all of them.
    """

    prefill_chunk: int
    prefill_beside_decode: int
    prefill_rows: int = MAX_PREFILL_ROWS
    prefill_layer_slices: int = 1
    decode_steps: int = 1
    decode_rows: tuple[int, ...] = ()
    mask_words: int = 0
    slot_order: tuple[int, ...] = ()
    shard_rows: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The state cache at one moment.

    Attributes:
      budget, num_bytes: in bytes of host memory: what it may take, and what it holds.
      snapshots: states that can be resumed from.
      queries, hits, hit_tokens: prompts that were looked up, those that found a state, and tokens that this spared.
      evictions: states that made room for others.
      disk_bytes, disk_hits, disk_errors: of the tier on disk: what it holds, prompts for which it knew more than
        memory, and files that were broken or could not be written.
    """

    budget: int = 0
    num_bytes: int = 0
    snapshots: int = 0
    queries: int = 0
    hits: int = 0
    hit_tokens: int = 0
    evictions: int = 0
    disk_bytes: int = 0
    disk_hits: int = 0
    disk_errors: int = 0


STEP_TOKEN_BOUNDS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of the histogram of tokens per step; vLLM's."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One moment of the engine, taken between two steps.

    Attributes:
      num_waiting, num_running: requests without and with a slot.
      waiting_tokens: of the prompts of those that wait.
      slots: how many there are; `num_running` of them are used.
      prompt_tokens, generated_tokens, steps: totals since the start.
      step_tokens: how many steps worked on at most so many tokens, by `STEP_TOKEN_BOUNDS`; the last entry is of more.
      compiles_since_ready: XLA compilations after warm-up; anything but 0 is a bug.
      restore_seconds: spent on putting remembered states into slots.
      cache: of remembered states.
    """

    num_waiting: int = 0
    num_running: int = 0
    waiting_tokens: int = 0
    slots: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)
    compiles_since_ready: int = 0
    restore_seconds: float = 0.0
    cache: CacheStats = CacheStats()
