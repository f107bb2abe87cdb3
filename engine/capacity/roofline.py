"""Memory, slots and upper bounds of speed of a model on a device, computed from datasheets and shapes alone.

A device holds the weights, its share of the slots, the code of all programs, arrays that live from one program to the
next, and the temporaries of the program that runs. An estimate adds them up from shapes and from constants measured on
compiled programs. Then a start and `roost plan --verify` compile all programs, and if one needs more than there is,
slots are taken away and all programs are compiled again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, Final, Protocol

import jax
import jax.numpy as jnp

from ..devices.platform import MIN_SLOTS, TPU
from ..model.config import ModelConfig, Params
from ..model.griffin import abstract_model
from ..model.layer_kinds import layer_matrices
from ..model.sharding import Collectives, bytes_per_device, shard_params
from ..model.state import state_bytes, window_bytes
from ..sampling.sampler import zero_sampling_state, zero_token_memory
from ..types.config import (
    CPU_ONLY,
    MAX_PREFILL_ROWS,
    NO_DRAFTS,
    ONE_DEVICE,
    QUANTIZATIONS,
    EngineConfig,
    MeshShape,
    Speculation,
    history_bytes,
)
from ..types.errors import ConfigError
from ..types.host_memory import available_memory, shown_bytes
from ..worker.served import Devices, OpenWeights, Served

FREE_SHARE: Final = 0.08
"""Share of memory left to programs and their temporaries on devices whose programs were not compiled."""

PREFILL_CHUNK: Final = EngineConfig().prefill_chunk
"""Maximum number of tokens of a prefill step, unless the settings override it."""

_MAX_MESH: Final = 64
"""Maximum number of model shards of a proposed mesh."""

_MAX_DEVICES: Final = 3
"""Maximum number of other devices that are proposed."""

_TWO_CORES: Final = 0.58
"""Share of two cores' rates if the MLP and the attention of a decode step run on one core, and the rest on both: by the
shapes of 2B and 9B, 0.57 to 0.59 in prefill, and 0.44 to 0.64 in decode, by the number of slots."""

_LOADING_MARGIN: Final = 1.15
_DTYPES: Final = {2: "bfloat16", 4: "float32"}


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak rates of one chip, from the vendor's datasheet, without structured sparsity.

    Attributes:
      bytes_per_second: Bandwidth of the main memory.
      flops_per_second: Floating-point operations per second of bfloat16 matrix products.
      int8_per_second: Operations per second of int8 matrix products.
      link_bytes_per_second: Bytes per second that a chip sends to its neighbours in a ring: over two links of a TPU,
        over all of a GPU's NVLinks, or over PCIe.
    """

    bytes_per_second: float
    flops_per_second: float
    int8_per_second: float
    link_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Device:
    """One chip, or this machine's CPU.

    Attributes:
      name: Name for command lines.
      memory_bytes: Size of the main memory, by the datasheet.
      peak: Peak rates; None if no datasheet has them.
      kinds: Parts of JAX's names of the device.
      hbm_bytes: Memory that the device's compiler gives to programs and their arrays; None if it is unknown.
      reach: Share of the rates that a step can reach; less than 1 for chips of two cores, since kernels that walk their
        grid in order, such as the MLP's, use one of them.
    """

    name: str
    memory_bytes: int
    peak: Peak | None = None
    kinds: tuple[str, ...] = ()
    hbm_bytes: int | None = None
    reach: float = 1.0


