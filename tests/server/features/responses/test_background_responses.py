"""Streams that other replicas continue; see test_durable_responses.py."""

import pytest
from roost.engine import TokenLogprobs
from roost.server.constraints.tool_calls import CallPiece
from roost.server.features.responses.background_responses import split
from roost.server.generation.delta import Delta, DeltaJoiner


def logprobs(*token_ids: int) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(-float(token_id), (), ()) for token_id in token_ids)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Delta(0, text="ö", token_ids=(1,)), Delta(0, token_ids=(2, 3)), Delta(0, text="🦜 two", token_ids=(4,))],
        [
            Delta(0, token_ids=(1,), logprobs=logprobs(1)),
            Delta(0, text="a", token_ids=(2, 3), logprobs=logprobs(2, 3)),
            Delta(0, text="b"),
        ],
        [
            Delta(0, token_ids=(1,)),
            Delta(0, token_ids=(2, 3), calls=(CallPiece(0, "id", "f", "{"),)),
            Delta(0, token_ids=(4,), calls=(CallPiece(0, arguments="}"), CallPiece(1, "other", "g"))),
        ],
    ],
    ids=["none", "texts", "log-probabilities", "calls"],
)
def test_joined_deltas_are_split_again(parts: list[Delta]) -> None:
    joiner = DeltaJoiner()
    for part in parts:
        joiner.add(part)
    sizes = [(len(part.token_ids), len(part.text), part.calls) for part in parts]
    assert list(split(joiner.take() if joiner else Delta(0), sizes)) == parts
