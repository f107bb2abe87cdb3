"""Tests of the prefix cache on a device: outputs do not depend on cache hits, bit for bit."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from roost.engine import EngineCore, ModelRunner, PrefixCache, Request, SamplingParams
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.request import TokenOutput
from roost.engine.types.snapshot import BlockState
from roost.engine.worker import runner as runner_module
from roost.engine.worker.transfer import read_block_states
from sweeps import examples

SLOTS = 4
TINY_MODEL = Path(__file__).parents[1] / "golden" / "tiny-a" / "hf"
PLENTY = 10**9


def make_core(runner: ModelRunner, budget: int = PLENTY) -> EngineCore:
    cache = PrefixCache(runner.served.config.window, budget) if budget else None
    return EngineCore(Scheduler(SLOTS, 100, runner.limits, cache=cache), runner)


class Received:
    """Tokens that a request received, their log-probabilities, and the number of its cached prompt tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.num_cached = 0

    def add(self, output: TokenOutput) -> None:
        self.tokens += output.token_ids
        self.logprobs += output.logprobs or ()
        self.logprobs += output.prompt_logprobs or ()
        self.num_cached += output.num_cached

    @property
    def text(self) -> tuple[Any, ...]:
        return self.tokens, self.logprobs


def run(core: EngineCore, *requests: Request, stagger: int = 0) -> dict[str, Received]:
    """Runs requests to their ends, a new one every `stagger` steps."""
    received = {request.id: Received() for request in requests}
    waiting, step = list(requests), 0
    while waiting or not core.is_idle:
        while waiting and step >= stagger * (len(requests) - len(waiting)):
            core.add(waiting.pop(0))
        for name, output in core.step():
            received[name].add(output)
        step += 1
    return received


def prompt(*parts: tuple[int, int]) -> tuple[int, ...]:
    """Returns a prompt of `count` tokens of each kind."""
    return tuple(i for kind, n in parts for i in np.random.default_rng(kind).integers(3, 320, 400).tolist()[:n])


def ask(name: str, *parts: tuple[int, int], **fields: Any) -> Request:
    fork_of, salt = fields.pop("fork_of", None), fields.pop("cache_salt", "")
    params = SamplingParams(**{"max_tokens": 4, "seed": 5, "logprobs": 2, **fields})
    return Request(name, prompt(*parts), params, fork_of=fork_of, cache_salt=salt)


PARTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 17, 64, 100, 192, 300])), min_size=1, max_size=3)
CROWD = st.lists(
    st.fixed_dictionaries(
        {
            "parts": PARTS,
            "max_tokens": st.integers(0, 9),
            "temperature": st.sampled_from([0.0, 1.3]),
            "repetition_penalty": st.sampled_from([1.0, 1.2]),
            "prompt_logprobs": st.sampled_from([None, None, None, 1]),
            "salt": st.sampled_from(["", "other"]),
            "is_fork": st.booleans(),
        }
    ),
    min_size=2,
    max_size=9,
)


@examples(8, sweep=20)
@given(
    crowd=CROWD,
    stagger=st.integers(0, 6),
    budget=st.sampled_from([PLENTY, 400_000]),
    aborts=st.sets(st.integers(0, 8)),
)
def test_outputs_with_cache_equal_outputs_without(
    runner: ModelRunner, crowd: list[dict[str, Any]], stagger: int, budget: int, aborts: set[int]
) -> None:
    """Traffic is random, with room for all snapshots or for few, and some requests are aborted midway."""
    requests: list[Request] = []
    for index, fields in enumerate(crowd):
        fields = dict(fields)
        parts, salt = fields.pop("parts"), fields.pop("salt")
        if fields.pop("is_fork") and requests:
            parts = crowd[index - 1]["parts"]
        crowd[index]["parts"] = parts
        requests.append(ask(str(index), *parts, cache_salt=salt, seed=index, fork_of=str(index - 1), **fields))
    core = make_core(runner, budget)
    for index in aborts:
        if index < len(requests):
            core.add(
                Request(f"aborted {index}", requests[index].prompt_token_ids, cache_salt=requests[index].cache_salt)
            )
            for _ in range(index % 4):
                core.step()
            core.abort(f"aborted {index}")
    received = run(core, *requests, stagger=stagger)
    off = make_core(runner, 0)
    for request in requests:
        assert received[request.id].text == run(off, request)[request.id].text


def test_same_prompt_twice_prefills_nothing(runner: ModelRunner) -> None:
    for length in (1, 30, 64, 300):
        core = make_core(runner)
        first, second = (run(core, ask(name, (1, length)))[name] for name in "ab")
        assert (first.num_cached, second.num_cached) == (0, length)
        assert first.text == second.text
        assert core.stats.prompt_tokens == length


def test_shared_prefix_of_a_hundred_tokens_hits(runner: ModelRunner) -> None:
    core = make_core(runner)
    assert run(core, ask("a", (1, 100), (2, 50)))["a"].num_cached == 0
    assert run(core, ask("b", (1, 100), (3, 50)))["b"].num_cached == 64


