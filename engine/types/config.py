"""Settings of the engine, of its mesh, drafts and simulated device; limits of its steps, and its statistics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from .errors import ConfigError

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

DATA: Final = "data"
"""Mesh axis along which slots are sharded."""

MODEL: Final = "model"
"""Mesh axis along which matrices are sharded."""


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Sizes of the mesh's axes.

    Attributes:
      data: Number of groups of devices, each with its own slots.
      model: Number of devices in a group, over which every matrix is sharded.
    """

    data: int = 1
    model: int = 1

    @property
    def count(self) -> int:
        """Number of devices."""
        return self.data * self.model


ONE_DEVICE: Final = MeshShape()


@dataclass(frozen=True, slots=True)
class HostGroup:
    """Processes that serve one model together.

    Attributes:
      leader: Name or address of the first host.
      port: Port on which hosts find each other; the leader also takes the next one.
      index: Index of this host; 0 leads.
    """

    leader: str
    port: int
    count: int
    index: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"num_hosts must be at least 2 with a coordinator, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"host_index must be from 0 to {self.count - 1}, not {self.index}")

    @property
    def is_leader(self) -> bool:
        """Whether this host serves and decides."""
        return self.index == 0


MAX_DRAFTS: Final = 31
"""Maximum number of drafted tokens of a row and round: with the row's last token, they fill the largest round."""

MAX_MATCH: Final = 16
"""Maximum number of tokens that are compared to find a match."""

HISTORY: Final = 4096
"""Number of last tokens of a request, its prompt and its prediction included, in which drafts are looked up."""

MAX_PREDICTION: Final = 3072
"""Maximum number of tokens of a prediction in which drafts are looked up. The rest of `HISTORY` has last tokens of the
prompt at first. As output overwrites the oldest tokens, a prediction is lost only once the output is some 1,000 tokens
longer than the part of the prediction that it has reached."""

NO_DRAFTS: Final = "speculative_config works on one CPU device only; leave it out, or set it to null"
"""Error of devices that draft no tokens."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Settings of drafts that continue an earlier occurrence of a request's last tokens (n-grams).

    Attributes:
      num_tokens: Maximum number of drafted tokens of a request in one round.
      min_match: Number of last tokens that must occur earlier in the request.
      max_match: Maximum number of last tokens of a match that are compared.

    Raises:
      ConfigError: A number is out of range.
    """

    num_tokens: int = 7
    min_match: int = 2
    max_match: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MAX_DRAFTS:
            raise ConfigError(f"num_speculative_tokens must be from 1 to {MAX_DRAFTS}, got {self.num_tokens}")
        if not 1 <= self.min_match <= self.max_match:
            raise ConfigError(
                f"prompt_lookup_min must be from 1 to prompt_lookup_max ({self.max_match}), got {self.min_match}"
            )
        if self.max_match > MAX_MATCH:
            raise ConfigError(f"prompt_lookup_max must be at most {MAX_MATCH}, got {self.max_match}")


def history_bytes(speculation: Speculation | None) -> int:
    """Returns the bytes of the last tokens that the device has of each slot; 0 without speculation."""
    return 0 if speculation is None else 4 * HISTORY


SIMULATED: Final = "simulated"
"""Marks everything that a simulated device produced: model ids, states, files and entries of stores."""


class FaultKind(StrEnum):
    """Faults of a simulated device: a step never ends, all take ten times as long, or the device is lost."""

    STUCK = "stuck"
    SLOW = "slow"
    DYING = "dying"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that begins after a number of steps.

    Attributes:
      after: Number of steps before it.
    """

    kind: FaultKind
    after: int

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Parses a fault such as "stuck@1000".

        Raises:
          ValueError: The text is not a fault.
        """
        kind, _, after = text.partition("@")
        if not after.isdecimal():
            raise ValueError("the number of steps is missing")
        return cls(FaultKind(kind), int(after))


@dataclass(frozen=True, slots=True)
class Simulation:
    """A device with the timing of a real one, which runs no model.

    Attributes:
      text: The settings as the user wrote them.
      device: Name of the device whose memory and roofline are used; see `roost.engine.capacity.roofline.DEVICES`.
      efficiency: Share of the roofline's speed that steps reach; None uses the device's, from
        `roost.engine.simulation`.
      step_ms: Milliseconds of a decode step; None uses the roofline's.
      prefill_tokens_per_s: Prompt tokens per second; None uses the roofline's.
      jitter: Maximum relative deviation of a step's duration.
      output_tokens: Mean length of texts, whose lengths have a geometric distribution.
      fault: Fault of the device; None if it has none.
    """

    text: str
    device: str = "v5e"
    efficiency: float | None = None
    step_ms: float | None = None
    prefill_tokens_per_s: float | None = None
    jitter: float = 0.0
    output_tokens: int = 200
    fault: Fault | None = None

    @classmethod
    def parse(cls, text: str) -> "Simulation":
        """Parses settings such as "v6e", "v5e,jitter=0.1" or "step_ms=9.8,prefill_tokens_per_s=40000".

        Raises:
          ConfigError: An option is unknown, or its value is invalid.
        """
        first, *rest = (part.strip() for part in text.split(","))
        if "=" not in first:
            return cls(text, device=first, **dict(map(_option, rest)))
        return cls(text, **dict(map(_option, (first, *rest))))


