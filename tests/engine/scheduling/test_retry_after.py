"""The estimate of when a slot will be free."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.engine.scheduling.waiting_queue import RetryAfterEstimator


def serve(estimator: RetryAfterEstimator, seconds: float) -> None:
    estimator.assigned(0.0)
    estimator.released(0.0, seconds)


def test_default_estimate_while_no_request_has_ended() -> None:
    assert RetryAfterEstimator(4).refused(0.0) == 1.0


def test_refused_requests_come_back_one_after_the_other() -> None:
    estimator = RetryAfterEstimator(4)
    for _ in range(10):
        serve(estimator, 8.0)  # so a slot comes free every 2 s
    assert [estimator.refused(9.0) for _ in range(3)] == pytest.approx([2, 4, 6])
    serve(estimator, 8.0)
    serve(estimator, 8.0)
    assert estimator.refused(9.0) == pytest.approx(4)


def test_latest_service_times_decide() -> None:
    estimator = RetryAfterEstimator(1)
    serve(estimator, 50.0)
    for _ in range(60):
        serve(estimator, 2.0)
    assert estimator.refused(2.0) == pytest.approx(2, rel=0.1)


def test_long_requests_are_noticed_while_they_run() -> None:
    """Short requests ended before, but the running ones have had their slots for 6 and 10 s."""
    estimator = RetryAfterEstimator(2)
    serve(estimator, 0.1)
    estimator.assigned(100.0)
    estimator.assigned(104.0)
    assert estimator.refused(110.0) == pytest.approx(4)
    estimator.released(100.0, 110.0)
    estimator.released(104.0, 110.0)
    assert estimator.refused(1000.0) == pytest.approx((0.1 + 0.99 + 0.491) / 2, rel=0.01)  # none runs any more


@given(st.integers(1, 500), st.lists(st.floats(0, 1e5), max_size=30), st.integers(1, 300), st.floats(0, 1e6))
def test_estimates_are_bounded(slots: int, times: list[float], refused: int, now: float) -> None:
    estimator = RetryAfterEstimator(slots)
    for each in times:
        serve(estimator, each)
    estimator.assigned(0.0)
    assert all(0.05 <= estimator.refused(now) <= 60 for _ in range(refused))