DEVICES: Final[Mapping[str, Device]] = {
    device.name: device
    for device in (
        Device("v4", 32 * 10**9, Peak(1228e9, 275e12, 275e12, 100e9), ("TPU v4",), reach=_TWO_CORES),
        Device("v5e", 16 * 10**9, Peak(819e9, 197e12, 394e12, 100e9), ("TPU v5 lite", "TPU v5e"), int(15.75 * 2**30)),
        Device(
            "v5p", 95 * 10**9, Peak(2765e9, 459e12, 918e12, 200e9), ("TPU v5",), int(95.73 * 2**30), reach=_TWO_CORES
        ),
        Device("v6e", 32 * 10**9, Peak(1640e9, 918e12, 1836e12, 200e9), ("TPU v6",), int(31.24 * 2**30)),
        Device("v7x", 96 * 10**9, Peak(3690e9, 1153.5e12, 1153.5e12, 200e9), ("TPU7x",), int(94.74 * 2**30)),
        Device("a100-40gb", 40 * 10**9, Peak(1555e9, 312e12, 624e12, 300e9), ("A100-SXM4-40GB", "A100-PCIE-40GB")),
        Device("a100", 80 * 10**9, Peak(2039e9, 312e12, 624e12, 300e9), ("A100",)),
        Device("h100-pcie", 80 * 10**9, Peak(2000e9, 756e12, 1513e12, 64e9), ("H100 PCIe",)),
        Device("h100-nvl", 94 * 10**9, Peak(3900e9, 835e12, 1671e12, 300e9), ("H100 NVL",)),
        Device("h100", 80 * 10**9, Peak(3350e9, 989e12, 1979e12, 450e9), ("H100",)),
        Device("gh200", 96 * 10**9, Peak(4000e9, 990e12, 1979e12, 450e9), ("GH200",)),
        Device("h200", 141 * 10**9, Peak(4800e9, 989e12, 1979e12, 450e9), ("H200",)),
        Device("l40s", 48 * 10**9, Peak(864e9, 362e12, 733e12, 32e9), ("L40S",)),
        Device("l40", 48 * 10**9, Peak(864e9, 181e12, 362e12, 32e9), ("L40",)),
        Device("l4", 24 * 10**9, Peak(300e9, 121e12, 242e12, 32e9), ("NVIDIA L4",)),
        Device("a6000", 48 * 10**9, Peak(768e9, 154.8e12, 309.7e12, 56e9), ("RTX A6000",)),
        Device("rtx4090", 24 * 10**9, Peak(1008e9, 165.2e12, 660.6e12, 32e9), ("RTX 4090",)),
    )
}
"""Known devices: TPUs from Google Cloud's documentation; GPUs from NVIDIA's datasheets (the SXM modules of A100, H100
and H200 where the name says no other, the RTX A6000 and the GeForce RTX 4090). Links count in one direction. A v7x is
one of the two devices of a chip, and has no products in int8. JAX's name for a device means the first one that it
matches."""

CPU: Final = "cpu"


def device_named(kind: str) -> str | None:
    """Returns the name of the device that JAX calls `kind`, such as "v5e" for "TPU v5 lite"; None if it is unknown."""
    return next((device.name for device in DEVICES.values() if any(part in kind for part in device.kinds)), None)