def _option(part: str) -> tuple[str, Any]:
    """Parses one option.

    Raises:
      ConfigError: The option is unknown, or its value is invalid.
    """
    name, _, value = part.partition("=")
    if name not in _OPTIONS:
        raise ConfigError(f"simulate takes a device and {', '.join(_OPTIONS)}, not {part!r}")
    parse, accepts, expected = _OPTIONS[name]
    try:
        if accepts(parsed := parse(value)):
            return name, parsed
    except ValueError:
        pass
    raise ConfigError(f"simulate takes {name}={expected}, not {part!r}")


_OPTIONS: Final[Mapping[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]]] = {
    "efficiency": (float, lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "step_ms": (float, lambda value: 0 < value < float("inf"), "a positive number"),
    "prefill_tokens_per_s": (float, lambda value: 0 < value < float("inf"), "a positive number"),
    "jitter": (float, lambda value: 0 <= value < 1, "a number from 0, below 1"),
    "output_tokens": (int, lambda value: value >= 1, "a positive integer"),
    "fault": (Fault.parse, lambda _: True, f"{'|'.join(FaultKind)}@STEPS"),
}
"""Options by name: function that parses the value, whether the result is valid, and a description of valid values."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of the engine.

    Attributes:
      slots: Number of requests that run at the same time; None means as many as memory permits, at least 8.
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
        for name, least in (*((name, 1) for name in _COUNTS), *((name, 0) for name in _AMOUNTS)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if self.slots is not None and (self.reserved_slots or 0) >= self.slots:
            raise ConfigError(f"reserved_slots must be less than slots ({self.slots}), got {self.reserved_slots}")
        if self.prefill_chunk < PREFILL_BLOCK or self.prefill_chunk % PREFILL_BLOCK:
            raise ConfigError(f"prefill_chunk must be a multiple of {PREFILL_BLOCK}, got {self.prefill_chunk}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, got {self.dtype!r}")
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


_COUNTS: Final = ("slots", "max_queue", "max_queue_tokens")
_AMOUNTS: Final = ("reserved_slots", "itl_target_ms", "state_cache_gib")


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
      prefill_shapes: Numbers of prompts and of tokens of each that steps have room for; empty for any up to
        `prefill_chunk` tokens together.
      prefill_layer_slices: Number of steps of a prefill batch. Each step runs a slice of the layers, so that a
        decode step waits for only one slice.
      decode_steps: Maximum number of tokens per request and dispatch.
      decode_rows: Numbers of rows between which decode steps differ in time, ascending; a step runs the first slots in
        the order of `slot_order`.
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
    prefill_shapes: tuple[tuple[int, int], ...] = ()
    prefill_layer_slices: int = 1
    decode_steps: int = 1
    decode_rows: tuple[int, ...] = ()
    idle_rows_per_move: int = 0
    mask_words: int = 0
    slot_order: tuple[int, ...] = ()
    shard_rows: int = 0
    itl_target_s: float | None = None
    speculation: Speculation | None = None

    def rows_of(self, length: int) -> int:
        """Returns the maximum number of prompts of a step with chunks of up to `length` tokens."""
        if not self.prefill_shapes:
            return self.prefill_rows
        return max((rows for rows, most in self.prefill_shapes if most >= length), default=1)


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


class PredictionUse(NamedTuple):
    """Tokens of a prediction that drafts had, as bits: bit i is the token at index i. Each token counts once.

    Attributes:
      drafted: Tokens that were drafted.
      accepted: Tokens that were drafted and accepted at least once.
    """

    drafted: int = 0
    accepted: int = 0

    @property
    def num_accepted(self) -> int:
        """Number of accepted tokens."""
        return self.accepted.bit_count()

    @property
    def num_rejected(self) -> int:
        """Number of tokens that were drafted, but never accepted."""
        return (self.drafted & ~self.accepted).bit_count()

    def plus(self, other: "PredictionUse") -> "PredictionUse":
        """Returns the use by the drafts of both."""
        return PredictionUse(self.drafted | other.drafted, self.accepted | other.accepted)


UNUSED_PREDICTION: Final = PredictionUse()
"""Use of a prediction of which no token was drafted."""


class DraftCounts(NamedTuple):
    """Numbers of drafted and of accepted tokens.

    Attributes:
      drafts: Number of rounds with drafted tokens, for each request separately.
      tokens: Number of drafted tokens.
      accepted: Number of accepted tokens by their place in the draft, for every place.
    """

    drafts: int = 0
    tokens: int = 0
    accepted: tuple[int, ...] = ()

    def plus(self, other: "DraftCounts") -> "DraftCounts":
        """Returns the sums."""
        accepted = tuple(a + b for a, b in zip(self.accepted, other.accepted, strict=True))
        return DraftCounts(self.drafts + other.drafts, self.tokens + other.tokens, accepted)


STEP_TOKEN_BOUNDS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of the histogram of tokens per step, the same as in vLLM."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics of the engine.

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
      step_tokens: Number of steps by their tokens: a bucket per bound in `STEP_TOKEN_BOUNDS`, and one for larger steps.
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
