"""The scheduler's decisions, without a device."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from counted_ids import CountedIds
from fake_states import block_states, prefill
from roost.engine.prefix_cache.cache import PrefixCache
from roost.engine.scheduling.running_request import RequestOutput
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.errors import ConfigError, ConstraintError, NumericError, QueueFullError, RequestFailedError
from roost.engine.types.output_constraint import TokenMask, mask_of_ids
from roost.engine.types.request import (
    Batch,
    DecodeBatch,
    FinishReason,
    FirstToken,
    PrefillBatch,
    Request,
    RowResult,
    TokenLogprobs,
)
from roost.engine.types.sampling_params import NO_CHOICE, NO_TOKEN, SamplingParams
from roost.engine.types.snapshot import BlockState, Snapshot

LIMITS = StepLimits(64)


def request(name: str, prompt: int = 3, **params: object) -> Request:
    return Request(name, tuple(range(1, prompt + 1)), SamplingParams(**params))  # type: ignore[arg-type]


def add(scheduler: Scheduler, request: Request, now: float = 0.0) -> None:
    scheduler.add(request, now)


def plan(scheduler: Scheduler, now: float = 0.0) -> Batch | None:
    """Returns the next batch; no request ends without one."""
    plan = scheduler.schedule(now)
    assert plan.failed == ()
    return plan.batch


def commit(scheduler: Scheduler, batch: Batch, results: Sequence[RowResult]) -> list[RequestOutput]:
    """Returns the outputs of a batch."""
    return list(scheduler.commit(batch, results, 1.0).outputs)


def results(batch: Batch, token: int = 7) -> list[RowResult]:
    """Returns results with the same token for every row that samples one."""
    if isinstance(batch, DecodeBatch):
        return [RowResult((token,) * batch.steps) for _ in batch.slots]
    return [RowResult((token,) if isinstance(row, FirstToken) else ()) for row in batch.rows]


def names(batch: Batch | None) -> tuple[str, list[str]]:
    """Returns the kind of a batch and the ids of its requests."""
    if isinstance(batch, PrefillBatch):
        return "prefill", [chunk.request.id for chunk in batch.chunks]
    assert batch is not None
    return "decode", [request.id for request in batch.requests]


def num_used(scheduler: Scheduler) -> int:
    return scheduler.slots.size - len(scheduler.slots.free)


def test_idle_scheduler_plans_no_batch() -> None:
    assert plan(Scheduler(2, 4, LIMITS)) is None


def test_prompt_is_prefilled_in_chunks_and_only_the_last_samples_a_token() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a", prompt=150))
    spans = []
    while isinstance(batch := plan(scheduler), PrefillBatch):
        (chunk,) = batch.chunks
        spans.append((chunk.start, chunk.length, chunk.is_last))
        outputs = commit(scheduler, batch, results(batch))
        assert bool(outputs) == chunk.is_last
    assert spans == [(0, 64, False), (64, 64, False), (128, 22, True)]


def test_decode_waits_for_at_most_one_prefill_chunk() -> None:
    scheduler = Scheduler(2, 4, LIMITS)
    add(scheduler, request("short"))
    assert names(plan(scheduler)) == ("prefill", ["short"])
    add(scheduler, request("long", prompt=200))
    kinds = [names(plan(scheduler)) for _ in range(7)]
    assert kinds == [("decode", ["short"]), ("prefill", ["long"])] * 3 + [("decode", ["short"])]
    assert names(plan(scheduler)) == ("prefill", ["long"])
    assert names(plan(scheduler)) == ("decode", ["short", "long"])


def test_results_of_ended_requests_are_dropped() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a", end_token_ids=(7,)))
    first, second = plan(scheduler), plan(scheduler)
    assert first is not None
    assert second is not None
    ((_, output),) = commit(scheduler, first, results(first))
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ((7,), FinishReason.STOP, None)
    add(scheduler, request("b"))  # takes the same slot while the second batch is still on its way
    assert names(plan(scheduler)) == ("prefill", ["b"])
    assert commit(scheduler, second, results(second)) == []
    assert len(scheduler.running) == 1


def test_stop_id_is_reported_and_end_id_is_not() -> None:
    for end_ids, reason in ((), 7), ((7,), None):
        scheduler = Scheduler(1, 4, LIMITS)
        add(scheduler, request("a", stop_token_ids=(7,), end_token_ids=end_ids))
        batch = plan(scheduler)
        assert batch is not None
        ((_, output),) = commit(scheduler, batch, results(batch))
        assert output.stop_reason == reason


def test_max_tokens_zero_only_prefills_the_prompt() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a", max_tokens=0, prompt_logprobs=0))
    batch = plan(scheduler)
    assert isinstance(batch, PrefillBatch)
    scores = (TokenLogprobs(-1.0), TokenLogprobs(-2.0))
    ((_, output),) = commit(scheduler, batch, [RowResult(prompt_logprobs=scores), RowResult((7,))])
    assert output.token_ids == ()
    assert output.finish_reason is FinishReason.LENGTH
    assert output.prompt_logprobs == (None, *scores)
    assert plan(scheduler) is None


def test_prompt_logprobs_are_reported_once_and_complete() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a", prompt=66, prompt_logprobs=0))
    scores = [TokenLogprobs(-float(i)) for i in range(65)]
    outputs = []
    for part in (scores[:64], scores[64:]):
        batch = plan(scheduler)
        assert isinstance(batch, PrefillBatch)
        scored, *firsts = results(batch)
        outputs += commit(scheduler, batch, [scored._replace(prompt_logprobs=tuple(part)), *firsts])
    decode = plan(scheduler)
    assert decode is not None
    outputs += commit(scheduler, decode, results(decode))
    assert [output.prompt_logprobs for _, output in outputs] == [(None, *scores), None]


def test_queue_limit_counts_waiting_requests_only() -> None:
    scheduler = Scheduler(2, 1, LIMITS)
    for name in "abc":  # two will get slots, one waits
        add(scheduler, request(name))
    with pytest.raises(QueueFullError, match="1 requests wait"):
        add(scheduler, request("d"))
    plan(scheduler)
    with pytest.raises(QueueFullError):
        add(scheduler, request("d"))
    scheduler.abort("a")
    add(scheduler, request("d"))


def test_abort_frees_the_slot_at_once_and_is_idempotent() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a"))
    add(scheduler, request("b"))
    batch = plan(scheduler)
    assert batch is not None
    assert scheduler.abort("a")
    assert not scheduler.abort("a")
    assert names(plan(scheduler)) == ("prefill", ["b"])
    assert commit(scheduler, batch, results(batch)) == []


def test_abort_of_a_waiting_request() -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a"))
    plan(scheduler)
    add(scheduler, request("b"))
    assert scheduler.abort("b")
    assert len(scheduler.queue.waiting) == 0


@pytest.mark.parametrize("running", [False, True])
def test_id_in_use_is_refused(running: bool) -> None:
    scheduler = Scheduler(1, 4, LIMITS)
    add(scheduler, request("a"))
    if running:
        plan(scheduler)
    with pytest.raises(ValueError, match="'a' is in use"):
        add(scheduler, request("a"))


def shape(batch: Batch | None) -> list[tuple[str, int]]:
    """Returns the ids of a prefill batch's requests, each with the length of its chunk."""
    assert isinstance(batch, PrefillBatch)
    return [(chunk.request.id, chunk.length) for chunk in batch.chunks]


