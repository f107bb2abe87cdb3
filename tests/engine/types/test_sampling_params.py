"""Sampling parameters are valid once built."""

from typing import Any

import pytest
from counted_ids import CountedIds
from roost.engine.types.errors import ParameterError
from roost.engine.types.sampling_params import MAX_BAD_TOKENS, MAX_STOP_IDS, SamplingParams


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
        ("typical_p", 1e-40),
        ("typical_p", 5e-324),
        ("temperature", 1e38),
        ("temperature", 1e300),
        ("frequency_penalty", 1e31),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", -1e300),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 1e-7),
        ("repetition_penalty", 1e38),
        ("repetition_penalty", float("nan")),
        ("logit_bias", ((5, 1e38),)),
        ("logit_bias", ((5, -1e38),)),
        ("logit_bias", ((5, float("nan")),)),
        ("logit_bias", ((-1, 1.0),)),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (5, -1)),
        ("allowed_token_ids", (2**40,)),
        ("bad_words", ((5, -2),)),
        ("bad_words", ((),)),
        ("bad_words", ((5,) * 65,) * (MAX_BAD_TOKENS // 65 + 1)),
        ("end_token_ids", (-1,)),
        ("end_token_ids", (5,) * (MAX_STOP_IDS + 1)),
        ("stop_token_ids", (2**31,)),
        ("stop_token_ids", (5,) * (MAX_STOP_IDS + 1)),
        ("seed", -1),
        ("seed", 2**64),
        ("min_tokens", -1),
        ("stop_token_ids", tuple(range(MAX_STOP_IDS + 1))),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be") as raised:
        SamplingParams(**{field: value})
    assert isinstance(raised.value, ParameterError)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("min_tokens", {"allowed_token_ids": (1,), "end_token_ids": (1,), "min_tokens": 1}),
        ("min_tokens", {"allowed_token_ids": (1, 7), "end_token_ids": (1,), "stop_token_ids": (7,), "min_tokens": 1}),
        ("min_tokens", {"allowed_token_ids": (1, 7), "end_token_ids": (1,), "bad_words": ((7,),), "min_tokens": 1}),
        ("bad_words", {"allowed_token_ids": (4, 70), "bad_words": ((4,), (70,), (71, 72))}),
    ],
)
def test_values_that_leave_no_token_are_refused(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"^{field} must") as raised:
        SamplingParams(**values)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        {"allowed_token_ids": (1,), "end_token_ids": (1,)},
        {"allowed_token_ids": (1, 7), "end_token_ids": (1,), "min_tokens": 1},
        {"allowed_token_ids": (4, 70), "bad_words": ((4,), (70, 71))},
        {"bad_words": ((4,),), "stop_token_ids": (5,), "min_tokens": 1},
    ],
)
def test_values_that_leave_a_token_are_valid(values: dict[str, Any]) -> None:
    assert SamplingParams(**values)


def test_choices_share_what_is_made_of_their_parameters() -> None:
    """They differ in their seeds; nothing is read or made again for each of them."""
    params = SamplingParams(allowed_token_ids=CountedIds((5, 6)), bad_words=((5, 6),), seed=1)
    CountedIds.count = 0
    other = params.with_seed(2)
    assert (params.seed, other.seed, other.allowed_token_ids) == (1, 2, (5, 6))
    assert other.static_mask is params.static_mask
    assert other.bad_phrases is params.bad_phrases
    assert CountedIds.count == 0
    assert params.with_seed(1) == params != other
    with pytest.raises(ParameterError, match=r"^seed must be"):
        params.with_seed(2**64)


def test_the_limits_themselves_are_valid() -> None:
    ids = tuple(range(MAX_STOP_IDS))
    params = SamplingParams(max_tokens=0, temperature=0.0, min_p=1.0, seed=2**64 - 1, logprobs=20, stop_token_ids=ids)
    assert params.stop_ids == frozenset(ids)
