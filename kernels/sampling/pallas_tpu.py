"""Sampler for TPUs: reads the logits once, 8 rows at a time, and does the rest in on-chip memory."""

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from . import NUMBERS, Choice, SamplingInputs
from .tiles import (
    LANES,
    ROWS,
    Column,
    IdLists,
    Tile,
    Tiles,
    Tokens,
    add_biases,
    apply_token_mask,
    copy_and_summarize,
    invert,
    keep_typical,
    kept_mass,
    lane_masks,
    mask_stop_ids,
    most_likely,
    num_chunks,
    padded_size,
    penalize,
    top_k_threshold,
    top_p_threshold,
    weigh,
)

_VMEM_LIMIT: Final = 48 * 2**20
"""Bytes of on-chip memory: enough for 8 rows of a vocabulary of 256,000 three times, once to be read ahead."""

_PASSES: Final = 32
"""Number of times that a block is read from on-chip memory if rows have a `top_p`."""


_ALL: Final = 0xFFFFFFFF
"""Word of a mask with all tokens."""


class _Need(IntEnum):
    """Work that a block may need, as a column of a table with a row per block."""

    ANYTHING = 0
    MOST_LIKELY = 1
    DRAW = 2
    TOP_K = 3
    TOP_P = 4
    TYPICAL_P = 5
    BIASES = 6
    PENALTIES = 7
    TOKEN_MASK = 8
    STOP_IDS = 9
    PROCESSORS = 10


def takes_fields(logits: Array, fields: Collection[str], inputs: Callable[[], SamplingInputs]) -> bool:
    """Returns whether the kernel reads all of these sampling fields."""
    return NUMBERS.issuperset(fields)


def choose_tokens_tpu(
    logits: Float32[Array, "R V"], fields: Collection[str], inputs: Callable[[], SamplingInputs]
) -> Choice:
    """Chooses a token for every row; see `choose_tokens`."""
    return sample_tpu(logits, inputs())


