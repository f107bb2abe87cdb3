"""Sampling parameters are valid once built."""

from typing import Any

import pytest
from roost.engine.request import MAX_STOP_IDS, Request, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("typical_p", 0.0),
        ("typical_p", 1.1),
        ("seed", -1),
        ("seed", 2**64),
        ("min_tokens", -1),
        ("stop_token_ids", tuple(range(MAX_STOP_IDS + 1))),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        SamplingParams(**{field: value})


def test_the_limits_themselves_are_valid() -> None:
    ids = tuple(range(MAX_STOP_IDS))
    params = SamplingParams(max_tokens=0, temperature=0.0, min_p=1.0, seed=2**64 - 1, logprobs=20, stop_token_ids=ids)
    assert params.stop_ids == frozenset(ids)


def test_a_prompt_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="prompt"):
        Request("r", ())
