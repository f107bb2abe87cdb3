"""Preemptible requests give their slots up to others, and have the same tokens as without that."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from roost.engine import EngineCore, ModelRunner, PrefixCache, Request, SamplingParams
from roost.engine.scheduling import preemption
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.errors import QueueFullError
from roost.engine.types.snapshot import RequestSnapshotFormat

SLOTS = 4

pytestmark = pytest.mark.usefixtures("steady_clock")


def make_core(runner: ModelRunner, budget: int = 10**9) -> EngineCore:
    """Returns a core that serves for throughput: preemptible requests have all free slots."""
    limits = replace(runner.limits, itl_target_s=0.0)
    scheduler = Scheduler(SLOTS, 100, limits, cache=PrefixCache(runner.served.config.window, budget))
    return EngineCore(
        scheduler, runner, request_snapshot_format=RequestSnapshotFormat("test", runner.state_format.snapshot)
    )


def request(name: str, length: int, max_tokens: int, *, preemptible: bool = False, seed: int | None = None) -> Request:
    prompt = tuple(np.random.default_rng(length).integers(3, 320, length).tolist())
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0 if seed is None else 1.2, seed=seed or 0)
    return Request(name, prompt, params, preemptible=preemptible)


def run(core: EngineCore, tokens: dict[str, list[int]], outputs: float = inf) -> None:
    """Steps until there were some outputs or nothing is left to do: how many steps that takes depends on the time."""
    while not core.is_idle and outputs > 0:
        for name, output in core.step():
            assert output.error is None
            tokens.setdefault(name, []).extend(output.token_ids)
            outputs -= 1


def undisturbed(runner: ModelRunner, requests: Sequence[Request]) -> dict[str, list[int]]:
    """Returns the tokens of each request when it runs alone."""
    tokens: dict[str, list[int]] = {}
    for each in requests:
        core = make_core(runner)
        core.add(replace(each, preemptible=False))
        run(core, tokens)
    return tokens


def test_a_preempted_request_has_the_tokens_of_an_undisturbed_one(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others come again and again, so that each request loses its slot several times, in prefill too."""
    monkeypatch.setattr(preemption, "_LINGER_S", 0.0)
    background = [
        request(f"background {number}", 20 + 60 * number, 60, preemptible=True, seed=number or None)
        for number in range(6)
    ]
    alone = undisturbed(runner, background)
    core, together = make_core(runner), dict[str, list[int]]()
    for each in background:
        core.add(each)
    for number in range(24):
        core.add(request(f"other {number}", 9, 6))
        if number % 2:  # until both have ended, and those of the background go on
            while len(together.get(f"other {number}", ())) < 6:
                run(core, together, outputs=1)
            run(core, together, outputs=2)
    run(core, together)
    assert core.stats.preemptions > len(background)
    assert {each.id: together[each.id] for each in background} == alone
    assert all(len(together[f"other {number}"]) == 6 for number in range(24))


def test_requests_whose_slots_pass_between_tenants_have_the_tokens_of_undisturbed_ones(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots pass before each step, so that prompts of several chunks are read in several slots."""
    monkeypatch.setattr(preemption, "_TURN_S", 0.0)
    monkeypatch.setattr(preemption, "_LOOK_S", 0.0)
    lines = [
        replace(request(f"{number}", 20 + 90 * number, 12, preemptible=True, seed=number), tenant="abc"[number % 3])
        for number in range(9)
    ]
    alone = undisturbed(runner, lines)
    core, together = make_core(runner), dict[str, list[int]]()
    for number in (0, 3, 6, 1, 4, 7, 2, 5, 8):
        core.add(lines[number])
        run(core, together, outputs=1)
    run(core, together)
    assert core.is_idle
    assert core.stats.preemptions > len(lines)
    assert together == alone


def test_other_requests_get_slots_before_preemptible_ones(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_LINGER_S", 0.0)  # by the clock, in which a fast machine makes 2,000 empty steps
    core = make_core(runner)
    for number in range(9):
        core.add(request(f"background {number}", 9, 50, preemptible=True))
    core.step()
    assert (core.stats.num_preemptible_running, core.stats.num_preemptible_waiting) == (SLOTS, 9 - SLOTS)
    for number in range(SLOTS + 2):
        core.add(request(f"other {number}", 9, 50))
    for _ in range(4):
        core.step()
    assert (core.stats.num_preemptible_running, core.stats.num_running, core.stats.num_waiting) == (0, SLOTS, 2)
    assert core.stats.preemptions == SLOTS
    core.abort("background 0")
    assert core.stats.num_preemptible_waiting == 8
    with pytest.raises(ValueError, match="in use"):
        core.add(request("background 1", 9, 5, preemptible=True))
    tokens: dict[str, list[int]] = {}
    run(core, tokens)
    assert core.is_idle


def test_states_of_preempted_requests_have_a_bound(runner: ModelRunner) -> None:
    """It is the size of the prefix cache. A request whose state has no room ends with an error that says so."""
    size = runner.snapshot(0, 20).num_bytes
    core, errors, tokens = make_core(runner, budget=2 * size), dict[str, str](), dict[str, list[int]]()
    for number in range(SLOTS):
        core.add(request(f"background {number}", 9, 50, preemptible=True))
    run(core, tokens, outputs=2 * SLOTS)
    for number in range(SLOTS):
        core.add(request(f"other {number}", 9, 5))
    while not core.is_idle:
        for name, output in core.step():
            tokens.setdefault(name, []).extend(output.token_ids)
            if output.error is not None:
                assert isinstance(output.error, QueueFullError)
                errors[name] = str(output.error)
    assert core.stats.preemptions == SLOTS
    assert len(errors) == SLOTS - 2
    assert all("give --state-cache-gib more memory" in error for error in errors.values())
    assert [len(tokens[f"other {number}"]) for number in range(SLOTS)] == [5] * SLOTS
    assert [len(tokens[name]) for name in tokens if name.startswith("background") and name not in errors] == [50, 50]
