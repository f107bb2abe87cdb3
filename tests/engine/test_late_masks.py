"""Tests of masks that come late: no token is sampled before the mask after all earlier tokens is there.

The real constraint of a grammar talks to a process that the test plays. It replies to one request every few steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from played_grammar import LateMasks, PlayedProcess, played
from roost.engine import EngineCore, ModelRunner, PrefixCache, Request, SamplingParams
from roost.engine.scheduling import preemption
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.request import Replay
from roost.engine.types.snapshot import RequestSnapshotFormat
from roost.server.constraints.grammar_process import GrammarConstraint
from sweeps import full

SLOTS, VOCABULARY, WORDS = 4, 320, 10
MAX_TOKENS = 9
LENGTH = 70


def allowed(tokens: Sequence[int]) -> list[int]:
    """Allows, after each output, tokens that depend on its length and its last token."""
    start = 4 + (7 * len(tokens) + (tokens[-1] if tokens else 0)) % 60
    return list(range(start, VOCABULARY, 60))


@pytest.fixture
def other() -> Iterator[PlayedProcess]:
    with played() as side:
        yield side


def make_core(runner: ModelRunner) -> EngineCore:
    limits = replace(runner.limits, itl_target_s=0.0)
    scheduler = Scheduler(SLOTS, 100, limits, cache=PrefixCache(runner.served.config.window, 10**9))
    return EngineCore(
        scheduler,
        runner,
        runner.state_format,
        request_snapshot_format=RequestSnapshotFormat("test", runner.state_format.snapshot),
    )


def request(name: str, other: PlayedProcess | None, *, length: int = LENGTH, **fields: Any) -> Request:
    """Returns a request whose output is constrained, if there is a grammar process."""
    prompt = tuple(np.random.default_rng(length).integers(3, VOCABULARY, length).tolist())
    constraint = None if other is None else GrammarConstraint(other.process)
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.3, seed=5)
    return Request(name, prompt, params, constraint=constraint, **fields)


def run(core: EngineCore, masks: LateMasks, *, until: Mapping[str, int] | None = None) -> dict[str, list[int]]:
    """Steps until all requests have ended, or some have a number of tokens; returns their tokens."""
    tokens: dict[str, list[int]] = {}
    for _ in range(3000):
        masks.turn()
        for name, output in core.step():
            assert output.error is None
            tokens.setdefault(name, []).extend(output.token_ids)
        if core.is_idle or (until and all(len(tokens.get(name, ())) >= count for name, count in until.items())):
            return tokens
    raise AssertionError("the requests have not ended")


def whole(runner: ModelRunner, other: PlayedProcess) -> list[int]:
    """Returns the tokens of the undisturbed request, whose masks come at once."""
    core = make_core(runner)
    core.add(request("r", other))
    tokens = run(core, LateMasks(other, allowed, WORDS, 0))["r"]
    assert len(tokens) == MAX_TOKENS
    assert all(token in allowed(tokens[:place]) for place, token in enumerate(tokens))
    return tokens


@pytest.mark.parametrize(
    ("place", "num_turns"),
    [
        *((None, 0), (None, 3), (1, 1), (2, 3), (5, 0)),
        *full((None, 1), (1, 0), (1, 3), (2, 0), (2, 1), (5, 1), (5, 3)),
    ],
)
def test_an_adopted_request_waits_for_its_mask(
    runner: ModelRunner, other: PlayedProcess, place: int | None, num_turns: int
) -> None:
    """This holds for every number of replayed tokens, from the prompt's end or from a checkpoint."""
    tokens = whole(runner, other)
    masks = LateMasks(other, allowed, WORDS, num_turns)
    snapshot = None
    if place is not None:
        core = make_core(runner)
        core.add(request("r", other))
        run(core, masks, until={"r": place})
        checkpoint = core.snapshot_request("r")
        place, snapshot = checkpoint.num_tokens, checkpoint.snapshot
    for count in range(place or 1, MAX_TOKENS):
        core = make_core(runner)
        core.add(request("neighbour", None, length=9))
        core.add(request("r", other, replay=Replay(tuple(tokens[:count]), snapshot)))
        assert run(core, masks)["r"] == tokens[count:]


@pytest.mark.parametrize("num_turns", [0, 2])
def test_a_preempted_request_waits_for_its_mask(
    runner: ModelRunner, other: PlayedProcess, num_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses its slot after every number of tokens, also while its mask or a replayed token is awaited."""
    monkeypatch.setattr(preemption, "_LINGER_S", 0.0)
    tokens = whole(runner, other)
    for count in range(1, MAX_TOKENS - 1):
        for replayed in {0, count // 2}:
            core, masks = make_core(runner), LateMasks(other, allowed, WORDS, num_turns)
            replay = Replay(tuple(tokens[:replayed])) if replayed else None
            core.add(request("background", other, preemptible=True, replay=replay))
            come = run(core, masks, until={"background": count - replayed})["background"]
            for number in range(SLOTS):
                core.add(request(f"other {number}", None, length=9))
            assert [*come, *run(core, masks)["background"]] == tokens[replayed:]
            assert core.stats.preemptions >= 1


@pytest.mark.parametrize("num_turns", [0, 2])
def test_a_saved_state_and_forks_wait_for_their_masks(
    runner: ModelRunner, other: PlayedProcess, num_turns: int
) -> None:
    tokens = whole(runner, other)
    core, masks = make_core(runner), LateMasks(other, allowed, WORDS, num_turns)
    core.add(request("saved", None, length=LENGTH))
    run(core, masks)
    state = core.save("saved")
    core = make_core(runner)
    core.add(request("r", other, state=state.snapshot))
    for number in range(SLOTS - 1):
        core.add(request(f"fork {number}", other, fork_of="r"))
    come = run(core, masks)
    assert come == dict.fromkeys(come, tokens)
    assert len(come) == SLOTS