def find_device(name: str) -> Device:
    """Returns the device of this name; "cpu" has the memory that is currently available on this machine.

    Raises:
      ConfigError: The device is unknown.
    """
    if name == CPU:
        return Device(CPU, available_memory())
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is not known; give one of {', '.join(DEVICES)} or {CPU}")
    return DEVICES[name]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Memory and upper bounds of speed of a model on one device, or on a mesh of devices of one kind.

    Attributes:
      shards: Mesh over which the model and its slots are sharded.
      weight_bytes: Bytes of the parameters on each device, with their padding.
      slot_bytes: Bytes of one request's state, with its padding. Each device holds its share of the slots.
      written_bytes: Bytes of a slot's state that every step writes: all except the attention windows.
      slots: Number of requests that fit in addition to the weights, on all devices together; 0 if the weights do not
        fit.
      quantize: Name of the matrices' format, such as "int8"; None if they are not quantised.
      dtype_bytes: Bytes of an activation.
      speculation: Settings of drafted tokens; None drafts none.
    """

    config: ModelConfig
    device: Device
    shards: MeshShape
    weight_bytes: int
    slot_bytes: int
    written_bytes: int
    slots: int
    quantize: str | None
    dtype_bytes: int
    speculation: Speculation | None = None

    def slowed(self, ratio: float) -> "Roofline":
        """Returns the same on devices whose rates are lower by a ratio."""
        assert self.device.peak is not None
        rates = (rate / ratio for rate in astuple(self.device.peak))
        return replace(self, device=replace(self.device, peak=Peak(*rates)))

    def memory_bytes(self, slots: int) -> int:
        """Returns the bytes of the weights and of the share of `slots` slots on each device."""
        return self.weight_bytes + self._share(slots) * self.slot_bytes

    @property
    def loading_bytes(self) -> int:
        """Maximum bytes of host memory to load one device's weights, without mapped files (benchmarks/loading.md).

        It is the size of the weights, or of the largest tensor in float32 if that is more, with a margin for pieces in
        flight.
        """
        largest = 4 * self.config.vocab_size * self.config.width
        return int(_LOADING_MARGIN * max(self.weight_bytes, largest))

    def decode_tokens_per_second(self, slots: int) -> float:
        """Returns the upper bound of decode throughput with `slots` running requests.

        Each step reads the weights and full states, writes the changed parts, and computes every product. Then shards
        along `model` sum their parts; see `all_reduce_seconds`.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        return slots / self.decode_seconds(slots)

    def decode_seconds(self, slots: int, window_tokens: int | None = None) -> float:
        """Returns the lower bound of the duration of a decode step.

        Args:
          slots: Number of slots that the step takes.
          window_tokens: Total tokens in their attention windows, the only part of the windows that is read; None means
            full windows.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        share, window = self._share(slots), self.config.window
        filled = 1.0 if window_tokens is None else window_tokens / (slots * window)
        windows = share * (self.slot_bytes - self.written_bytes) * filled
        read = self.weight_bytes + windows + 2 * share * self.written_bytes
        return self._seconds(read, slots, logits=True) + self.all_reduce_seconds(slots)

    def prefill_seconds(self, tokens: int) -> float:
        """Returns the lower bound of the duration of a prefill step without logits.

        Each step reads the weights, except the embedding, and computes every product.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        read = self.weight_bytes * (1 - self._embedding_share)
        return self._seconds(read, tokens, logits=False) + self.all_reduce_seconds(tokens)

    def logits_seconds(self) -> float:
        """Returns the lower bound of the duration of computing the logits of a few rows: reading the embedding.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        return self.weight_bytes * self._embedding_share / self._peak.bytes_per_second

    def prefill_tokens_per_second(self) -> float:
        """Returns the upper bound of prefill throughput by computation; only a prompt's last token has logits."""
        return 1 / (self._seconds(0, 1, logits=False) + self.all_reduce_seconds(1))

    def all_reduce_seconds(self, tokens: int) -> float:
        """Returns the lower bound of the time in which shards along `model` sum their parts; 0 without such shards.

        Every layer sums the outputs of its two blocks, and a step sums the embeddings. The next operation waits for
        each sum. In a ring of M chips, a chip sends 2 (M - 1) / M of a sum's bytes.

        Args:
          tokens: Number of tokens of a step, on all data shards together.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        size = tokens / self.shards.data * self.config.width * self.dtype_bytes
        sent = 2 * (self.shards.model - 1) / self.shards.model * size
        return (2 * self.config.depth + 1) * sent / self._peak.link_bytes_per_second

    @property
    def _peak(self) -> Peak:
        if self.device.peak is None:
            raise ValueError("the device's peak rates are unknown")
        return self.device.peak

    @property
    def _embedding_share(self) -> float:
        """Share of the embedding in the parameters."""
        return self.config.vocab_size * self.config.width / _num_parameters(self.config)

    def _share(self, slots: int) -> int:
        return -(-slots // self.shards.count)

    def _seconds(self, num_bytes: float, tokens: float, *, logits: bool) -> float:
        """Returns the lower bound of the duration of a step on one device.

        Each parameter takes two operations, with the embedding as the logits' matrix. Attention takes further ones.

        Args:
          num_bytes: Bytes of main memory that are read or written.
          tokens: Number of tokens on all devices, each of which sees a full window.
          logits: Whether they have logits.
        """
        config, peak = self.config, self._peak
        matrices, parameters = _num_quantised(config), _num_parameters(config)
        products = 2 * (matrices if logits else matrices - config.vocab_size * config.width)
        attention = 4 * config.block_types.count("attention") * config.width * (config.window + 1)
        others = 2 * (parameters - matrices) + attention
        speed = peak.int8_per_second if self.quantize else peak.flops_per_second
        computed = tokens / self.shards.count * (products / speed + others / peak.flops_per_second)
        return max(num_bytes / peak.bytes_per_second, computed) / self.device.reach


def compute_roofline(
    config: ModelConfig,
    device: Device,
    dtype_bytes: int,
    *,
    quantize: str | None = None,
    shards: MeshShape = ONE_DEVICE,
    chunk: int = PREFILL_CHUNK,
    speculation: Speculation | None = None,
) -> Roofline:
    """Returns the roofline of a model on a device, or on a mesh of devices of its kind.

    Args:
      dtype_bytes: Bytes of an activation, and of a weight that is not int8: 2 or 4.
      quantize: Name of the matrices' format, such as "int8"; None if they are not quantised.
      shards: Mesh over which the model and its slots are sharded.
      chunk: Maximum number of tokens of a prefill step.
      speculation: Settings of drafted tokens; None drafts none.

    Raises:
      ConfigError: The device has no kernels for the matrices' format, or drafts no tokens, or the format does not take
        the model's sizes.
    """
    if quantize in CPU_ONLY and device.peak is not None:
        raise ConfigError(f"quantize {quantize} is for CPUs alone; use int8")
    if speculation is not None and device.peak is not None:
        raise ConfigError(NO_DRAFTS)
    params = _unsharded_params(config, _DTYPES[dtype_bytes], quantize)
    weights = bytes_per_device(*shard_params(params, config, shards), shards)
    whole = state_bytes(config, dtype_bytes, shards.model) + history_bytes(speculation)
    written = whole - window_bytes(config, dtype_bytes)
    if device.hbm_bytes is None:
        rows = max(0, int(((1 - FREE_SHARE) * device.memory_bytes - weights) // whole))
    else:
        devices = Devices(TPU, Collectives(shards.data, shards.model))
        served = Served(config, EngineConfig(prefill_chunk=chunk), devices, jnp.dtype(_DTYPES[dtype_bytes]))
        rows = memory_model(served, device.hbm_bytes, weights, is_quantized=quantize is not None).rows
    return Roofline(
        config, device, shards, weights, whole, written, shards.count * rows, quantize, dtype_bytes, speculation
    )


@cache
def _unsharded_params(config: ModelConfig, dtype: str, matrix_dtype: str | None) -> Params:
    """Returns the shapes of all parameters, unsharded; tracing them takes a second, and a mesh changes none of them."""
    matrices = None if matrix_dtype is None else jnp.dtype(matrix_dtype)
    return abstract_model(config, jnp.dtype(dtype), matrix_dtype=matrices)[1]


def setups_that_fit(of: Roofline) -> list[Roofline]:
    """Returns rooflines that differ from `of` in one value, and fit the model and a slot.

    If they exist, these are: bfloat16 instead of float32, weights in int8 or else, on a CPU, in int4, the smallest mesh
    with more model shards, and the known devices with the least memory.
    """
    is_cpu, model = of.device.name == CPU, of.shards.model
    formats = [name for name in QUANTIZATIONS if is_cpu or name not in CPU_ONLY]
    smaller = formats if of.quantize is None else formats[QUANTIZATIONS.index(of.quantize) + 1 :]
    meshes = [2**power for power in range(1, _MAX_MESH.bit_length()) if 2**power > model and not is_cpu]
    others = sorted((device for device in DEVICES.values() if device != of.device), key=lambda each: each.memory_bytes)
    ways: tuple[tuple[int, Sequence[Mapping[str, Any]]], ...] = (
        (1, [{"dtype_bytes": 2}] if of.dtype_bytes == 4 else []),
        (1, [{"quantize": name} for name in smaller]),
        (1, [{"shards": MeshShape(of.shards.data, count)} for count in meshes]),
        (_MAX_DEVICES, [{"device": device} for device in others]),
    )
    return [found for count, changes in ways for found in islice(_fitting(of, changes), count)]


def _fitting(of: Roofline, changes: Iterable[Mapping[str, Any]]) -> Iterator[Roofline]:
    names = ("config", "device", "dtype_bytes", "quantize", "shards", "speculation")
    for change in changes:
        try:
            found = compute_roofline(**{name: getattr(of, name) for name in names} | dict(change))
        except ConfigError:  # the device has no drafts, or the format of the matrices does not go with it or the model
            continue
        if found.slots:
            yield found


@cache  # since a plan computes the duration of thousands of steps
def _num_quantised(config: ModelConfig) -> int:
    """Returns the number of parameters in the matrices that int8 quantises."""
    return config.vocab_size * config.width + sum(outputs * inputs for outputs, inputs in layer_matrices(config))


@cache
def _num_parameters(config: ModelConfig) -> int:
    return config.num_parameters


MAX_REDUCTIONS: Final = 2
"""Maximum number of times that slots are taken away because a program did not fit."""

_ROW_TILE: Final = 8
"""Rows that a device computes together; numbers of slots are multiples of it, on each device."""

_CODE_BYTES: Final = 390_000
"""Bytes of code per layer of one program, on average over the programs of a TPU."""

_RESERVED_PROGRAMS: Final = 5
"""Number of programs that are counted beyond the compiled ones. Without them, estimates are a few slots larger: 1,112
for 2B with windows in int8 on a v5e, which do not fit."""

_OTHER_CODE_BYTES: Final = 32 * 2**20
"""Bytes of code of the programs without layers."""

_GATHERED_STATES: Final = 2
"""Number of copies of the prompts' states among the temporaries of a prefill step."""