def test_short_prompts_are_prefilled_together() -> None:
    """Their number is a power of two, so that a compiled shape has no padding rows."""
    scheduler = Scheduler(8, 9, StepLimits(256, itl_target_s=0.0))
    for name, length in zip("abcdefg", (10, 64, 3, 100, 5, 6, 7), strict=True):
        add(scheduler, request(name, prompt=length))
    assert shape(plan(scheduler)) == [("a", 10), ("b", 64), ("c", 3), ("e", 5)]
    assert names(plan(scheduler)) == ("decode", ["a", "b", "c", "e"])
    assert shape(plan(scheduler)) == [("f", 6), ("g", 7)]


def test_first_prompt_decides_the_chunk_length() -> None:
    scheduler = Scheduler(4, 9, StepLimits(256, itl_target_s=0.0))
    for name, length in zip("abcd", (200, 70, 300, 65), strict=True):
        add(scheduler, request(name, prompt=length))
    assert shape(plan(scheduler)) == [("b", 70), ("d", 65)]
    plan(scheduler)
    assert shape(plan(scheduler)) == [("a", 200)]
    plan(scheduler)
    assert shape(plan(scheduler)) == [("c", 256)]


def prefill_until_first_token(scheduler: Scheduler, name: str, most: int = 10_000) -> list[list[tuple[str, int]]]:
    """Commits every batch at once; returns the shapes of the prefill batches up to the one that ends a prompt."""
    shapes = []
    for _ in range(most):
        batch = plan(scheduler)
        assert batch is not None
        outputs = commit(scheduler, batch, results(batch))
        if isinstance(batch, PrefillBatch):
            shapes.append(shape(batch))
        if any(output_name == name for output_name, _ in outputs):
            return shapes
    raise AssertionError(f"{name} got no token in {most} steps")


@pytest.mark.parametrize("tenant", ["", "other"])
def test_short_prompt_waits_for_one_chunk_of_a_long_one(tenant: str) -> None:
    """Chunks are short once another prompt waits, with and without tenants."""
    scheduler = Scheduler(4, 9, StepLimits(512, prefill_rows=1))
    add(scheduler, replace(request("long", prompt=200_000), tenant="long"))
    first = plan(scheduler)
    assert shape(first) == [("long", 512)]
    add(scheduler, replace(request("short", prompt=7), tenant=tenant or "long"))
    assert prefill_until_first_token(scheduler, "short") == [[("short", 7)]]


def test_long_prompt_advances_while_short_ones_keep_arriving() -> None:
    """It gets every fourth turn of its tenant."""
    scheduler = Scheduler(64, 1000, StepLimits(512, prefill_rows=1))
    add(scheduler, request("long", prompt=640))
    for number in range(48):
        add(scheduler, request(f"short{number}", prompt=9, max_tokens=1))
    shapes = prefill_until_first_token(scheduler, "long")
    assert [("long", 64)] in shapes[:4], "chunks shrink while shorter prompts wait"
    assert sum(name == "long" for batch in shapes for name, _ in batch) == 10
    assert len(shapes) == 37, "its last block is as short as theirs, and older"


@pytest.mark.parametrize("preemptible", [False, True])
def test_tenants_prefill_the_same_number_of_tokens(preemptible: bool) -> None:
    """The number of their prompts does not matter, nor that of prompts of the other kind."""
    scheduler = Scheduler(9, 9, StepLimits(64, prefill_rows=1))
    add(scheduler, replace(request("b0", prompt=2000, max_tokens=1), tenant="b", preemptible=not preemptible))
    prefill_until_first_token(scheduler, "b0")
    for number in range(6):
        add(scheduler, replace(request(f"a{number}", prompt=3000), tenant="a", preemptible=preemptible))
    add(scheduler, replace(request("b", prompt=1280), tenant="b", preemptible=preemptible))
    shapes = prefill_until_first_token(scheduler, "b")
    assert sum(name == "b" for batch in shapes for name, _ in batch) == 20
    assert len(shapes) <= 42


def test_restored_prompts_do_not_starve_prefill() -> None:
    """A restored prompt has no blocks left, so that an endless stream of them would always go first."""
    cache = PrefixCache(64, 10**9)
    known = tuple(range(1, 65))
    prefill(cache, known)
    scheduler = Scheduler(4, 99, StepLimits(64, prefill_rows=1), cache=cache)
    add(scheduler, replace(request("victim", prompt=128), tenant="victim"))
    add(scheduler, Request("again0", known, SamplingParams(max_tokens=1), tenant="again"))
    steps = 0
    while steps < 20:
        batch = plan(scheduler)
        assert batch is not None
        steps += 1
        ended = [name for name, _ in commit(scheduler, batch, results(batch))]
        if "victim" in ended:
            break
        add(scheduler, Request(f"again{steps}", known, SamplingParams(max_tokens=1), tenant="again"))
    assert steps <= 8