def sample_tpu(logits: Float32[Array, "R V"], inputs: SamplingInputs, *, interpret: Any = False) -> Choice:
    """Chooses a token for every row.

    Args:
      logits: The model's own.
      inputs: Everything else that decides about the tokens.
      interpret: See `pallas_call`.
    """
    count, vocab = logits.shape
    width = padded_size(vocab)
    logits = _with_rows(logits, max(count, ROWS))  # the kernel does not mind if its last block is cut
    if width > vocab:
        logits = jnp.pad(logits, ((0, 0), (0, width - vocab)), constant_values=-jnp.inf)
    inputs = jax.tree.map(lambda x: _with_rows(x, -(-count // ROWS) * ROWS), inputs)
    masks = (
        _lane_masks(inputs.in_prompt, inputs.is_penalized, vocab, 0),
        _lane_masks(inputs.allowed, inputs.is_masked, vocab, _ALL),
    )
    tokens, best = _call(logits, inputs, masks, _id_lists(inputs, vocab), interpret)
    return tokens[:count, 0], best[:count, 0]


def _call(
    logits: Float32[Array, "L V"],
    inputs: SamplingInputs,
    masks: tuple[UInt32[Array, "R M"], UInt32[Array, "R M"]],
    lists: IdLists,
    interpret: Any,
) -> tuple[Int32[Array, "R 1"], Float32[Array, "R 1"]]:
    """Runs the kernel for whole blocks of rows, of which the logits may lack the last ones."""
    rows, width, numbers = inputs.uniform.shape[0], logits.shape[1], _numbers(inputs)
    vectors = (logits, jnp.stack([*numbers.values()], axis=1), *masks)
    result = pl.BlockSpec((ROWS, 1), lambda block, _: (block, 0))
    return pl.pallas_call(
        partial(_kernel, tuple(numbers)),
        out_shape=(jax.ShapeDtypeStruct((rows, 1), jnp.int32), jax.ShapeDtypeStruct((rows, 1), jnp.float32)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows // ROWS,),
            in_specs=[*(_block(x, pltpu.VMEM) for x in vectors), IdLists(*(_block(x, pltpu.SMEM) for x in lists))],
            out_specs=(result, result),
            scratch_shapes=[
                pltpu.VMEM((ROWS, width), jnp.float32),
                pltpu.VMEM((num_chunks(width), ROWS, LANES), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=_VMEM_LIMIT),
        cost_estimate=pl.CostEstimate(
            flops=3 * _PASSES * rows * width, bytes_accessed=4 * rows * width, transcendentals=rows * width
        ),
        interpret=interpret,
        name="sample",
    )(_needs(inputs), *vectors, lists)


def _with_rows(x: Array, rows: int) -> Array:
    """Returns an array with at least this number of rows, where further ones repeat the last."""
    missing = rows - x.shape[0]
    return jnp.pad(x, [(0, missing), (0, 0)][: x.ndim], mode="edge") if missing > 0 else x


def _block(x: Array, space: Any) -> pl.BlockSpec:
    return pl.BlockSpec((ROWS, x.shape[1]), lambda block, _: (block, 0), memory_space=space)


def _numbers(inputs: SamplingInputs) -> Mapping[str, Float32[Array, " R"]]:
    """Returns the columns that the kernel reads, by name."""
    return {"is_random": inputs.is_random.astype(jnp.float32), "uniform": inputs.uniform, **inputs.numbers}


def _needs(inputs: SamplingInputs) -> Int32[Array, "blocks needs"]:
    """Returns 1 for work that some row of a block needs."""
    active, drawn, number = inputs.is_active, inputs.is_active & inputs.is_random, inputs.numbers
    biased, stopped = (jnp.any(ids >= 0, axis=1) for ids in (inputs.bias_ids, inputs.stop_ids))
    rows = {
        _Need.ANYTHING: active,
        _Need.MOST_LIKELY: active & ~inputs.is_random,
        _Need.DRAW: drawn,
        _Need.TOP_K: drawn & (number["top_k"] > 0),
        _Need.TOP_P: drawn & (number["top_p"] < 1),
        _Need.TYPICAL_P: drawn & (number["typical_p"] < 1),
        _Need.BIASES: biased,
        _Need.PENALTIES: inputs.is_penalized,
        _Need.TOKEN_MASK: inputs.is_masked,
        _Need.STOP_IDS: stopped,
        _Need.PROCESSORS: biased | inputs.is_penalized | inputs.is_masked | stopped,
    }
    table = jnp.stack([rows[need] for need in _Need], axis=1)
    return jnp.any(table.reshape(-1, ROWS, len(_Need)), axis=1).astype(jnp.int32)


def _id_lists(inputs: SamplingInputs, vocab: int) -> IdLists:
    """Returns lists of ids below `vocab`, with generated tokens sorted so that equal ones are neighbours."""
    bias_ids, stop_ids, recent = (
        jnp.where(ids < vocab, ids, -1) for ids in (inputs.bias_ids, inputs.stop_ids, inputs.recent)
    )
    recent = jnp.where(inputs.is_penalized[:, None], recent, -1)
    recent = jax.lax.cond(jnp.any(inputs.is_penalized), lambda: -jnp.sort(-recent, axis=1), lambda: recent)
    lengths = jnp.stack([_used_places(ids) for ids in (bias_ids, stop_ids, recent)], axis=1)
    return IdLists(bias_ids, inputs.biases, stop_ids, recent, lengths)


def _used_places(ids: Int32[Array, "R S"]) -> Int32[Array, " R"]:
    """Returns the number of places up to the last used one."""
    return jnp.max(jnp.where(ids >= 0, jnp.arange(1, ids.shape[1] + 1, dtype=jnp.int32), 0), axis=1)


def _lane_masks(words: UInt32[Array, "R W"], rows: Bool[Array, " R"], vocab: int, neutral: int) -> UInt32[Array, "R M"]:
    """Returns lane masks of some rows, and neutral words of the others."""
    shape = jax.eval_shape(lambda: lane_masks(words, vocab)).shape
    unused = jnp.full(shape, neutral, jnp.uint32)
    return jax.lax.cond(
        jnp.any(rows), lambda: jnp.where(rows[:, None], lane_masks(words, vocab), unused), lambda: unused
    )


def _kernel(
    names: tuple[str, ...], needs: Any, logits: Any, numbers: Any, in_prompt: Any, allowed: Any, lists: IdLists,
    tokens: Any, best: Any, block: Any, running: Any,
) -> None:  # fmt: skip
    index = pl.program_id(0)  # the interpreter knows it outside conditions only

    def need(work: _Need) -> Array:
        return needs[index, work] > 0

    def column(name: str) -> Column:
        place = names.index(name)
        return numbers[:, place : place + 1]

    rows = Tiles(block)

    def process() -> tuple[Tile, Tile]:
        pl.when(need(_Need.BIASES))(lambda: add_biases(rows, lists))
        pl.when(need(_Need.PENALTIES))(lambda: penalize(rows, lists, in_prompt, column))
        pl.when(need(_Need.TOKEN_MASK))(lambda: apply_token_mask(rows, allowed))
        pl.when(need(_Need.STOP_IDS))(lambda: mask_stop_ids(rows, lists))
        return copy_and_summarize(rows, rows)

    @pl.when(need(_Need.ANYTHING))
    def choose() -> None:
        own = copy_and_summarize(Tiles(logits), rows)
        highest, scaled_sum = jax.lax.cond(need(_Need.PROCESSORS), process, lambda: own)
        top = jnp.max(highest, axis=1, keepdims=True)
        is_number = jnp.sum(scaled_sum, axis=1, keepdims=True)
        best[...] = jnp.where(jnp.isnan(is_number), is_number, top)
        tokens[...] = jax.lax.cond(
            need(_Need.MOST_LIKELY), lambda: most_likely(rows, top), lambda: jnp.zeros((ROWS, 1), jnp.int32)
        )

        @pl.when(need(_Need.DRAW))
        def draw() -> None:
            drawn = _draw(rows, top, column, need, running)
            tokens[...] = jnp.where(column("is_random") > 0, drawn, tokens[...])


def _draw(
    rows: Tiles, top: Column, column: Callable[[str], Column], need: Callable[[_Need], Array], running: Any
) -> Tokens:
    """Draws a token for each row; replaces its logits by weights."""
    mass = weigh(rows, jnp.where(top == -jnp.inf, 0.0, top), column("temperature"))
    cut = jnp.zeros_like(mass)
    cut, mass = jax.lax.cond(need(_Need.TOP_K), lambda: _top_k(rows, column("top_k")), lambda: (cut, mass))
    cut = jax.lax.cond(need(_Need.TOP_P), lambda: top_p_threshold(rows, column("top_p"), mass, cut), lambda: cut)
    cut = jnp.maximum(cut, column("min_p"))
    pl.when(need(_Need.TYPICAL_P))(lambda: keep_typical(rows, column("typical_p"), cut))
    return invert(rows, cut, column("uniform"), running)


def _top_k(rows: Tiles, k: Column) -> tuple[Column, Column]:
    """Returns the threshold of top-k and the sum of the weights that it leaves."""
    cut = top_k_threshold(rows, k)
    return cut, kept_mass(rows, cut)