_MLP_ACTIVATIONS: Final = 4
"""Number of activations of the MLP's width per token among the temporaries of a prefill step."""

_LOGITS_ROWS: Final = 130
"""Rows of float32 logits among the temporaries of a decode step of any number of rows."""

_EXCHANGED_LOGITS_ROWS: Final = 136
"""Further such rows where devices along `model` exchange their logits, which also takes each row's logits once more."""

_INT8_BYTES: Final = 12
"""Bytes per row and unit of the MLP's width that int8 products take among the temporaries of a decode step."""

_FIXED_BYTES: Final = 64 * 2**20
"""Bytes of temporaries that depend neither on slots nor on the model, and of results that wait for the host."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Memory of one device as a function of its number of rows.

    Attributes:
      limit_bytes: Memory of the device for programs and their arrays.
      row_bytes: State of one row, decoding state included.
      decode_bytes: Temporaries of a decode step of any number of rows.
      decode_row_bytes: Temporaries of a decode step per row.
      prefill_bytes: Temporaries of the largest prefill step.
      code_bytes: Code of all programs.
    """

    limit_bytes: int
    weight_bytes: int
    row_bytes: int
    decode_bytes: int
    decode_row_bytes: int
    prefill_bytes: int
    code_bytes: int

    @property
    def free_bytes(self) -> int:
        """Memory that is left for rows and temporaries."""
        return self.limit_bytes - self.weight_bytes - self.code_bytes - _FIXED_BYTES

    @property
    def rows(self) -> int:
        """Maximum number of rows that leaves room for all temporaries of programs; whole row tiles if it is large."""
        decode = (self.free_bytes - self.decode_bytes) // (self.row_bytes + self.decode_row_bytes)
        prefill = (self.free_bytes - self.prefill_bytes) // self.row_bytes
        return _whole_tiles(max(0, min(decode, prefill)))