def test_chunks_are_small_while_most_requests_decode() -> None:
    scheduler = Scheduler(4, 9, StepLimits(256))
    add(scheduler, request("a"))
    add(scheduler, request("b", prompt=300))
    assert shape(plan(scheduler)) == [("a", 3), ("b", 64)]
    spans = []
    while isinstance(plan(scheduler), DecodeBatch) and isinstance(batch := plan(scheduler), PrefillBatch):
        spans += shape(batch)
    assert spans == [("b", 64), ("b", 64), ("b", 64), ("b", 44)]
    for name in "cd":
        add(scheduler, request(name, prompt=300))
    assert shape(plan(scheduler)) == [("c", 64)], "two generate and two wait"


def test_each_shard_prefills_its_own_oldest_prompts() -> None:
    """Two shards of three slots: limits are per shard, and the shard with more prompts decides the number of rows."""
    limits = StepLimits(256, itl_target_s=0.0, decode_rows=(6,), slot_order=(0, 1, 2, 3, 5), shard_rows=3)
    scheduler = Scheduler(5, 9, limits)
    for name in "abcde":
        add(scheduler, request(name, prompt=64))
    assert shape(plan(scheduler)) == [("a", 64), ("b", 64), ("d", 64), ("e", 64)]
    assert names(plan(scheduler)) == ("decode", ["a", "b", "d", "e"])
    assert shape(plan(scheduler)) == [("c", 64)]


def test_scored_prompt_is_prefilled_alone() -> None:
    scheduler = Scheduler(4, 9, StepLimits(256, itl_target_s=0.0))
    for name, scored in zip("abcd", (None, 0, None, None), strict=True):
        add(scheduler, request(name, prompt_logprobs=scored))
    assert shape(plan(scheduler)) == [("a", 3), ("c", 3)]
    plan(scheduler)
    assert shape(plan(scheduler)) == [("b", 3)]
    plan(scheduler)
    assert shape(plan(scheduler)) == [("d", 3)]


SLICED = StepLimits(128, prefill_rows=1, prefill_layer_slices=3)


def layer_slice(batch: Batch | None) -> tuple[list[str], int, bool]:
    """Returns the ids of a prefill batch's requests, its layer slice and whether that is the last one."""
    assert isinstance(batch, PrefillBatch)
    return [chunk.request.id for chunk in batch.chunks], batch.layer_slice, batch.is_last_slice


def test_decode_waits_for_one_layer_slice_of_a_chunk() -> None:
    scheduler = Scheduler(2, 4, SLICED)
    add(scheduler, request("a"))
    assert [layer_slice(plan(scheduler)) for _ in range(3)] == [(["a"], n, n == 2) for n in range(3)]
    add(scheduler, request("b", prompt=70))
    for _ in range(2):  # chunks
        for n in range(3):
            assert names(plan(scheduler)) == ("decode", ["a"])
            assert layer_slice(plan(scheduler)) == (["b"], n, n == 2)
    assert names(plan(scheduler)) == ("decode", ["a", "b"])


def test_short_chunk_of_a_long_prompt_is_sliced() -> None:
    """It goes from the restored snapshot to the next block boundary."""
    scheduler = Scheduler(1, 4, SLICED)
    add(scheduler, replace(request("a", prompt=300), state=Snapshot(100, (), ())))
    batches = [plan(scheduler) for _ in range(4)]
    assert [shape(batch) for batch in batches] == [[("a", 28)]] * 3 + [[("a", 128)]]
    assert [layer_slice(batch)[1:] for batch in batches] == [(0, False), (1, False), (2, True), (0, False)]


def test_only_the_last_layer_slice_samples_a_token() -> None:
    scheduler = Scheduler(1, 4, SLICED)
    add(scheduler, request("a", max_tokens=1))
    batches = [plan(scheduler) for _ in range(3)]
    assert plan(scheduler) is None
    outputs = [commit(scheduler, b, results(b) if b.is_last_slice else [RowResult()]) for b in batches]  # type: ignore
    assert [len(each) for each in outputs] == [0, 0, 1]


def test_sliced_prefill_of_aborted_requests_is_given_up() -> None:
    scheduler = Scheduler(1, 4, SLICED)
    add(scheduler, request("a"))
    add(scheduler, request("b"))
    plan(scheduler)
    scheduler.abort("a")
    assert layer_slice(plan(scheduler)) == (["b"], 0, False)


def test_slot_of_a_sliced_prefill_is_retained_until_the_last_slice() -> None:
    """The fork still needs the prefill, though its parent was aborted."""
    scheduler = Scheduler(3, 4, SLICED)
    add(scheduler, request("a"))
    add(scheduler, replace(request("fork"), fork_of="a"))
    assert layer_slice(plan(scheduler)) == (["a"], 0, False)
    scheduler.abort("a")
    assert (len(scheduler.running), num_used(scheduler)) == (1, 2)
    assert layer_slice(plan(scheduler)) == (["a"], 1, False)
    last = plan(scheduler)
    assert (layer_slice(last), forks_of(last)) == ((["a"], 2, True), ["fork"])
    assert (len(scheduler.running), num_used(scheduler)) == (1, 1)
    assert names(plan(scheduler)) == ("decode", ["fork"])


AHEAD = StepLimits(64, decode_steps=4)


def steps(batch: Batch | None) -> int:
    assert isinstance(batch, DecodeBatch)
    return batch.steps


