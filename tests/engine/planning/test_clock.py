"""Order of calls of a simulated clock."""

import math

from roost.engine.planning.replica import Clock


def test_calls_are_made_in_the_order_of_their_times_and_then_of_their_giving() -> None:
    clock, calls = Clock(), []
    for name, seconds in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        clock.call_later(seconds, lambda name=name: calls.append((name, clock.now)))
    clock.run(math.inf)
    assert calls == [("a", 1.0), ("b", 1.0), ("c", 2.0)]
    assert clock.now == 2.0


def test_a_run_ends_before_the_calls_of_its_end() -> None:
    clock, calls = Clock(), []
    clock.call_later(1.0, lambda: clock.call_later(1.0, lambda: calls.append(clock.now)))
    clock.run(2.0)
    assert (calls, clock.now) == ([], 2.0)
    clock.run(math.inf)
    assert calls == [2.0]