def memory_model(served: Served, limit_bytes: int, weight_bytes: int, *, is_quantized: bool) -> MemoryModel:
    """Returns the memory of a device that serves a model.

    Args:
      served: The model; its number of slots is not read.
      limit_bytes: Memory of the device for programs and their arrays.
      is_quantized: Whether the matrices are int8.
    """
    config, platform, shards = served.config, served.devices.platform, served.devices.shards
    dtype_bytes, chunk = served.dtype.itemsize, served.settings.prefill_chunk
    model_rows = state_bytes(config, dtype_bytes, shards.model)
    logits = 4 * config.vocab_size
    int8 = _INT8_BYTES * config.mlp_width if is_quantized else 0
    is_exchanged = shards.model > 1
    states = _GATHERED_STATES * MAX_PREFILL_ROWS * model_rows
    activations = _MLP_ACTIVATIONS * chunk * config.mlp_width * dtype_bytes // shards.model
    num_programs = 1 + len(served.prefill_shapes) + _RESERVED_PROGRAMS
    memory = MemoryModel(
        limit_bytes,
        weight_bytes,
        row_bytes=model_rows + shards.model * (decoding_state_bytes(config.vocab_size) + config.width * dtype_bytes),
        decode_bytes=(_LOGITS_ROWS + is_exchanged * _EXCHANGED_LOGITS_ROWS) * logits,
        decode_row_bytes=int((platform.logits_per_row + is_exchanged) * logits) + int8,
        prefill_bytes=states + activations,
        code_bytes=num_programs * config.depth * _CODE_BYTES + _OTHER_CODE_BYTES,
    )
    num_parts = len(served.with_slots(memory.rows * shards.count).decode_rows) - 1
    return replace(memory, code_bytes=memory.code_bytes + num_parts * config.depth * _CODE_BYTES)


