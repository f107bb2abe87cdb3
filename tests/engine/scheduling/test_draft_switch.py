"""When drafts are worth their time, by numbers."""

from collections.abc import Sequence

from roost.engine.scheduling.drafting import DraftSwitch

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
