"""Tests of the server's side of a grammar process, whose other side the test plays."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from played_grammar import PlayedProcess, played
from roost.engine import ConstraintLostError
from roost.server.constraints.grammar_process import (
    GrammarConstraint,
    GrammarFailedError,
    GrammarProcessFactory,
)
from roost.server.constraints.grammar_spec import GrammarBusyError, GrammarSpec
from roost.server.constraints.grammar_worker.protocol import Frame, GrammarLimits, Kind
from roost.server.text.tokenizer import Tokenizer

WORDS = 8


@pytest.fixture
def other() -> Iterator[PlayedProcess]:
    with played() as side:
        yield side


def allowed(constraint: GrammarConstraint) -> list[int]:
    mask = np.zeros(WORDS, np.uint32)
    constraint.fill_mask(mask)
    return [int(i) for i in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def test_no_mask_of_an_earlier_token_is_taken(other: PlayedProcess) -> None:
    """A process may be slower than the tokens that an output replays, which are one request after its reply."""
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    ((follower, _),) = other.requests()
    for token_id in (1, 2, 3):
        constraint.advance(token_id)
        assert not constraint.is_ready(0)
    assert other.requests() == []
    other.allow(follower, [100], WORDS)
    assert not constraint.is_ready(0)
    assert other.requests() == [(follower, [1, 2, 3])]
    other.allow(follower, [101], WORDS)
    assert constraint.is_ready(0)
    assert allowed(constraint) == [101]


def test_forced_tokens_need_no_request(other: PlayedProcess) -> None:
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    ((follower, _),) = other.requests()
    other.allow(follower, [8, 9], WORDS, forced=[5, 6])
    for token_id in (5, 6):
        assert constraint.is_ready(0)
        assert allowed(constraint) == [token_id]
        assert constraint.forced().token_ids == (5, 6)[token_id - 5 :]
        constraint.advance(token_id)
    assert constraint.is_ready(0)
    assert allowed(constraint) == [8, 9]
    assert other.requests() == []
    constraint.advance(9)
    assert not constraint.is_ready(0)
    assert other.requests() == [(follower, [5, 6, 9])]


def test_after_another_token_than_the_forced_one_nothing_is_known(other: PlayedProcess) -> None:
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    ((follower, _),) = other.requests()
    other.allow(follower, [8], WORDS, forced=[5])
    assert allowed(constraint) == [5]
    constraint.advance(7)
    assert not constraint.is_ready(0)
    assert other.requests() == [(follower, [7])]


def test_tokens_of_a_replay_are_one_request(other: PlayedProcess) -> None:
    constraint = other.process.constraint()
    for token_id in range(100):
        constraint.advance(token_id)
    assert other.requests() == [], "nothing is sent on the thread that makes the constraint"
    assert not constraint.is_ready(0)
    ((_, token_ids),) = other.requests()
    assert token_ids == list(range(100))


def test_a_failure_is_raised(other: PlayedProcess) -> None:
    constraint = GrammarConstraint(other.process)
    constraint.advance(1)
    assert not constraint.is_ready(0)
    other.reply(Frame(Kind.FAILED, other.requests()[0][0], b"token 1 is wrong"))
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


@pytest.mark.parametrize(
    ("signal_number", "expected"),
    [(signal.SIGKILL, ConstraintLostError), (signal.SIGPROF, GrammarFailedError), (0, GrammarFailedError)],
)
def test_only_the_system_ends_a_process_without_fault_of_its_grammar(
    other: PlayedProcess, signal_number: int, expected: type[Exception]
) -> None:
    constraint = GrammarConstraint(other.process)
    assert not constraint.is_ready(0)
    other.end(signal_number)
    assert constraint.is_ready(0)
    with pytest.raises(expected):
        allowed(constraint)


def children(parent: int) -> list[int]:
    """Returns the processes that a process has started, on whatever thread."""
    lists = [each.read_text() for each in Path(f"/proc/{parent}/task").glob("*/children")]
    return [int(each) for text in lists for each in text.split()]


def grammar_processes() -> set[int]:
    """Returns the processes of all grammars of this process."""
    workers = [
        each for each in children(os.getpid()) if b"grammar_worker" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    return {each for worker in workers for watcher in children(worker) for each in children(watcher)}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_killed_process_is_no_fault_of_its_grammar(demo_tokenizer: Tokenizer) -> None:
    """`test_hostile.py` has grammars that end their processes by their own fault."""
    factory = GrammarProcessFactory(demo_tokenizer, demo_tokenizer.end_token_ids, GrammarLimits())
    earlier = grammar_processes()
    process = factory.new_process()
    while not (found := grammar_processes() - earlier):
        assert process.is_alive
    os.kill(found.pop(), signal.SIGKILL)
    with pytest.raises(GrammarBusyError, match="try again"):
        process.compile(GrammarSpec("start: /a/"))
    assert process.was_killed
