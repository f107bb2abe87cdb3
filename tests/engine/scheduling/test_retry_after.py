"""The estimate of when a refused request may be sent again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.scheduling.slots import RetryAfterEstimator


def test_default_while_no_request_has_ended() -> None:
    assert RetryAfterEstimator(4).refused() == 1.0


def test_refused_requests_come_back_one_after_the_other() -> None:
    estimator = RetryAfterEstimator(4)
    for _ in range(10):
        estimator.released(8.0)  # so a slot comes free every 2 s
    assert [estimator.refused() for _ in range(3)] == pytest.approx([2, 4, 6])
    estimator.released(8.0)
    estimator.released(8.0)
    assert estimator.refused() == pytest.approx(4)


def test_latest_service_times_decide() -> None:
    estimator = RetryAfterEstimator(1)
    estimator.released(50.0)
    for _ in range(60):
        estimator.released(2.0)
    assert estimator.refused() == pytest.approx(2, rel=0.1)


@given(st.integers(1, 500), st.lists(st.floats(0, 1e5), max_size=30), st.integers(1, 300))
def test_estimates_are_bounded(slots: int, times: list[float], refused: int) -> None:
    estimator = RetryAfterEstimator(slots)
    for each in times:
        estimator.released(each)
    assert all(0.05 <= estimator.refused() <= 60 for _ in range(refused))