def test_several_tokens_per_dispatch_while_no_prompt_waits() -> None:
    scheduler = Scheduler(2, 4, AHEAD)
    add(scheduler, request("a", max_tokens=100))
    plan(scheduler)
    assert steps(plan(scheduler)) == 4
    add(scheduler, request("b", prompt=100, max_tokens=100))
    plan(scheduler)
    assert steps(plan(scheduler)) == 1, "b's prompt needs prefill"
    plan(scheduler)
    assert [steps(plan(scheduler)) for _ in range(3)] == [1, 4, 4], "one token after the time that prefill took"


def test_stepwise_request_limits_all_to_one_token() -> None:
    scheduler = Scheduler(2, 4, AHEAD)
    add(scheduler, request("a", max_tokens=100))
    add(scheduler, Request("b", (1,), stepwise=True))
    plan(scheduler)
    assert steps(plan(scheduler)) == 1
    scheduler.abort("b")
    assert steps(plan(scheduler)) == 4


def test_tokens_after_the_end_are_dropped() -> None:
    scheduler = Scheduler(1, 4, AHEAD)
    add(scheduler, request("a", max_tokens=100, stop_token_ids=(9,), logprobs=0))
    first, batch = plan(scheduler), plan(scheduler)
    assert first is not None
    assert batch is not None
    commit(scheduler, first, results(first))
    scores = tuple(TokenLogprobs(-float(i)) for i in range(4))
    ((_, output),) = commit(scheduler, batch, [RowResult((7, 8, 9, 7), scores)])
    assert (output.token_ids, output.logprobs) == ((7, 8, 9), scores[:3])
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, 9)


def test_limit_holds_within_a_batch_and_between_batches() -> None:
    scheduler = Scheduler(1, 4, AHEAD)
    add(scheduler, request("a", max_tokens=7))
    batches = [plan(scheduler) for _ in range(4)]
    assert [b is not None for b in batches] == [True, True, True, False]
    outputs = [output for b in batches if b is not None for _, output in commit(scheduler, b, results(b))]
    assert [len(o.token_ids) for o in outputs] == [1, 4, 2]
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_slots_are_compacted_when_a_smaller_step_suffices() -> None:
    scheduler = Scheduler(8, 9, StepLimits(512, itl_target_s=0.0, decode_rows=(2, 4, 8)))
    for name in "abcdef":
        add(scheduler, request(name))
    while shape(plan(scheduler)) != [("e", 3), ("f", 3)]:
        assert isinstance(plan(scheduler), DecodeBatch)
    batch = plan(scheduler)
    assert isinstance(batch, DecodeBatch)
    assert (batch.slots, batch.moves) == ((0, 1, 2, 3, 4, 5), ())
    scheduler.abort("a")
    batch = plan(scheduler)
    assert isinstance(batch, DecodeBatch)
    assert batch.moves == (), "five need eight rows as well"
    scheduler.abort("c")
    batch = plan(scheduler)
    assert isinstance(batch, DecodeBatch)
    assert batch.moves == ((4, 0), (5, 2))
    assert names(batch)[1] == ["b", "d", "e", "f"]
    assert batch.slots == (1, 3, 0, 2)
    assert num_used(scheduler) == 4


def test_slots_of_a_mesh_are_compacted_in_their_order() -> None:
    """Two devices of four slots each: a step of two slots of each has slots 0, 1, 4 and 5."""
    limits = StepLimits(512, itl_target_s=0.0, decode_rows=(4, 8), slot_order=(0, 4, 1, 5, 2, 6, 3, 7))
    scheduler = Scheduler(8, 9, limits)
    for name in "abcdef":
        add(scheduler, request(name))
    while shape(plan(scheduler)) != [("e", 3), ("f", 3)]:
        plan(scheduler)
    batch = plan(scheduler)
    assert isinstance(batch, DecodeBatch)
    assert (batch.slots, batch.moves) == ((0, 4, 1, 5, 2, 6), ())
    for name in "be":
        scheduler.abort(name)
    batch = plan(scheduler)
    assert isinstance(batch, DecodeBatch)
    assert (batch.slots, batch.moves) == ((0, 1, 5, 4), ((6, 4),))


class Only:
    """Constraint that allows the n-th of a list of tokens at position n, and records the tokens that came."""

    def __init__(self, *allowed: int | None) -> None:
        self.allowed = allowed
        self.came: list[int] = []

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        token = self.allowed[len(self.came)]
        mask[:] = 0 if token is None else mask_of_ids([token], len(mask))

    def advance(self, token_id: int) -> None:
        self.came.append(token_id)


MASKS = StepLimits(64, decode_steps=4, mask_words=1)


def test_constraint_sees_each_token_before_the_next_is_dispatched() -> None:
    """Other requests go on meanwhile, one token at a time."""
    scheduler, only = Scheduler(2, 4, MASKS), Only(3, 4, 5, 6)
    add(scheduler, Request("a", (1,), SamplingParams(max_tokens=3), constraint=only))
    add(scheduler, request("b", max_tokens=9))
    first, second = plan(scheduler), plan(scheduler)
    assert isinstance(first, PrefillBatch)
    assert [row.mask is not None and int(row.mask[0]) for row in first.first_tokens] == [1 << 3]
    assert shape(second) == [("b", 3)]
    commit(scheduler, first, results(first, 3))
    third = plan(scheduler)
    assert isinstance(third, DecodeBatch)
    assert (names(third)[1], third.masks[0][0], int(third.masks[0][1][0]), third.steps) == (["a", "b"], 0, 1 << 4, 1)
    assert names(plan(scheduler))[1] == ["b"], "what came of a is not known yet"
    commit(scheduler, third, results(third, 4))
    assert only.came == [3, 4]
    assert names(plan(scheduler))[1] == ["a", "b"]


