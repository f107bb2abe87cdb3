"""Settings of the engine, limits of its steps, and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from .errors import ConfigError
from .mesh import ONE_DEVICE, HostGroup, MeshShape
from .simulation import Simulation
from .speculation import DraftCounts, Speculation

Quantization = Literal["int8", "int4"]
"""Name of a format of quantised matrices: the dtype of its class in `roost.kernels.matrices.FORMATS`."""

QUANTIZATIONS: Final[tuple[str, ...]] = get_args(Quantization)
"""Names of the formats of quantised matrices, in descending order of their memory."""

CPU_ONLY: Final[tuple[str, ...]] = ("int4",)
"""Formats that TPUs and GPUs refuse."""

PREFILL_BLOCK: Final = 64
"""Tokens between two block boundaries. States at block boundaries don't depend on how a prompt is split into chunks."""

MAX_TOKENS: Final = 2**20
"""Maximum length of one token history. Longer ones are neither kept nor imported."""

MAX_PREFILL_ROWS: Final = 8
"""Maximum number of prompts that are prefilled in one step, and of first tokens that are sampled in one."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
      slots: Number of requests that run at the same time; None takes as many as memory permits, at least 8.
      max_queue: Maximum number of requests that wait for a slot.
      max_queue_tokens: Maximum number of prompt tokens that wait; None sets no limit.
      tenants: Number of tenants that share slots and queue. With more than one, none may fill the queue.
      reserved_slots: Number of slots kept free for tenants without a running request; None keeps one if there are
        several tenants.
      prefill_chunk: Maximum number of prompt tokens per prefill step, a multiple of `PREFILL_BLOCK`.
      itl_target_ms: Target for the inter-token latency of a request while prompts are prefilled, in milliseconds; 0
        stands for throughput, None for 2.9 decode steps.
      dtype: "float32", "bfloat16", or "auto" for the checkpoint's own.
      quantize: "int8" stores and multiplies matrices in int8; everything else keeps `dtype`. "int4", for CPUs, stores
        matrices in 4 bits, and the embedding in int8. None quantises nothing.
      kv_dtype: "int8" keeps keys and values of the attention window in int8, None in the dtype of the activations.
      seed: Seed of random weights; requests have separate seeds.
      state_cache_gib: Size of the prefix cache in host memory; None takes an eighth of the free memory, 0 disables it.
      state_cache_inexact: Whether the cache also keeps states from decoding. They differ in the last bits from states
        from prefilling the same tokens.
      state_cache_dir: Folder in which snapshots outlive the process; None keeps none.
      state_cache_dir_gib: Maximum size of this model's snapshots in the folder.
      state_key: Key that signs files of saved states; files without this signature are refused. None signs nothing.
      request_snapshots: Whether running requests can be snapshot, and continued after tokens generated before.
      compile_cache: Folder of compiled programs, reused by later starts; None keeps none.
      shards: Mesh over which the model and its slots are sharded; None takes all devices.
      hosts: Hosts that the devices belong to, if there is more than one.
      simulate: Device whose timing is simulated without running a model; None loads the model.
      without_kernels: Names of kernels that are replaced by XLA because they compute wrong results on this device.
      speculation: Settings of drafted tokens; None drafts none.
    """

    slots: int | None = None
    max_queue: int = 256
    max_queue_tokens: int | None = None
    tenants: int = 1
    reserved_slots: int | None = None
    prefill_chunk: int = 512
    itl_target_ms: float | None = None
    dtype: str = "auto"
    seed: int = 0
    quantize: str | None = None
    kv_dtype: str | None = None
    state_cache_gib: float | None = None
    state_cache_inexact: bool = False
    state_cache_dir: Path | None = None
    state_cache_dir_gib: float = 16.0
    state_key: bytes | None = field(default=None, repr=False)
    request_snapshots: bool = False
    compile_cache: Path | None = None
    shards: MeshShape | None = ONE_DEVICE
    hosts: HostGroup | None = None
    simulate: Simulation | None = None
    without_kernels: tuple[str, ...] = ()
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"slots must be at least 1, got {self.slots}")
        if self.max_queue < 1:
            raise ConfigError(f"max_queue must be at least 1, got {self.max_queue}")
        if self.max_queue_tokens is not None and self.max_queue_tokens < 1:
            raise ConfigError(f"max_queue_tokens must be at least 1, got {self.max_queue_tokens}")
        if self.reserved_slots is not None and self.reserved_slots < 0:
            raise ConfigError(f"reserved_slots must be at least 0, got {self.reserved_slots}")
        if self.slots is not None and (self.reserved_slots or 0) >= self.slots:
            raise ConfigError(f"reserved_slots must be less than slots ({self.slots}), got {self.reserved_slots}")
        if self.prefill_chunk < PREFILL_BLOCK or self.prefill_chunk % PREFILL_BLOCK:
            raise ConfigError(f"prefill_chunk must be a multiple of {PREFILL_BLOCK}, got {self.prefill_chunk}")
        if self.itl_target_ms is not None and not 0 <= self.itl_target_ms < float("inf"):
            raise ConfigError(f"itl_target_ms must be at least 0, got {self.itl_target_ms}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, got {self.dtype!r}")
        if self.state_cache_gib is not None and not 0 <= self.state_cache_gib < float("inf"):
            raise ConfigError(f"state_cache_gib must be at least 0, got {self.state_cache_gib}")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise ConfigError(f"quantize must be {', '.join(QUANTIZATIONS)} or None, got {self.quantize!r}")
        if self.kv_dtype not in (None, "int8"):
            raise ConfigError(f"kv_dtype must be int8 or None, got {self.kv_dtype!r}")
        if self.without_kernels:
            _check_kernels(self.without_kernels)
        if self.simulate is not None and self.hosts is not None:
            raise ConfigError("simulate takes one host; leave coordinator out")
        if self.simulate is not None and self.speculation is not None:
            raise ConfigError("simulate drafts no tokens; leave speculative_config out")


