"""Number of slots that fit in a device's memory: an estimate, then its correction by the compiled programs.

A device holds the weights, its share of the slots, the code of all programs, arrays that live from one program to the
next, and the temporaries of the program that runs. The estimate adds them up from shapes and from constants measured on
compiled programs. Then all programs are compiled, and if one needs more than there is, slots are taken away and all
programs are compiled again. Everything here is arithmetic; a start and
`roost plan --verify` both use it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Protocol

import jax
import jax.numpy as jnp

from ..devices.platform import MIN_SLOTS
from ..model.state import state_bytes
from ..sampling.logits_processors import zero_sampling_state, zero_token_memory
from ..types.config import MAX_PREFILL_ROWS, MeshShape
from ..types.errors import ConfigError
from ..types.host_memory import shown_bytes
from ..worker.served import OpenWeights, Served

MAX_REDUCTIONS: Final = 2
"""Maximum number of times that slots are taken away because a program did not fit."""

_ROW_TILE: Final = 8
"""Rows that a device computes together; numbers of slots are multiples of it, on each device."""

_CODE_BYTES: Final = 390_000
"""Bytes of code per layer of one program, on average over the programs of a TPU."""

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
    num_programs = 1 + len(served.prefill_shapes)
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
