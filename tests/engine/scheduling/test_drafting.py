"""Which requests may have drafted tokens, when drafts are worth their time, and how accepted ones are booked."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from roost.engine.scheduling.drafting import DraftSwitch
from roost.engine.scheduling.running_request import Repetition
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import HISTORY, DraftCounts, Speculation, StepLimits
from roost.engine.types.output_constraint import Forced, TokenMask
from roost.engine.types.request import (
    Batch,
    DecodeBatch,
    FinishReason,
    PrefillChunk,
    Replay,
    Request,
    RowResult,
    TokenOutput,
)
from roost.engine.types.sampling_params import SamplingParams

LIMITS = StepLimits(64, speculation=Speculation(3), mask_words=1)
REPETITIVE = (7,) * 5
"""Prompt after which a token 7 repeats enough to be drafted."""


class AnyToken:
    """Allows every token."""

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask |= 0xFFFFFFFF

    def advance(self, token_id: int) -> None:
        pass


class Sevens(AnyToken):
    """Forces four tokens 7, then allows every token, at any time."""

    def forced(self) -> Forced:
        return Forced((7,) * 4, np.full(1, 0xFFFFFFFF, np.uint32))


def request(name: str, max_tokens: int = 9, prompt: Sequence[int] = REPETITIVE, **fields: Any) -> Request:
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens), **fields)


def first_decode(requests: Sequence[Request], limits: StepLimits = LIMITS) -> tuple[Scheduler, DecodeBatch]:
    """Returns a scheduler, and its first batch with a token for each of the requests."""
    scheduler = Scheduler(len(requests), 9, limits)
    for each in requests:
        scheduler.add(each, 0.0)
    while True:
        batch = scheduler.schedule(0.0).batch
        assert batch is not None
        if isinstance(batch, DecodeBatch) and len(batch.slots) == len(requests):
            return scheduler, batch
        rows = batch.slots if isinstance(batch, DecodeBatch) else batch.rows
        scheduler.commit(batch, [RowResult(() if isinstance(row, PrefillChunk) else (7,)) for row in rows], 1.0)


def commit(scheduler: Scheduler, batch: Batch | None, *tokens: int) -> TokenOutput:
    assert isinstance(batch, DecodeBatch)
    ((_, output),) = scheduler.commit(batch, [RowResult(tokens)], 1.0).outputs
    return output


@pytest.mark.parametrize(
    ("fields", "drafts"),
    [
        ([{}, {"stepwise": True}], (3, 0)),
        ([{}, {"constraint": AnyToken()}], (3, 0)),
        ([{}, {"replay": Replay((5, 6, 7))}], (3, 0)),
        ([{"stepwise": True}], ()),
        ([{}, {"prompt": (1, 2, 3)}], (3, 0)),
        ([{"prompt": (1, 2, 3, 7, 7)}], ()),
    ],
)
def test_drafts_are_for_requests_that_repeat_themselves_and_whose_tokens_the_host_need_not_see(
    fields: list[dict[str, Any]], drafts: tuple[int, ...]
) -> None:
    _, batch = first_decode([request(str(index), **each) for index, each in enumerate(fields)])
    assert batch.drafts == drafts


def test_without_speculation_no_batch_has_drafts() -> None:
    _, batch = first_decode([request("a")], StepLimits(64))
    assert batch.drafts == ()


def test_forced_tokens_are_drafted_as_far_as_there_is_room() -> None:
    """A part of them is followed by the next of them."""
    for num_tokens, last in ((3, 1 << 7), (4, 0xFFFFFFFF)):
        limits = replace(LIMITS, speculation=Speculation(num_tokens))
        _, batch = first_decode([request("a", prompt=(1, 2, 3), constraint=Sevens()), request("b")], limits)
        draft, other = batch.drafts
        assert isinstance(draft, Forced)
        assert (draft.token_ids, draft.mask.tolist(), other) == ((7,) * num_tokens, [last], num_tokens)


@pytest.mark.parametrize(
    "fields",
    [
        {"stepwise": True},
        {"replay": Replay((7, 7, 7))},
        {"params": SamplingParams(bad_words=((1,),))},
        {"params": SamplingParams(bad_words=((1, 2),))},
    ],
)
def test_forced_tokens_are_not_drafted_one_by_one_or_beside_other_masks(fields: dict[str, Any]) -> None:
    _, batch = first_decode([Request("a", REPETITIVE, **fields, constraint=Sevens())])
    assert batch.drafts == ()


@pytest.mark.parametrize(("tokens", "is_allowed"), [((7,), True), ((7,) * 4 + (9,), True), ((7, 7, 9), False)])
def test_forced_tokens_are_the_only_ones_that_are_taken(tokens: tuple[int, ...], is_allowed: bool) -> None:
    scheduler, batch = first_decode([request("a", constraint=Sevens())], replace(LIMITS, speculation=Speculation(4)))
    output = commit(scheduler, batch, *tokens)
    assert output.token_ids == (tokens if is_allowed else ())
    assert (output.error is None) is is_allowed


def test_accepted_drafts_count_for_the_limit() -> None:
    scheduler, batch = first_decode([request("a", max_tokens=6)])
    output = commit(scheduler, batch, 7, 7, 7, 7)
    assert (len(output.token_ids), output.finish_reason) == (4, None)
    last = scheduler.schedule(0.0).batch
    assert scheduler.schedule(0.0).batch is None  # the sixth token is in flight
    assert commit(scheduler, last, 7).finish_reason is FinishReason.LENGTH


def test_a_request_may_end_in_a_round_before_the_one_in_flight() -> None:
    scheduler, first = first_decode([request("a", max_tokens=5)])
    second = scheduler.schedule(0.0).batch
    output = commit(scheduler, first, 7, 7, 7, 7)
    assert output.finish_reason is FinishReason.LENGTH
    assert second is not None
    assert scheduler.commit(second, [RowResult()], 1.0).outputs == ()
    assert scheduler.next_timeout == math.inf


def test_a_stop_id_inside_a_round_ends_the_output_there() -> None:
    params = SamplingParams(max_tokens=9, stop_token_ids=(8,))
    scheduler, batch = first_decode([Request("a", REPETITIVE, params)])
    output = commit(scheduler, batch, 7, 8)
    assert (output.token_ids, output.finish_reason, output.stop_reason) == ((7, 8), FinishReason.STOP, 8)


@pytest.mark.parametrize("fields", [{}, {"constraint": Sevens()}])
def test_drafts_pause_while_they_take_longer_than_they_save(fields: dict[str, Any]) -> None:
    scheduler, batch = first_decode([request("a", max_tokens=99, **fields)])
    drafted, seconds = RowResult((7, 7), drafts=DraftCounts(1, 3, (1, 0, 0))), []
    while len(seconds) < 12:
        seconds.append(3.0 if batch.drafts else 1.0)
        scheduler.commit(batch, [drafted if batch.drafts else RowResult((7,))], seconds[-1])
        following = scheduler.schedule(0.0).batch
        assert isinstance(following, DecodeBatch)
        batch = following
    assert seconds == [3.0] * 2 + [1.0] + [3.0] + [1.0] * 4 + [3.0] * 2 + [1.0] * 2


def test_drafts_are_counted_also_of_requests_that_have_ended() -> None:
    scheduler, batch = first_decode([request("a"), request("b")])
    scheduler.abort("b")
    kept, dropped = DraftCounts(1, 3, (1, 0, 0)), DraftCounts(1, 2, (0, 0, 0))
    scheduler.commit(batch, [RowResult((7, 7), drafts=kept), RowResult((7,), drafts=dropped)], 1.0)
    assert scheduler.drafts == DraftCounts(2, 5, (1, 0, 0))


def test_a_request_drafts_once_its_last_tokens_occurred_before() -> None:
    scheduler, batch = first_decode([request("a", max_tokens=99, prompt=(1, 2, 3, 4, 5, 6))])
    drafts = []
    for token in (9, 1, 2, 3, 4, 5, 9):
        commit(scheduler, batch, token)
        following = scheduler.schedule(0.0).batch
        assert isinstance(following, DecodeBatch)
        drafts.append(bool(following.drafts))
        batch = following
    assert drafts == [False, False, False, False, True, True, False]


def test_repetitions_of_tokens_past_the_history_do_not_count() -> None:
    repetition = Repetition((1, 2, 3, 4), 4)
    repetition.add(range(10, 10 + HISTORY))
    repetition.add(range(10 + HISTORY, 10 + 2 * HISTORY))
    repetition.add((1, 2, 3, 4))
    assert not repetition.is_repeating
    repetition.add(range(20 + HISTORY, 24 + HISTORY))
    assert repetition.is_repeating


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=9))
def test_repetitions_are_those_of_a_search(prompt: list[int], added: list[list[int]]) -> None:
    repetition, tokens = Repetition(prompt, 3), list(prompt)
    for each in added:
        repetition.add(each)
        tokens += each
    earlier = [tokens[end - 3 : end] for end in range(3, len(tokens))]
    assert repetition.is_repeating == (tokens[-3:] in earlier)


STEPS = 8


def plain(switch: DraftSwitch, count: int = 1, seconds: float = 0.8, requests: int = 1) -> None:
    """Records batches without drafts; a round takes a tenth of a second by default."""
    for _ in range(count):
        switch.record(STEPS, [STEPS] * requests, seconds, has_drafts=False)


def drafted(switch: DraftSwitch, tokens: Sequence[int], seconds: float, count: int = 1) -> None:
    for _ in range(count):
        switch.record(STEPS, list(tokens), seconds, has_drafts=True)


def batches_until_on(switch: DraftSwitch, requests: int = 1) -> int:
    """Number of batches without drafts until the next one with them."""
    for count in range(1000):
        if switch.is_on(requests, STEPS):
            return count
        plain(switch, requests=requests)
    raise AssertionError


def measured() -> DraftSwitch:
    """A switch that knows batches of one request without drafts."""
    switch = DraftSwitch()
    plain(switch, 2)
    return switch


def test_short_requests_have_drafts_although_nothing_is_measured() -> None:
    switch = DraftSwitch()
    drafted(switch, [8], 1.5)
    assert switch.is_on(1, STEPS)


def test_a_batch_without_drafts_is_measured_before_drafts_are_judged() -> None:
    switch = DraftSwitch()
    drafted(switch, [8], 1.5, count=2)
    assert batches_until_on(switch) == 1
    drafted(switch, [8], 1.5)
    assert not switch.is_on(1, STEPS)


def test_drafts_that_save_time_stay_on() -> None:
    """16 tokens in 1.5 seconds, which take 1.6 without drafts."""
    switch = measured()
    drafted(switch, [16], 1.5, count=100)
    assert switch.is_on(1, STEPS)


def test_drafts_that_cost_time_pause_longer_and_longer() -> None:
    switch, pauses = measured(), []
    for _ in range(9):
        drafted(switch, [10], 1.1, count=2)
        pauses.append(batches_until_on(switch))
    assert pauses == [4, 8, 16, 32, 64, 128, 256, 512, 512]


def test_a_single_batch_does_not_decide() -> None:
    switch = measured()
    drafted(switch, [8], 1.5)
    assert switch.is_on(1, STEPS)
    drafted(switch, [16], 1.0)  # costs 1.9 and 0.6: 1.25 on average
    assert not switch.is_on(1, STEPS)


def test_a_single_slow_batch_among_others_changes_nothing() -> None:
    switch = measured()
    drafted(switch, [16], 1.1, count=5)
    drafted(switch, [16], 90.0)
    assert switch.is_on(1, STEPS)


def test_after_a_long_term_without_a_loss_pauses_are_short_again() -> None:
    switch = measured()
    drafted(switch, [8], 1.5, count=2)
    assert batches_until_on(switch) == 4
    drafted(switch, [16], 1.1, count=128)
    assert batches_until_on(switch) == 1  # measures a batch without drafts
    drafted(switch, [8], 9.9, count=2)
    assert batches_until_on(switch) == 4


def test_requests_share_the_gain() -> None:
    """One gets 20 tokens, and three 8, in the time of 12 tokens each: a loss for all together."""
    switch = DraftSwitch()
    plain(switch, 2, requests=4)
    drafted(switch, [20, 8, 8, 8], 1.2, count=2)
    assert not switch.is_on(4, STEPS)
    plain(other := DraftSwitch(), 2, requests=4)
    drafted(other, [20, 8, 8, 8], 1.0, count=2)
    assert other.is_on(4, STEPS)


def test_sizes_of_batches_are_judged_apart() -> None:
    switch = measured()
    plain(switch, 2, requests=4)
    drafted(switch, [8], 1.5, count=2)
    assert (switch.is_on(1, STEPS), switch.is_on(4, STEPS), switch.is_on(1, 1)) == (False, True, True)


def test_batches_without_tokens_say_nothing() -> None:
    switch = measured()
    drafted(switch, [8], 1.5, count=2)
    for _ in range(9):
        switch.record(STEPS, [0], 0.8, has_drafts=False)
    assert batches_until_on(switch) == 4