def _check_kernels(names: Sequence[str]) -> None:
    """Checks that some backend has a kernel of each name. The backends' modules take a second to import.

    Raises:
      ConfigError: No backend has a kernel of one of these names.
    """
    from ...kernels.backends import kernel_names

    known = kernel_names()
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"without_kernels must be of {', '.join(known)}, got {unknown[0]!r}")


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Maximum sizes of a device step, and the compiled shapes.

    Attributes:
      prefill_chunk: Maximum number of prompt tokens per step.
      prefill_rows: Maximum number of prompts per step.
      prefill_layer_slices: Number of steps of a prefill batch, each of which runs a slice of the layers, so that a
        decode step waits for only one slice.
      decode_steps: Maximum number of tokens per request and dispatch.
      decode_rows: Compiled numbers of rows, ascending; a step runs the first slots in the order of `slot_order`.
      idle_rows_per_move: Number of idle rows, summed over decode steps, that outweigh moving the state of a slot; 0 for
        moves that cost nothing.
      mask_words: Number of words of a token mask.
      slot_order: All slots in the order in which they are claimed; empty stands for ascending order.
      shard_rows: Number of consecutive slots whose prompts are prefilled by the same devices; the limits of prefill are
        per such group. 0 stands for all slots.
      itl_target_s: Target for the inter-token latency of a request during prefill, in seconds; 0 stands for throughput,
        None for a multiple of a decode step.
      speculation: Settings of drafted tokens; None drafts none.
    """

    prefill_chunk: int
    prefill_rows: int = MAX_PREFILL_ROWS
    prefill_layer_slices: int = 1
    decode_steps: int = 1
    decode_rows: tuple[int, ...] = ()
    idle_rows_per_move: int = 0
    mask_words: int = 0
    slot_order: tuple[int, ...] = ()
    shard_rows: int = 0
    itl_target_s: float | None = None
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Statistics of the prefix cache.

    Attributes:
      budget: Maximum size in host memory, in bytes.
      num_bytes: Size in host memory, in bytes.
      snapshots: Number of snapshots in memory.
      queries: Total prompts that were looked up.
      hits: Total prompts for which a snapshot was found.
      hit_tokens: Total prompt tokens that those snapshots cover.
      evictions: Total snapshots that made room for others.
      disk_bytes: Size of the files on disk, in bytes.
      disk_hits: Total prompts for which the disk had a longer snapshot than memory.
      disk_errors: Total files that were broken or could not be written.
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
"""Upper bounds of the histogram of tokens per step, the same as in vLLM."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics of the engine, taken between two steps.

    Attributes:
      num_waiting: Number of requests without a slot.
      num_running: Number of requests with a slot.
      num_preemptible_waiting: Number of preemptible requests without a slot, which `num_waiting` does not include.
      num_preemptible_slots: Number of slots that preemptible requests may get in addition to the other running
        requests.
      preemptions: Total times that a preemptible request yielded its slot.
      waiting_tokens: Total prompt tokens of waiting requests.
      prompt_tokens: Total prompt tokens that were prefilled.
      generated_tokens: Total generated tokens.
      steps: Total batches dispatched to the device.
      step_tokens: Number of steps by their tokens: a bucket for each of `STEP_TOKEN_BOUNDS`, and one for larger steps.
      compiles_since_ready: XLA compilations after warm-up; any number except 0 is a bug.
      restore_seconds: Total time spent on restoring snapshots.
      wait_seconds: Total time for which the host has waited for results of batches.
      cache: Statistics of the prefix cache.
      drafts: Total drafted and accepted tokens; None without speculation.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_preemptible_running: int = 0
    num_preemptible_waiting: int = 0
    num_preemptible_slots: int = 0
    preemptions: int = 0
    waiting_tokens: int = 0
    slots: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)
    compiles_since_ready: int = 0
    restore_seconds: float = 0.0
    wait_seconds: float = 0.0
    cache: CacheStats = CacheStats()
    drafts: DraftCounts | None = None