def test_failed_constraint_ends_its_request_alone() -> None:
    """It may fail before the first token or between two tokens."""
    scheduler = Scheduler(3, 4, MASKS)
    add(scheduler, Request("a", (1,), constraint=Only(None)))
    add(scheduler, Request("b", (1,), constraint=Only(3, None)))
    add(scheduler, request("c"))
    planned = scheduler.schedule(0.0)
    ((name, output),) = planned.failed
    assert (name, output.finish_reason, str(output.error)) == (
        "a",
        FinishReason.ERROR,
        "no token is allowed to come next",
    )
    batch = planned.batch
    assert batch is not None
    assert [(name, o.finish_reason) for name, o in commit(scheduler, batch, results(batch))] == [
        ("b", FinishReason.ERROR)
    ]
    assert (len(scheduler.running), num_used(scheduler)) == (1, 1)
    assert scheduler.schedule(0.0).failed == (), "each failure is reported once"


def test_token_against_its_mask_reaches_nobody() -> None:
    """If the device sampled one all the same, the request ends with an error in its place."""
    scheduler, only = Scheduler(1, 4, MASKS), Only(3, 4, 5)
    add(scheduler, Request("a", (1,), constraint=only))
    first = plan(scheduler)
    assert first is not None
    assert [output.token_ids for _, output in commit(scheduler, first, results(first, 3))] == [(3,)]
    second = plan(scheduler)
    assert second is not None
    ((_, output),) = commit(scheduler, second, results(second, 7))
    assert (output.token_ids, output.finish_reason) == ((), FinishReason.ERROR)
    assert str(output.error) == "a token was sampled that the constraint does not allow"
    assert only.came == [3]


def test_static_mask_is_not_rebuilt_for_each_token() -> None:
    """The mask of allowed ids is built with the request; only a constraint's mask changes from token to token."""
    scheduler = Scheduler(1, 9, MASKS)
    add(
        scheduler,
        request("a", max_tokens=20, allowed_token_ids=CountedIds((3, 7, 9)), bad_words=((7,) * 3 + (9,), (7, 3))),
    )
    CountedIds.count = 0
    masks = []
    while (batch := plan(scheduler)) is not None:
        if isinstance(batch, DecodeBatch):
            masks += [int(mask[0]) for _, mask in batch.masks]
        commit(scheduler, batch, results(batch, 7))
    assert masks == [1 << 7 | 1 << 9] * 2 + [1 << 7] * 17
    assert CountedIds.count == 0


def test_row_without_an_allowed_token_ends_its_request_alone() -> None:
    """Tokens before it are delivered, and the error is not a `NumericError`."""
    scheduler = Scheduler(2, 9, StepLimits(64, decode_steps=4))
    add(scheduler, request("a", max_tokens=9))
    add(scheduler, request("b", max_tokens=9))
    while names(decode := plan(scheduler)) != ("decode", ["a", "b"]):
        assert decode is not None
        commit(scheduler, decode, results(decode))
    assert isinstance(decode, DecodeBatch)
    rows = [RowResult((7, 8, NO_CHOICE, NO_TOKEN)), RowResult((7, 8, 9, 9))]
    outputs = commit(scheduler, decode, rows)
    assert [(name, output.token_ids) for name, output in outputs] == [("a", (7, 8)), ("a", ()), ("b", (7, 8, 9, 9))]
    error = outputs[1][1].error
    assert (type(error), str(error)) == (ConstraintError, "no token is allowed to come next")
    assert len(scheduler.running) == 1


def test_mask_is_the_intersection_of_constraint_and_parameters() -> None:
    scheduler = Scheduler(2, 4, MASKS)
    params = SamplingParams(allowed_token_ids=(4,))
    add(scheduler, Request("a", (1,), params, constraint=Only(4)))
    add(scheduler, Request("b", (1,), params, constraint=Only(5)))
    assert [name for name, _ in scheduler.schedule(0.0).failed] == ["b"]


class Late(Only):
    """Constraint that is ready only while `knows` is set. It counts how often it was waited for."""

    def __init__(self, *allowed: int | None) -> None:
        super().__init__(*allowed)
        self.knows = False
        self.num_waits = 0

    def is_ready(self, wait_s: float) -> bool:
        self.num_waits += wait_s > 0
        return self.knows

    def fill_mask(self, mask: TokenMask) -> None:
        assert self.knows
        super().fill_mask(mask)

    def advance(self, token_id: int) -> None:
        super().advance(token_id)
        self.knows = False


def test_other_requests_do_not_wait_for_a_slow_constraint() -> None:
    """This holds for the first token and between two tokens; a step waits for one constraint at most."""
    scheduler, late, later = Scheduler(3, 4, MASKS), Late(3, 4), Late(3, 4)
    add(scheduler, Request("late", (1,), SamplingParams(max_tokens=2), constraint=late))
    add(scheduler, Request("later", (1,), SamplingParams(max_tokens=2), constraint=later))
    add(scheduler, request("b", max_tokens=20))
    batch = plan(scheduler)
    assert names(batch) == ("prefill", ["b"])
    for _ in range(3):
        assert names(plan(scheduler)) == ("decode", ["b"])
    assert (late.num_waits, later.num_waits) == (4, 0)
    late.knows = True
    first = plan(scheduler)
    assert names(first) == ("prefill", ["late"])
    assert first is not None
    commit(scheduler, first, results(first, 3))
    assert [names(plan(scheduler)) for _ in range(2)] == [("decode", ["b"])] * 2
    late.knows = True
    assert names(plan(scheduler)) == ("decode", ["late", "b"])
    assert later.num_waits == 2


def test_prompt_waits_for_the_constraints_of_its_forks() -> None:
    scheduler, late = Scheduler(2, 4, MASKS), Late(3)
    add(scheduler, Request("a", (1,), constraint=Only(3)))
    add(scheduler, Request("fork", (1,), constraint=late, fork_of="a"))
    assert plan(scheduler) is None
    late.knows = True
    batch = plan(scheduler)
    assert isinstance(batch, PrefillBatch)
    assert [row.mask is not None and int(row.mask[0]) for row in batch.first_tokens] == [1 << 3, 1 << 3]


