"""Watchdog of long steps, stuck steps, and a process that was frozen."""

from roost.server.lifecycle.lifecycle import Watchdog


def test_a_step_that_takes_too_long() -> None:
    watchdog = Watchdog(3.0)
    assert [watchdog.is_stuck(1, now) for now in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]


def test_steps_that_come_and_go_are_not_stuck() -> None:
    watchdog = Watchdog(1.0)
    assert not any(watchdog.is_stuck(step, float(step)) for step in range(100))
    assert not any(watchdog.is_stuck(None, float(now)) for now in range(100, 200))


def test_the_time_between_two_steps_does_not_count() -> None:
    watchdog = Watchdog(3.0)
    steps = [1, 1, 1, None, 2, 2, 2]
    assert not any(watchdog.is_stuck(step, float(now)) for now, step in enumerate(steps))


def test_a_frozen_process_is_not_a_stuck_step() -> None:
    """An hour passes between two checks; the step continues for another two seconds."""
    watchdog = Watchdog(5.0)
    looks = [0.0, 0.1, 3600.0, 3600.1, 3602.0, 3603.0]
    assert not any(watchdog.is_stuck(1, now) for now in looks)
    assert watchdog.is_stuck(1, 3604.0) or watchdog.is_stuck(1, 3605.0)