def test_diverging_suffixes_hit_at_the_branch_point(runner: ModelRunner) -> None:
    core = make_core(runner)
    run(core, ask("a", (1, 300), (2, 100)))
    received = run(core, ask("b", (1, 300), (3, 100)))["b"]
    assert received.num_cached == 256
    assert received.text == run(make_core(runner, 0), ask("b", (1, 300), (3, 100)))["b"].text


def test_conversation_prefills_the_last_reply_and_the_new_turn(runner: ModelRunner) -> None:
    core, history, last = make_core(runner), prompt((1, 200)), 0
    for turn in range(4):
        request = Request("a", history, SamplingParams(max_tokens=20, temperature=0.0))
        before = core.stats.prompt_tokens
        received = run(core, request)["a"]
        if turn:
            assert received.num_cached == last // 64 * 64
            assert core.stats.prompt_tokens - before == len(history) - last // 64 * 64
        last, history = len(history), (*history, *received.tokens, *prompt((turn, 30)))


def test_retry_of_an_aborted_prefill_resumes_it(runner: ModelRunner) -> None:
    core = make_core(runner)
    core.add(ask("a", (1, 400), (2, 400)))
    for _ in range(3 * runner.limits.prefill_layer_slices):
        core.step()
    core.abort("a")
    retry = run(core, ask("b", (1, 400), (2, 400)))["b"]
    assert retry.num_cached == 384, "the chunk in flight came back before the first chunk of the retry"
    assert retry.text == run(make_core(runner, 0), ask("b", (1, 400), (2, 400)))["b"].text
    assert run(core, ask("c", (1, 400), (2, 400)))["c"].num_cached == 800


def test_slot_reused_during_its_last_chunk_caches_the_right_state(runner: ModelRunner) -> None:
    """The chunk of the aborted request is still on the device when the next request gets its slot."""
    core = EngineCore(Scheduler(1, 100, runner.limits, cache=PrefixCache(runner.served.config.window, PLENTY)), runner)
    core.add(ask("a", (1, 300)))
    for _ in range(runner.limits.prefill_layer_slices):
        core.step()
    core.abort("a")
    run(core, ask("b", (2, 300)))
    retry = run(core, ask("c", (1, 300)))["c"]
    assert retry.num_cached == 128
    assert retry.text == run(make_core(runner, 0), ask("c", (1, 300)))["c"].text


def test_restore_between_two_block_boundaries(runner: ModelRunner) -> None:
    """The chunk up to the next boundary is short, though much is left to prefill."""
    core = make_core(runner, budget=0)
    run(core, ask("begun", (1, 100), max_tokens=1))
    state = runner.snapshot(0, 100)
    whole = ask("whole", (1, 100), (2, 150))
    expected, received = run(core, whole)["whole"], run(core, replace(whole, id="resumed", state=state))["resumed"]
    assert received.num_cached == 100
    assert received.tokens == expected.tokens
    for one, other in zip(received.logprobs, expected.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_salts_keep_tenants_apart(runner: ModelRunner) -> None:
    core = make_core(runner)
    received = [run(core, ask("a", (1, 200), cache_salt=salt))["a"].num_cached for salt in ("x", "y", "", "x")]
    assert received == [0, 0, 0, 200]


def test_forks_of_a_cached_prompt_prefill_nothing(runner: ModelRunner) -> None:
    core = make_core(runner)
    run(core, ask("first", (1, 200)))
    family = [ask(str(i), (1, 200), seed=i, temperature=1.5, fork_of="0" if i else None) for i in range(4)]
    together = run(core, *family)
    assert core.stats.prompt_tokens == 200
    assert [together[str(i)].num_cached for i in range(4)] == [200, 0, 0, 0], "forks copy a slot"
    off = make_core(runner, 0)
    for request in family:
        assert together[request.id].text == run(off, request)[request.id].text


def test_prompt_logprobs_prefill_the_whole_prompt(runner: ModelRunner) -> None:
    core = make_core(runner)
    first, second = (run(core, ask(name, (1, 200), prompt_logprobs=1))[name] for name in "ab")
    assert (second.num_cached, first.text) == (0, second.text)
    assert run(core, ask("c", (1, 200)))["c"].num_cached == 200, "but others gain from it"


def test_snapshots_take_no_slots(runner: ModelRunner) -> None:
    core = make_core(runner)
    run(core, *(ask(str(i), (i, 100)) for i in range(6)))
    stats = core.stats
    assert (stats.num_running, stats.cache.snapshots) == (0, 12)
    assert stats.cache.num_bytes > 0


def test_first_token_does_not_wait_for_block_states(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read, core = threading.Event(), make_core(runner)

    def held_back(*arguments: Any) -> tuple[BlockState, ...]:
        assert may_read.wait(60)
        return read_block_states(*arguments)

    monkeypatch.setattr(runner_module, "read_block_states", held_back)
    core.add(ask("a", (1, 100)))
    while not (outputs := core.step()):
        pass
    assert len(outputs[0][1].token_ids) == 1
    assert core.stats.cache.snapshots == 0
    may_read.set()
    core.step()
    assert core.stats.cache.snapshots == 2
    core.abort("a")
    run(core)


def test_without_a_cache_no_state_leaves_the_device(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "keeps_snapshots", False)
    core = make_core(runner)
    run(core, ask("a", (1, 100)))
    assert core.stats.cache.snapshots == 0