def test_constraint_that_fails_late_ends_its_request_alone() -> None:
    scheduler, late = Scheduler(2, 4, MASKS), Late(None)
    add(scheduler, Request("a", (1,), constraint=late))
    add(scheduler, request("b"))
    plan(scheduler)
    late.knows = True
    assert [name for name, _ in scheduler.schedule(0.0).failed] == ["a"]
    assert (len(scheduler.running), num_used(scheduler)) == (1, 1)


def family(scheduler: Scheduler, *names: str, prompt: int = 100) -> None:
    """Adds requests with one prompt, the first of which is the parent of the others."""
    for name in names:
        fork_of = None if name == names[0] else names[0]
        add(scheduler, Request(name, tuple(range(prompt)), SamplingParams(max_tokens=5), fork_of=fork_of))


def forks_of(batch: Batch | None) -> list[str]:
    assert isinstance(batch, PrefillBatch)
    forked = {slot for chunk in batch.chunks for slot in chunk.forks}
    return [row.request.id for row in batch.first_tokens if row.slot in forked]


def test_forks_wait_for_the_prompt_and_prefill_nothing() -> None:
    scheduler = Scheduler(3, 9, LIMITS)
    family(scheduler, "a", "b", "c", "d")
    first, last = plan(scheduler), plan(scheduler)
    assert (shape(first), forks_of(first)) == ([("a", 64)], [])
    assert (shape(last), forks_of(last)) == ([("a", 36)], ["b", "c"])
    assert isinstance(last, PrefillBatch)
    assert [row.slot for row in last.rows] == [0, 0, 1, 2]
    outputs = commit(scheduler, last, [RowResult(), *(RowResult((token,)) for token in (7, 8, 9))])
    assert [(name, output.token_ids) for name, output in outputs] == [("a", (7,)), ("b", (8,)), ("c", (9,))]
    assert names(plan(scheduler)) == ("decode", ["a", "b", "c"])
    scheduler.abort("a")
    assert shape(plan(scheduler)) == [("d", 64)], "it came too late for a copy"


def test_first_fork_prefills_for_the_others_when_the_parent_has_ended() -> None:
    scheduler = Scheduler(4, 9, LIMITS)
    family(scheduler, "a", "b", "c")
    plan(scheduler)
    scheduler.abort("a")
    assert shape(plan(scheduler)) == [("b", 64)]
    last = plan(scheduler)
    assert (shape(last), forks_of(last)) == ([("b", 36)], ["c"])


def test_ended_fork_and_fork_with_another_prompt_copy_nothing() -> None:
    scheduler = Scheduler(4, 9, LIMITS)
    family(scheduler, "a", prompt=3)
    add(scheduler, Request("b", (9,), fork_of="a"))
    add(scheduler, Request("c", (0, 1, 2), fork_of="a"))
    assert shape(batch := plan(scheduler)) == [("a", 3)]
    assert forks_of(batch) == ["c"], "b has another prompt"
    scheduler = Scheduler(4, 9, LIMITS)
    family(scheduler, "a", "b", "c")
    plan(scheduler)
    scheduler.abort("b")
    assert forks_of(plan(scheduler)) == ["c"]


def dated(name: str, start_by: float = math.inf, deadline: float = math.inf) -> Request:
    return Request(name, (1,), SamplingParams(max_tokens=None), start_by=start_by, deadline=deadline)


def ends(outputs: Sequence[RequestOutput]) -> list[tuple[str, str]]:
    assert all(output.finish_reason is FinishReason.ERROR for _, output in outputs)
    return [(name, type(output.error).__name__) for name, output in outputs]


def test_requests_end_at_their_deadlines() -> None:
    scheduler = Scheduler(1, 9, LIMITS)
    add(scheduler, dated("runs", start_by=101.0, deadline=110.0), 100.0)
    plan(scheduler, 100.0)
    add(scheduler, dated("impatient", start_by=105.0, deadline=120.0), 100.0)
    add(scheduler, dated("patient"), 100.0)
    plan(scheduler, 104.9)
    assert ends(scheduler.schedule(105.0).failed) == [("impatient", "QueueTimeoutError")]
    planned = scheduler.schedule(112.0)
    assert ends(planned.failed) == [("runs", "RequestTimeoutError")]
    assert names(planned.batch) == ("prefill", ["patient"])
    plan(scheduler, 1e9)
    assert (len(scheduler.queue.waiting), len(scheduler.running)) == (0, 1)


def test_deadline_may_pass_before_the_first_plan() -> None:
    scheduler = Scheduler(1, 9, LIMITS)
    add(scheduler, dated("a", deadline=5.0))
    planned = scheduler.schedule(6.0)
    assert planned.batch is None
    assert ends(planned.failed) == [("a", "RequestTimeoutError")]
    assert scheduler.next_timeout == math.inf


def test_refused_requests_get_an_estimate_to_retry_after() -> None:
    """A request had its slot for 3 s, so one of two slots becomes free every 1.5 s."""
    scheduler = Scheduler(2, 1, LIMITS)
    for name in "ab":
        add(scheduler, request(name), 10.0)
    plan(scheduler, 10.0)
    plan(scheduler, 13.0)
    scheduler.abort("a")
    for name in "cd":
        add(scheduler, request(name), 13.0)
    waits = []
    for _ in range(2):
        with pytest.raises(QueueFullError) as refused:
            add(scheduler, request("e"), 13.0)
        waits.append(refused.value.retry_after_s)
    assert waits == [1.5, 3.0]


def test_requests_that_were_refused_before_an_idle_time_count_no_more() -> None:
    scheduler = Scheduler(1, 0, LIMITS)
    for began in (10.0, 20.0, 30.0):
        add(scheduler, request("a"), began)
        plan(scheduler, began)
        waits = []
        for _ in range(5):
            with pytest.raises(QueueFullError) as refused:
                add(scheduler, request("b"), began)
            waits.append(refused.value.retry_after_s)
        plan(scheduler, began + 2.0)
        scheduler.abort("a")
    assert waits == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_long_prompt_is_refused_only_if_it_would_wait() -> None:
    scheduler = Scheduler(2, 9, LIMITS, max_queue_tokens=50)
    add(scheduler, request("a", prompt=100))
    add(scheduler, request("b", prompt=100))
    with pytest.raises(QueueFullError, match="0 tokens of prompts wait"):
        add(scheduler, request("c", prompt=100))
    add(scheduler, request("d", prompt=50))
    assert scheduler.queue.num_tokens == 50