@cache
def decoding_state_bytes(vocab_size: int) -> int:
    """Returns the bytes of a slot without the model's state: sampling parameters, masks and recent tokens."""
    shapes = jax.eval_shape(lambda: (zero_sampling_state(1), zero_token_memory(1, vocab_size)))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def estimated_slots(memory: MemoryModel, shards: MeshShape) -> int:
    """Returns the estimated number of slots on all devices.

    Raises:
      ConfigError: Fewer than 8 slots fit.
    """
    slots = memory.rows * shards.count
    if slots < MIN_SLOTS:
        raise ConfigError(
            f"memory left for slots is {shown_bytes(max(memory.free_bytes, 0))} on each device and a slot takes "
            f"{shown_bytes(memory.row_bytes)}, so not even {MIN_SLOTS} fit; set slots to the number you want to try"
        )
    return slots


def _whole_tiles(rows: int) -> int:
    return rows // _ROW_TILE * _ROW_TILE or rows


def fewer_slots(slots: int, excess_bytes: int, row_bytes: int, shards: MeshShape) -> int:
    """Returns a number of slots that saves at least `excess_bytes` on each device.

    Raises:
      ConfigError: Fewer than 8 slots would be left.
    """
    rows = slots // shards.count - -(-excess_bytes // row_bytes)
    left = _whole_tiles(max(rows, 0)) * shards.count
    if left < MIN_SLOTS:
        raise ConfigError(
            f"with {slots:,} slots the programs need {shown_bytes(excess_bytes)} more memory than a device has, "
            f"and without it fewer than {MIN_SLOTS} are left"
        )
    return left


class Compiled(Protocol):
    """Programs for one number of slots."""

    def excess_bytes(self, limit_bytes: int) -> int:
        """Returns the bytes that the most demanding program needs beyond a device's memory; 0 if all programs fit."""


def fit_slots[Programs: Compiled](
    first: int,
    compile_for: Callable[[int], Programs],
    memory: MemoryModel,
    shards: MeshShape,
    agree: Callable[[int], int] = int,
) -> Programs:
    """Compiles programs for fewer and fewer slots until all fit.

    Args:
      first: Number of slots to begin with.
      compile_for: Function that compiles all programs for a number of slots.
      memory: Memory of a device, and of one slot less on a device that holds it.
      agree: Function that returns the smallest of all hosts' numbers.

    Raises:
      ConfigError: The programs do not fit after `MAX_REDUCTIONS` reductions.
    """
    slots = agree(first)
    for _ in range(MAX_REDUCTIONS + 1):
        compiled = compile_for(slots)
        excess = compiled.excess_bytes(memory.limit_bytes)
        wanted = fewer_slots(slots, excess, memory.row_bytes, shards) if excess else slots
        if (agreed := agree(wanted)) == slots:
            return compiled
        slots = agreed
    raise ConfigError(
        f"the model's programs do not fit with {slots:,} slots after {MAX_REDUCTIONS} reductions; set slots lower"
    )


def memory_of_served(weights: OpenWeights, limit_bytes: int) -> MemoryModel:
    """Returns the memory of a device that serves a model; see `memory_model`."""
    is_quantized = any(x.dtype == jnp.int8 for x in jax.tree.leaves(weights.served.params))
    return memory_model(weights.served, limit_bytes, weights.num_bytes, is_quantized=is_quantized)
