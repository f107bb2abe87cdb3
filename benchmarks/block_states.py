"""Measures how long a prefill chunk's block states occupy the engine's thread, on arrays of the 2B model on a CPU.

    python benchmarks/block_states.py [--chunks 100]

Prints medians in milliseconds of processor time: all work in one thread, and what remains to the engine's thread while
another one slices, copies and checks the arrays. The device's transfer is not part of either.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from roost.engine.model.config import PRESETS
from roost.engine.model.state import BlockStates
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.types.config import PREFILL_BLOCK
from roost.engine.types.request import PrefillChunk, Request
from roost.engine.types.sampling_params import SamplingParams
from roost.engine.types.snapshot import BlockState
from roost.engine.worker.transfer import read_block_states

CHUNK = 512


def block_states(number: int) -> BlockStates:
    """Returns the states of one chunk, as a prefill program returns them."""
    shape = PRESETS["2b"]
    layers, rings = (shape.block_types.count(kind) for kind in ("recurrent", "attention"))
    first = (1, CHUNK // PREFILL_BLOCK, layers)
    h = jnp.full((*first, shape.lru_width), number, jnp.float32)
    conv = jnp.full((*first, shape.conv_width - 1, shape.lru_width), number, jnp.bfloat16)
    return BlockStates((h, conv), jnp.full((1, CHUNK, rings, 2, shape.head_dim), number, jnp.bfloat16))


def measure(number: int, cache: PrefixCache, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Returns the milliseconds of one chunk: all of its work, and the share of the engine's thread."""
    tokens = tuple(np.random.default_rng(number).integers(1, 9999, CHUNK).tolist())
    chunk, key = (
        PrefillChunk(Request("", tokens, SamplingParams()), 0, 0, CHUNK, is_last=True),
        PrefixKey.of(tokens, ""),
    )
    of_one, of_other = jax.block_until_ready([block_states(number) for _ in range(2)])
    last = jax.block_until_ready(jnp.zeros((1, PRESETS["2b"].width), jnp.bfloat16))

    def insert(cache: PrefixCache, read: Callable[[], tuple[BlockState, ...]]) -> None:
        states = read()
        if all(state.is_finite for state in states):
            cache.insert_chunk(key, None, states)

    start = time.thread_time()
    insert(PrefixCache(PRESETS["2b"].window, 2**30), lambda: read_block_states([of_one], last, chunk, 0, 0))
    whole = time.thread_time() - start
    start = time.thread_time()
    for array in (*of_other.recurrent, of_other.window):
        array.copy_to_host_async()
    reading = pool.submit(read_block_states, [of_other], last, chunk, 0, 0)
    cache.defer(key, PREFILL_BLOCK, partial(insert, cache, reading.result))
    dispatched = time.thread_time() - start
    reading.result()
    start = time.thread_time()
    cache.settle()
    return 1e3 * whole, 1e3 * (dispatched + time.thread_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100)
    cache = PrefixCache(PRESETS["2b"].window, 2**30)
    with ThreadPoolExecutor(1) as pool:
        measured = [measure(number, cache, pool) for number in range(parser.parse_args().chunks)]
    whole, rest = map(statistics.median, zip(*measured, strict=True))
    print(f"in one thread {whole:.2f} ms, engine's thread beside another {rest:.2f} ms")


if __name__ == "__main__":
    main()
