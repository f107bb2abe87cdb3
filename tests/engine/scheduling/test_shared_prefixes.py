"""Prompts with a common prefix that run at the same time prefill it once."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import hypothesis.strategies as st
from fake_states import block_states, text
from hypothesis import given, settings
from roost.engine.prefix_cache.cache import PrefixCache
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import PREFILL_BLOCK, StepLimits
from roost.engine.types.request import Batch, DecodeBatch, PrefillBatch, PrefillChunk, Request, RowResult
from roost.engine.types.sampling_params import SamplingParams

LIMITS = StepLimits(256, prefill_rows=1)


def results(batch: Batch) -> list[RowResult]:
    if isinstance(batch, DecodeBatch):
        return [RowResult((7,) * batch.steps) for _ in batch.slots]
    if not batch.is_last_slice:
        return [RowResult() for _ in batch.rows]
    return [*map(chunk_result, batch.chunks), *(RowResult((7,)) for _ in batch.first_tokens)]


def chunk_result(chunk: PrefillChunk) -> RowResult:
    end = chunk.start + chunk.length
    states = partial(partial, block_states, chunk.request.prompt_token_ids, chunk.start, end)
    return RowResult(block_states=states if chunk.length else None)


def run(scheduler: Scheduler, requests: Iterable[Request]) -> dict[str, list[tuple[int, int]]]:
    """Runs requests with one batch in flight; returns the chunks of each, as pairs of start and length."""
    chunks: dict[str, list[tuple[int, int]]] = {}
    for request in requests:
        scheduler.add(request, 0.0)
        chunks[request.id] = []
    in_flight: Batch | None = None
    while in_flight is not None or scheduler.next_timeout != math.inf:
        planned, ended = scheduler.schedule(0.0).batch, in_flight
        if isinstance(planned, PrefillBatch) and planned.is_last_slice:
            for chunk in planned.chunks:
                chunks[chunk.request.id].append((chunk.start, chunk.length))
        if ended is not None:
            scheduler.commit(ended, results(ended), 0.001)
        in_flight = planned
    return chunks


def make(name: str, *parts: tuple[int, int], salt: str = "", max_tokens: int = 3) -> Request:
    return Request(name, text(*parts), SamplingParams(max_tokens=max_tokens), cache_salt=salt)


def test_a_common_prefix_is_prefilled_once() -> None:
    """All have a slot before the first of them is prefilled. One with another salt prefills its own."""
    cache = PrefixCache(128, 10**9)
    scheduler = Scheduler(8, 100, LIMITS, cache=cache)
    requests = [make(str(number), (1, 128), (10 + number, 48)) for number in range(5)]
    chunks = run(scheduler, [*requests, make("salted", (1, 128), (9, 40), salt="x")])
    first, *others = (chunks[str(number)] for number in range(5))
    assert first == [(0, 176)]
    assert others == [[(128, 48)]] * 4
    assert chunks["salted"] == [(0, 168)]
    assert cache.stats.hits == 4
    assert cache.stats.hit_tokens == 4 * 128


def test_another_prompt_goes_first_while_a_common_prefix_is_on_its_way() -> None:
    scheduler = Scheduler(8, 100, LIMITS, cache=PrefixCache(128, 10**9))
    for name, parts in (("a", ((1, 128), (2, 48))), ("b", ((1, 128), (3, 48))), ("c", ((4, 176),))):
        scheduler.add(make(name, *parts, max_tokens=1), 0.0)
    batch, after = scheduler.schedule(0.0).batch, scheduler.schedule(0.0).batch
    assert isinstance(batch, PrefillBatch)
    assert isinstance(after, PrefillBatch)
    assert [each.chunks[0].request.id for each in (batch, after)] == ["a", "c"]


def test_a_scored_prompt_restores_nothing() -> None:
    scheduler = Scheduler(8, 100, LIMITS, cache=PrefixCache(128, 10**9))
    scored = make("scored", (1, 128), (2, 40))
    params = replace(scored.params, prompt_logprobs=0)
    chunks = run(scheduler, [make("a", (1, 128), (3, 48)), replace(scored, params=params)])
    assert sum(length for _, length in chunks["scored"]) == 168


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.sampled_from([10, 64, 100, 128])), min_size=1, max_size=4),
        min_size=1,
        max_size=10,
    ),
    slots=st.integers(1, 4),
    layer_slices=st.integers(1, 3),
)
def test_every_prompt_is_read_to_its_end(prompts: list[list[tuple[int, int]]], slots: int, layer_slices: int) -> None:
    """Each token is restored or prefilled once, and a common prefix by one request only."""
    limits = replace(LIMITS, prefill_layer_slices=layer_slices)
    scheduler = Scheduler(slots, 100, limits, cache=PrefixCache(128, 10**9))
    requests = [make(str(number), *parts) for number, parts in enumerate(prompts)]
    chunks, blocks = run(scheduler, requests), set[tuple[int, ...]]()
    for request in requests:
        tokens, own = tuple(request.prompt_token_ids), chunks[request.id]
        assert all(start + length == after for (start, length), (after, _) in pairwise(own))
        assert not own or sum(own[-1]) == len(tokens)
        prefixes = [
            tokens[:end] for start, length in own for end in range(start + PREFILL_BLOCK, start + length, PREFILL_BLOCK)
        ]
        assert not blocks.intersection(prefixes)
        blocks.update(prefixes)