def test_greedy_tenant_does_not_delay_another() -> None:
    """The next free slot goes to the new tenant, though hundreds of requests wait."""
    scheduler = Scheduler(2, 1000, LIMITS)
    for number in range(400):
        add(scheduler, replace(request(f"a{number}", max_tokens=1), tenant="a"))
    for _ in range(10):
        batch = plan(scheduler)
        assert batch is not None
        commit(scheduler, batch, results(batch))
    add(scheduler, replace(request("b0", max_tokens=1), tenant="b"))
    started = []
    for _ in range(3):
        batch = plan(scheduler)
        assert batch is not None
        started += names(batch)[1]
        commit(scheduler, batch, results(batch))
    assert "b0" in started[:3]


class BrokenCache(PrefixCache):
    """Prefix cache whose look-ups fail."""

    is_broken = True

    def match_prefix(self, *args: Any, **options: Any) -> Snapshot | None:
        if self.is_broken:
            raise AssertionError("of the cache")
        return super().match_prefix(*args, **options)


def test_request_that_cannot_be_started_ends_alone() -> None:
    cache = BrokenCache(64, 0)
    scheduler = Scheduler(1, 9, LIMITS, cache=cache)
    add(scheduler, request("a"))
    planned = scheduler.schedule(0.0)
    assert planned.batch is None
    ((name, output),) = planned.failed
    assert (name, type(output.error)) == ("a", RequestFailedError)
    assert (len(scheduler.running), num_used(scheduler)) == (0, 0)
    cache.is_broken = False
    add(scheduler, request("b"))
    assert names(plan(scheduler)) == ("prefill", ["b"])


def test_failure_to_start_during_add_is_reported_by_the_next_plan() -> None:
    scheduler = Scheduler(1, 9, LIMITS, cache=BrokenCache(64, 0))
    add(scheduler, request("a"))
    add(scheduler, request("b"))
    assert scheduler.next_timeout != math.inf
    assert [name for name, _ in scheduler.schedule(0.0).failed] == ["a", "b"]
    assert scheduler.next_timeout == math.inf


def test_tokens_before_non_finite_activations_are_delivered() -> None:
    scheduler = Scheduler(1, 9, StepLimits(64, decode_steps=4))
    add(scheduler, request("a", max_tokens=9))
    first, decode = plan(scheduler), plan(scheduler)
    assert first is not None
    assert isinstance(decode, DecodeBatch)
    commit(scheduler, first, results(first))
    good, bad = commit(scheduler, decode, [RowResult((7, 8, NO_TOKEN, NO_TOKEN))])
    assert good[1].token_ids == (7, 8)
    assert good[1].finish_reason is None
    assert isinstance(bad[1].error, NumericError)
    assert scheduler.next_timeout == math.inf


def test_non_finite_state_is_never_inserted() -> None:
    """Later states are not inserted either, even if they look finite."""
    scheduler = Scheduler(1, 9, StepLimits(128, itl_target_s=0.0, prefill_rows=1), cache=PrefixCache(64, 10**9))
    tokens = tuple(range(1, 257))
    add(scheduler, Request("a", tokens, SamplingParams(max_tokens=1)))
    good = [
        BlockState(tuple(x.astype(np.float32) for x in m.recurrent), m.window, m.hidden) for m in block_states(tokens)
    ]
    nan = BlockState((np.full(50, np.nan, np.float32), good[1].recurrent[1]), good[1].window)
    for some in ((good[0], nan), (good[2], good[3])):
        batch = plan(scheduler)
        assert batch is not None
        commit(
            scheduler, batch, [result._replace(block_states=partial(partial, tuple, some)) for result in results(batch)]
        )
    assert scheduler.cache is not None
    assert scheduler.cache.stats.snapshots == 0


def test_states_of_a_chunk_are_awaited_by_the_next_commit() -> None:
    """Or by a request whose prompt they may begin, but not by another one."""
    scheduler = Scheduler(3, 9, StepLimits(128), cache=PrefixCache(64, 10**9))
    tokens, awaited = tuple(range(1, 101)), list[str]()

    def states(name: str, tokens: tuple[int, ...]) -> list[BlockState]:
        awaited.append(name)
        return block_states(tokens)

    def start(name: str, tokens: tuple[int, ...]) -> PrefillBatch:
        add(scheduler, Request(name, tokens, SamplingParams(max_tokens=1)))
        batch = plan(scheduler)
        assert isinstance(batch, PrefillBatch)
        return batch

    def end(batch: PrefillBatch) -> int:
        """Commits the prefill of a prompt; returns the number of its restored tokens."""
        (chunk,), (result, first) = batch.chunks, results(batch)
        request = chunk.request
        left = partial(partial, states, request.id, tuple(request.prompt_token_ids)) if not chunk.start else None
        ((_, output),) = commit(scheduler, batch, [result._replace(block_states=left), first])
        return output.num_cached

    a, b = start("a", tokens), start("b", tokens[1:])
    assert end(a) == 0
    c = start("c", tokens[2:])
    assert awaited == []
    assert end(b) == 0
    assert awaited == ["a"]
    again = start("again", tokens[1:])
    assert awaited == ["a", "b"]
    assert (end(c), end(again)) == (0, 99)
    assert awaited == ["a", "b", "c"], "at once if no batch is in flight"


def tenants_request(name: str, tenant: str) -> Request:
    return replace(request(name, max_tokens=None), tenant=tenant)


