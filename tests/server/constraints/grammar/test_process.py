"""Tests of the server's side of a grammar process, whose other side the test plays."""

from collections.abc import Iterator

import numpy as np
import pytest
from played_grammar import PlayedProcess, played
from roost.server.constraints.grammar.constraint import Grammar, GrammarConstraint, GrammarFailedError
from roost.server.constraints.grammar_worker.frames import Frame, Kind

WORDS = 8


@pytest.fixture
def other() -> Iterator[PlayedProcess]:
    with played() as side:
        yield side


def allowed(constraint: GrammarConstraint) -> list[int]:
    mask = np.zeros(WORDS, np.uint32)
    constraint.fill_mask(mask)
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


@pytest.mark.parametrize("is_asked_between", [False, True])
@pytest.mark.parametrize("num_replies", range(4))
def test_no_mask_of_an_earlier_token_is_taken(other: PlayedProcess, num_replies: int, is_asked_between: bool) -> None:
    """A process may be slower than the tokens that an output replays: just its last reply is the next token's mask."""
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    ((follower, _),) = other.requests()
    for token_id in (1, 2, 3):
        constraint.advance(token_id)
        if is_asked_between:
            assert not constraint.is_ready(0)
    assert not constraint.is_ready(0)
    requests = other.requests()
    assert [token_id for _, token_ids in requests for token_id in token_ids] == [1, 2, 3]
    num_awaited = 1 + len(requests)
    num_early = min(num_replies, num_awaited - 1)
    for number in range(num_early):
        other.allow(follower, [100 + number], WORDS)
        assert not constraint.is_ready(0)
    for number in range(num_early, num_awaited):
        other.allow(follower, [100 + number], WORDS)
    assert constraint.is_ready(0)
    assert allowed(constraint) == [100 + num_awaited - 1]


def test_tokens_of_a_replay_are_one_request(other: PlayedProcess) -> None:
    constraint = Grammar(other.process).constraint()
    for token_id in range(100):
        constraint.advance(token_id)
    assert other.requests() == [], "nothing is sent on the thread that makes the constraint"
    assert not constraint.is_ready(0)
    ((_, token_ids),) = other.requests()
    assert token_ids == list(range(100))


def test_a_failure_stays(other: PlayedProcess) -> None:
    """What a process replies after a failure is of no use."""
    constraint = GrammarConstraint(other.process)
    for token_id in (1, 2):
        constraint.advance(token_id)
        constraint.is_ready(0)
    follower = other.requests()[0][0]
    other.reply(Frame(Kind.FAILED, follower, b"token 1 is wrong"))
    other.allow(follower, [5], WORDS)
    assert constraint.is_ready(0)
    with pytest.raises(GrammarFailedError, match="token 1 is wrong"):
        allowed(constraint)


def test_more_tokens_than_fit_in_the_pipe_arrive_in_order(other: PlayedProcess) -> None:
    """The engine's thread does not wait for a process that reads slowly, nor does it give the process up."""
    long, short = GrammarConstraint(other.process), GrammarConstraint(other.process)
    expected = list(range(100_000))
    for token_id in expected:
        long.advance(token_id)
    assert not long.is_ready(0)
    short.advance(7)
    assert not short.is_ready(0)
    assert other.process.is_alive
    requests: list[tuple[int, list[int]]] = []
    while len(requests) < 2:
        requests += other.requests()
        assert not short.is_ready(0)
    assert [token_ids for _, token_ids in requests] == [expected, [7]]
    for token_id, (follower, _) in enumerate(requests, 1):
        other.allow(follower, [token_id], WORDS)
    assert (allowed(long), allowed(short)) == ([1], [2])


def test_output_of_a_process_that_ends_fails(other: PlayedProcess) -> None:
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    other.end()
    assert constraint.is_ready(0)
    with pytest.raises(GrammarFailedError, match="too much work"):
        allowed(constraint)
