"""Tasks that outlive their requests, and streams that other replicas continue; see test_durable_responses.py."""

import asyncio

import pytest
from roost.engine import TokenLogprobs
from roost.server.constraints.tool_calls import CallPiece
from roost.server.features.responses.background_responses import Background, DeltaSizes
from roost.server.generation.delta import Delta, DeltaJoiner


async def test_a_task_may_begin_before_an_earlier_one_of_its_name_has_ended() -> None:
    """A response that was given up is adopted again, while its earlier task is still being cancelled."""
    background, ends = Background(), asyncio.Event()
    earlier = background.start("r1", asyncio.sleep(60))
    earlier.cancel()
    later = background.start("r1", _wait(ends))
    with pytest.raises(asyncio.CancelledError):
        await earlier
    await asyncio.sleep(0)
    assert background.is_running("r1")
    ends.set()
    await background.wait("r1")
    assert later.done()
    await asyncio.sleep(0)
    assert not background.is_busy


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


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
    sizes, joiner = DeltaSizes(), DeltaJoiner()
    for part in parts:
        sizes.add(part)
        joiner.add(part)
    assert list(sizes.split(joiner.take() if joiner else Delta(0))) == parts
