"""Tests of the inexact prefix cache: generated history is restored, with nearly the bits of a prefill."""

from typing import Any

import numpy as np
import pytest
from roost.engine import EngineCore, ModelRunner, PrefixCache, Request, SamplingParams
from roost.engine.prefix_cache.cache import PrefixKey
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.worker.transfer import window_rows

SLOTS, PLENTY = 4, 10**9
NEAR = {"rtol": 1e-4, "atol": 1e-4}


class CachingCore(EngineCore):
    """Engine core with a prefix cache that tests can search."""

    def __init__(self, runner: ModelRunner, *, is_inexact: bool) -> None:
        self.cache = PrefixCache(runner.served.config.window, PLENTY, is_inexact=is_inexact)
        super().__init__(Scheduler(SLOTS, 100, runner.limits, cache=self.cache), runner)


def make_core(runner: ModelRunner, *, is_inexact: bool = True) -> CachingCore:
    return CachingCore(runner, is_inexact=is_inexact)


def text(kind: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(kind).integers(3, 320, count).tolist())


def run(core: EngineCore, *requests: Request) -> dict[str, tuple[tuple[int, ...], int]]:
    """Returns the generated tokens of each request, and the number of its cached prompt tokens."""
    received = {request.id: ((), 0) for request in requests}
    for request in requests:
        core.add(request)
    while not core.is_idle:
        for name, output in core.step():
            tokens, num_cached = received[name]
            received[name] = (*tokens, *output.token_ids), num_cached + output.num_cached
    return received


def ask(name: str, prompt: tuple[int, ...], max_tokens: int = 20, **fields: Any) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, **{"temperature": 0.0, **fields}))


def check_end(core: CachingCore, tokens: tuple[int, ...], runner: ModelRunner) -> None:
    """Checks that the cached state after these tokens is nearly the one that prefilling them gives."""
    found = core.cache.match_prefix(PrefixKey.of((*tokens, 5), ""))
    assert found is not None
    assert found.length == len(tokens)
    reader = make_core(runner)
    run(reader, ask("a", tokens, 1))
    read = reader.cache.match_prefix(PrefixKey.of(tokens, ""))
    assert read is not None
    assert read.length == len(tokens)
    for left, wanted in zip(found.recurrent, read.recurrent, strict=True):
        np.testing.assert_allclose(left, wanted, **NEAR)
    np.testing.assert_allclose(
        window_rows(found, runner.served.config.window), window_rows(read, runner.served.config.window), **NEAR
    )


@pytest.mark.parametrize(("length", "count"), [(1, 2), (1, 200), (40, 26), (64, 3), (300, 2), (300, 200)])
def test_turn_caches_the_state_of_all_but_its_last_token(runner: ModelRunner, length: int, count: int) -> None:
    core, prompt = make_core(runner), text(1, length)
    reply, _ = run(core, ask("a", prompt, count))["a"]
    assert len(reply) == count
    check_end(core, (*prompt, *reply[:-1]), runner)


def test_turns_that_stop_in_a_full_batch_cache_their_states(runner: ModelRunner) -> None:
    """Slots are compacted meanwhile, and reused by waiting requests."""
    prompts = [text(kind, 30 * kind) for kind in range(1, 10)]
    free = run(make_core(runner), *(ask(str(i), prompt, 40) for i, prompt in enumerate(prompts)))
    stops = [free[str(i)][0][3 + 4 * i] for i in range(9)]
    core = make_core(runner)
    received = run(core, *(ask(str(i), p, 40, end_token_ids=(stops[i],)) for i, p in enumerate(prompts)))
    for i, prompt in enumerate(prompts):
        reply, _ = received[str(i)]
        assert reply[-1] == stops[i]
        if len(reply) > 1:
            check_end(core, (*prompt, *reply[:-1]), runner)


def test_conversation_prefills_the_new_turn_only(runner: ModelRunner) -> None:
    core, history, last = make_core(runner), text(1, 200), 0
    for turn in range(5):
        reply, num_cached = run(core, ask("a", history, 70))["a"]
        assert num_cached == last
        last, history = len(history) + 69, (*history, *reply, *text(turn, 30))
    assert core.stats.prompt_tokens == 200 + 4 * 31


def test_logprobs_are_nearly_those_of_a_prefill(runner: ModelRunner) -> None:
    answers = []
    for is_inexact in (True, False):
        core, history = make_core(runner, is_inexact=is_inexact), text(1, 100)
        reply, _ = run(core, ask("a", history, 50))["a"]
        answers.append(run(core, ask("b", (*history, *reply, *text(2, 10)), 10))["b"])
    (inexactly, more), (exactly, less) = answers
    assert (more, less) == (149, 64)
    assert inexactly == exactly


def test_aborted_and_failed_requests_cache_no_end(runner: ModelRunner) -> None:
    core, prompt = make_core(runner), text(1, 100)
    core.add(ask("a", prompt, 100))
    while not any(output.token_ids for _, output in core.step()):
        pass
    core.step()
    core.abort("a")
    while not core.is_idle:
        core.step()
    assert core.stats.cache.snapshots == 2, "of the prompt"


def test_saved_state_is_at_a_block_boundary(runner: ModelRunner) -> None:
    core = make_core(runner)
    run(core, ask("a", text(1, 100), 20))
    state = core.save("a")
    assert state.snapshot is not None
    assert (len(state.token_ids), state.snapshot.length) == (120, 64)
    assert runner.state_format.load(runner.state_format.export(state)).token_ids == state.token_ids


def test_exact_cache_reads_no_slots(runner: ModelRunner) -> None:
    core = make_core(runner, is_inexact=False)
    run(core, ask("a", text(1, 100), 20))
    assert core.stats.cache.snapshots == 2