def start(scheduler: Scheduler, *requests: Request) -> list[str]:
    """Adds requests, and returns the ids of all requests that have a slot after the next plan."""
    for each in requests:
        add(scheduler, each)
    plan(scheduler)
    return sorted(scheduler.running)


def test_reserve_gives_a_new_tenant_a_slot_at_once() -> None:
    scheduler = Scheduler(4, 99, LIMITS, reserved_slots=1)
    greedy = [tenants_request(f"a{n}", "a") for n in range(9)]
    assert start(scheduler, *greedy) == ["a0", "a1", "a2"]
    assert start(scheduler, tenants_request("b0", "b"), tenants_request("b1", "b")) == ["a0", "a1", "a2", "b0"]
    scheduler.abort("a0")
    assert start(scheduler) == ["a1", "a2", "b0"], "the reserve is there again for a third tenant"
    assert start(scheduler, tenants_request("c0", "c")) == ["a1", "a2", "b0", "c0"]
    scheduler.abort("a1")
    scheduler.abort("a2")
    assert start(scheduler) == ["a3", "b0", "c0"], "one slot is open to all"


def test_single_tenant_leaves_the_reserve_free() -> None:
    """Its other requests wait, with the queue's limit."""
    scheduler = Scheduler(3, 1, LIMITS, reserved_slots=2)
    assert start(scheduler, tenants_request("a0", "a"), tenants_request("a1", "a")) == ["a0"]
    with pytest.raises(QueueFullError):
        add(scheduler, tenants_request("a2", "a"))
    assert start(scheduler, tenants_request("b0", "b"), tenants_request("c0", "c")) == ["a0", "b0", "c0"]


@pytest.mark.parametrize("reserved", [-1, 2, 3])
def test_reserve_must_be_smaller_than_the_pool(reserved: int) -> None:
    with pytest.raises(ConfigError, match=r"reserved_slots must be less than slots \(2\)"):
        Scheduler(2, 9, LIMITS, reserved_slots=reserved)


def test_probe_takes_the_next_slot_and_leaves_no_snapshot() -> None:
    cache = PrefixCache(64, 10**9)
    scheduler = Scheduler(1, 9, LIMITS, cache=cache)
    add(scheduler, request("a"))
    scheduler.probe(request("probe", max_tokens=1))
    batch = plan(scheduler)
    assert names(batch) == ("prefill", ["probe"])
    assert batch is not None
    commit(
        scheduler,
        batch,
        [result._replace(block_states=partial(partial, block_states, (1, 2, 3))) for result in results(batch)],
    )
    assert cache.stats.snapshots == 0
    assert names(plan(scheduler)) == ("prefill", ["a"])


def first_tokens(batch: Batch | None) -> list[str]:
    assert isinstance(batch, PrefillBatch)
    return [row.request.id for row in batch.first_tokens]


def measured(scheduler: Scheduler, slots: int) -> None:
    """Lets a scheduler measure a second for each prefill step of 64 tokens, and as long for each decode step."""
    for name in ("x", "y"):
        add(scheduler, request(name, prompt=64, max_tokens=2))
        while (batch := plan(scheduler)) is not None:
            commit(scheduler, batch, results(batch))
    assert num_used(scheduler) == 0
    assert scheduler.slots.size == slots


def test_first_tokens_are_held_for_those_of_later_prompts() -> None:
    """They share a pass over the embedding, and come before the next decode step; here each prompt is a batch."""
    scheduler = Scheduler(8, 9, StepLimits(64, prefill_rows=1, itl_target_s=0.0))
    measured(scheduler, 8)
    for name in "abc":
        add(scheduler, request(name, prompt=64))
    batches = [plan(scheduler) for _ in range(4)]
    assert [names(batch) for batch in batches[:3]] == [("prefill", [name]) for name in "abc"]
    assert [first_tokens(batch) for batch in batches[:3]] == [[], [], ["a", "b", "c"]]
    assert names(batches[3]) == ("decode", ["a", "b", "c"])


def test_held_first_tokens_come_without_a_chunk_if_no_prompt_follows() -> None:
    scheduler = Scheduler(8, 9, StepLimits(64, prefill_rows=1, itl_target_s=0.0))
    measured(scheduler, 8)
    for name in "abc":
        add(scheduler, request(name, prompt=64))
    first, second = plan(scheduler), plan(scheduler)
    assert (first_tokens(first), first_tokens(second)) == ([], [])
    scheduler.abort("c")
    held = plan(scheduler)
    assert (names(held), first_tokens(held)) == (("prefill", []), ["a", "b"])
    assert held is not None
    assert [name for name, _ in commit(scheduler, held, results(held))] == ["a", "b"]
    assert names(plan(scheduler)) == ("decode", ["a", "b"])


@pytest.mark.parametrize(("target_s", "together"), [(None, ["a", "b", "c"]), (1.5, ["a", "b"]), (0.5, ["a"])])
def test_first_tokens_wait_no_longer_than_tokens_may(target_s: float | None, together: list[str]) -> None:
    """Each step takes a second, and the default target is 2.9 of them."""
    scheduler = Scheduler(8, 99, StepLimits(64, prefill_rows=1, itl_target_s=target_s))
    measured(scheduler, 8)
    for name in "abcdefgh":
        add(scheduler, request(name, prompt=64))
    sampled = list[str]()
    while not sampled:
        sampled = first_tokens(plan(scheduler))
    assert sampled == together


def test_a_held_first_token_survives_an_abort_of_its_parent() -> None:
    scheduler = Scheduler(8, 9, StepLimits(64, prefill_rows=1, itl_target_s=0.0))
    measured(scheduler, 8)
    add(scheduler, request("a", prompt=64))
    add(scheduler, replace(request("fork", prompt=64), fork_of="a"))
    add(scheduler, request("b", prompt=64))
    assert first_tokens(plan(scheduler)) == []
    scheduler.abort("a")
    last = plan(scheduler)
    assert (names(last), first_tokens(last)) == (("prefill", ["b"]), ["fork", "b"])
