"""The engine on a device: a request's results do not depend on the requests beside it or before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from roost.engine import EngineCore, ModelRunner, Request, SamplingParams
from roost.engine.scheduling.scheduler import Commit, Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.errors import ConstraintError, NumericError
from roost.engine.types.output_constraint import TokenMask, mask_of_ids
from roost.engine.types.request import Batch, FinishReason, PrefillBatch, RowResult, TokenOutput
from sweeps import examples

TINY = Path(__file__).parents[2] / "golden" / "tiny-a"
SLOTS = 4


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(TINY / "golden.npz")


def serve(
    runner: ModelRunner, requests: list[Request], *, stagger: int = 0, scheduler: Scheduler | None = None
) -> dict[str, list[TokenOutput]]:
    """Runs requests to completion, adding one every `stagger` steps, and returns their outputs by id."""
    core = EngineCore(scheduler or Scheduler(SLOTS, 100, runner.limits), runner)
    outputs: dict[str, list[TokenOutput]] = {r.id: [] for r in requests}
    waiting = list(requests)
    step = 0
    while waiting or not core.is_idle:
        while waiting and step >= stagger * (len(requests) - len(waiting)):
            core.add(waiting.pop(0))
        for name, output in core.step():
            outputs[name] += one_by_one(output)
        step += 1
    return outputs


def states_of(runner: ModelRunner) -> Any:
    """Returns the model's states of all slots."""
    return runner.executor.arrays.get("pool").states


def put_states(runner: ModelRunner, states: Any) -> None:
    arrays = runner.executor.arrays
    arrays.put("pool", arrays.get("pool")._replace(states=states))


@contextmanager
def uncounted_compiles(runner: ModelRunner) -> Iterator[None]:
    """Leaves the programs that a test compiles for itself out of the runner's count."""
    count = runner.executor.compiles.count
    yield
    runner.executor.compiles.count = count


def one_by_one(output: TokenOutput) -> list[TokenOutput]:
    """Splits an output into one per token, without its time: neither is part of a request's result."""
    output = output._replace(started_at=None)
    count = len(output.token_ids)
    if count < 2:
        return [output]
    logprobs = [None] * count if output.logprobs is None else [(entry,) for entry in output.logprobs]
    single = [TokenOutput((t,), entry) for t, entry in zip(output.token_ids, logprobs, strict=True)]
    single[-1] = single[-1]._replace(finish_reason=output.finish_reason, stop_reason=output.stop_reason)
    return single


def ids(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[list[int], dict[str, Any]]]:
    """Draws prompts and parameters as plain values, since type-checked code may not run inside a strategy."""
    crowd = []
    for _ in range(draw(st.integers(2, 7))):
        length = draw(st.sampled_from([1, 2, 3, 17, 63, 64, 65, 130]))
        seed = draw(st.integers(0, 2**64 - 1))
        params = {
            "max_tokens": draw(st.integers(1, 12)),
            "temperature": draw(st.sampled_from([0.0, 0.7, 1.5])),
            "top_k": draw(st.sampled_from([0, 3, 40])),
            "top_p": draw(st.sampled_from([0.5, 0.9, 1.0])),
            "min_p": draw(st.sampled_from([0.0, 0.1])),
            "typical_p": draw(st.sampled_from([0.4, 1.0, 1.0])),
            "logprobs": draw(st.sampled_from([None, 2])),
            "frequency_penalty": draw(st.sampled_from([0.0, 0.7])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.2])),
            "logit_bias": draw(st.sampled_from([(), ((5, 4.0), (319, -3.0))])),
            "allowed_token_ids": draw(st.sampled_from([None, tuple(range(0, 320, 5))])),
            "bad_words": draw(st.sampled_from([(), ((9,), (10, 11))])),
            "seed": seed,
        }
        is_fork = bool(crowd) and draw(st.booleans())
        prompt = crowd[-1][0] if is_fork else np.random.default_rng(seed).integers(3, 320, length).tolist()
        crowd.append((prompt, params))
    return crowd


@examples(6, sweep=15)
@given(crowd=requests(), stagger=st.integers(0, 4))
def test_in_any_crowd_a_request_gets_what_it_gets_alone(
    runner: ModelRunner, crowd: list[tuple[list[int], dict[str, Any]]], stagger: int
) -> None:
    """Tokens and log-probabilities are equal bit for bit, whatever the neighbours, the slot and its last request."""
    batch = [
        Request(str(i), tuple(ids), SamplingParams(**params), fork_of=str(i - 1))
        for i, (ids, params) in enumerate(crowd)
    ]
    together = serve(runner, batch, stagger=stagger)
    for request in batch:
        assert serve(runner, [request])[request.id] == together[request.id]


class SchedulerOnAnotherDevice(Scheduler):
    """Scheduler that is told other durations than the device's."""

    def __init__(self, limits: StepLimits, seconds: Iterator[float]) -> None:
        super().__init__(SLOTS, 100, limits)
        self.seconds = seconds
        self.chunks: set[int] = set()

    def commit(self, batch: Batch, results: Sequence[RowResult], seconds: float) -> Commit:
        if isinstance(batch, PrefillBatch):
            self.chunks |= {chunk.length for chunk in batch.chunks}
        return super().commit(batch, results, next(self.seconds))


@examples(4, sweep=8)
@given(
    crowd=requests(),
    stagger=st.integers(0, 4),
    target_s=st.none() | st.sampled_from([0.0, 1e-4, 0.01, 0.1]),
    durations=st.lists(st.sampled_from([1e-5, 1e-3, 0.01, 0.1]), min_size=1, max_size=5),
)
def test_no_target_and_no_duration_changes_a_bit(
    runner: ModelRunner,
    crowd: list[tuple[list[int], dict[str, Any]]],
    stagger: int,
    target_s: float | None,
    durations: list[float],
) -> None:
    """They decide when prompts are prefilled and how long the chunks are, which no token depends on."""
    batch = [Request(str(i), tuple(ids), SamplingParams(**params)) for i, (ids, params) in enumerate(crowd)]
    limits = replace(runner.limits, itl_target_s=target_s)
    scheduler = SchedulerOnAnotherDevice(limits, cycle(durations))
    together = serve(runner, batch, stagger=stagger, scheduler=scheduler)
    for request in batch:
        assert serve(runner, [request])[request.id] == together[request.id]


@pytest.mark.parametrize(("target_s", "longest"), [(1e-4, 64), (0.0, 128)])
def test_the_target_decides_the_chunks_of_equal_bits(runner: ModelRunner, target_s: float, longest: int) -> None:
    prompts = [tuple(np.random.default_rng(seed).integers(3, 320, 256).tolist()) for seed in range(2)]
    first, second = (Request(str(i), ids, SamplingParams(max_tokens=40, seed=i)) for i, ids in enumerate(prompts))
    scheduler = SchedulerOnAnotherDevice(replace(runner.limits, itl_target_s=target_s), repeat(0.01))
    together = serve(runner, [replace(first, prompt_token_ids=(5,)), second], stagger=4, scheduler=scheduler)
    assert max(scheduler.chunks) == longest
    assert together["1"] == serve(runner, [second])["1"]


def test_greedy_tokens_are_the_official_ones(runner: ModelRunner, golden: Any) -> None:
    prompts = [golden[f"sampler_prompt_{i}"].ravel().tolist() for i in range(3)]
    params = SamplingParams(max_tokens=24, temperature=0.0)
    outputs = serve(runner, [Request(str(i), tuple(p), params) for i, p in enumerate(prompts)])
    for i in range(3):
        assert ids(outputs[str(i)]) == golden["sampler_alone_tokens"][i].tolist()


def test_short_prompts_beside_longer_ones(runner: ModelRunner, golden: Any) -> None:
    """The official sampler lets padding leak into the convolution here."""
    prompts = [golden[f"short_prompt_{i}"].ravel().tolist() for i in range(3)]
    params = SamplingParams(max_tokens=4, temperature=0.0)
    outputs = serve(runner, [Request(str(i), tuple(p), params) for i, p in enumerate(prompts)])
    for i in range(3):
        assert ids(outputs[str(i)]) == golden[f"short_alone_tokens_{i}"].ravel().tolist()


def test_prompt_logprobs_are_the_official_ones(runner: ModelRunner, golden: Any) -> None:
    tokens = golden["full_tokens"][0].tolist()
    logits = golden["full_logits"][0].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    params = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=5)
    (output,) = serve(runner, [Request("a", tuple(tokens), params)])["a"]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    for place, scored in enumerate(output.prompt_logprobs[1:]):
        assert scored is not None
        assert scored.logprob == pytest.approx(expected[place, tokens[place + 1]], abs=5e-4)
        assert [i for i, _ in scored.top] == np.argsort(-expected[place], kind="stable")[:5].tolist()


def test_prompt_logprobs_do_not_depend_on_the_chunks(runner: ModelRunner) -> None:
    """Every token of a prompt of three chunks is scored once, and one more token changes no score."""
    tokens = tuple(np.random.default_rng(0).integers(3, 320, 300).tolist())
    params = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
    whole, shorter = (serve(runner, [Request("a", t, params)])["a"][0].prompt_logprobs for t in (tokens, tokens[:-1]))
    assert whole is not None
    assert len(whole) == 300
    assert whole[:-1] == shorter


def test_chosen_logprobs_match_the_models_own(runner: ModelRunner) -> None:
    """Log-probabilities are taken before temperature, so scoring the generated text gives them within rounding."""
    prompt = tuple(np.random.default_rng(1).integers(3, 320, 20).tolist())
    params = SamplingParams(max_tokens=10, temperature=1.7, top_k=50, seed=3, logprobs=3)
    outputs = serve(runner, [Request("a", prompt, params)])["a"]
    text = prompt + tuple(ids(outputs))
    scoring = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=3)
    scores = serve(runner, [Request("b", text, scoring)])["b"][0].prompt_logprobs
    assert scores is not None
    for output, score in zip(outputs, scores[20:], strict=True):
        assert output.logprobs is not None
        assert score is not None
        assert output.logprobs[0].logprob == pytest.approx(score.logprob, abs=5e-4)
        assert [i for i, _ in output.logprobs[0].top] == [i for i, _ in score.top]


def test_the_seed_decides(runner: ModelRunner) -> None:
    def run(seed: int) -> list[int]:
        params = SamplingParams(max_tokens=30, temperature=1.5, seed=seed)
        return ids(serve(runner, [Request("a", (2, 5, 9), params)])["a"])

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1) != run(1 + 2**32), "the high word counts"


def test_no_end_token_before_min_tokens(runner: ModelRunner) -> None:
    """The first greedy token, as a stop id, ends the request, unless min_tokens forbids it."""
    free = SamplingParams(max_tokens=20, temperature=0.0)
    tokens = ids(serve(runner, [Request("a", (2, 5, 9), free)])["a"])
    stop = (tokens[0],)
    (first,) = serve(runner, [Request("a", (2, 5, 9), replace(free, stop_token_ids=stop))])["a"]
    assert (first.token_ids, first.stop_reason) == (stop, stop[0])
    later = serve(runner, [Request("a", (2, 5, 9), replace(free, stop_token_ids=stop, min_tokens=5))])["a"]
    assert len(later) >= 5
    assert stop[0] not in ids(later[:5])


def test_a_poisoned_slot_does_not_leak(runner: ModelRunner) -> None:
    """Every float that the last request could have left is NaN, in every slot."""
    request = Request("a", (2, 5, 9), SamplingParams(max_tokens=8, temperature=0.0, logprobs=2))
    clean = serve(runner, [request])["a"]
    with uncounted_compiles(runner):
        put_states(runner, jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), states_of(runner)))
    assert serve(runner, [request])["a"] == clean


def test_idle_slots_are_left_alone(runner: ModelRunner) -> None:
    """A step leaves the rows of other slots as they were, bit for bit."""
    serve(runner, [Request(str(i), (2, 5 + i), SamplingParams(max_tokens=3)) for i in range(SLOTS)])
    before = jax.tree.map(np.array, states_of(runner))
    serve(runner, [Request("a", (2, 7, 8), SamplingParams(max_tokens=5))])  # takes slot 0
    for was, now in zip(jax.tree.leaves(before), jax.tree.leaves(states_of(runner)), strict=True):
        axis = 1 if was.shape[0] == 3 else 0  # the convolutions' inputs
        np.testing.assert_array_equal(np.delete(was, 0, axis), np.delete(now, 0, axis))


def test_the_pool_is_updated_in_place(runner: ModelRunner) -> None:
    before = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(states_of(runner))]
    serve(runner, [Request("a", (2, 7, 8), SamplingParams(max_tokens=5))])
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(states_of(runner))] == before


def test_forks_get_what_they_would_get_alone(runner: ModelRunner) -> None:
    """There are more forks than one step samples and than there are slots; a fork with a slot copies the prefill."""
    prompt = tuple(np.random.default_rng(7).integers(3, 320, 150).tolist())

    def family(fork_of: str | None) -> list[Request]:
        params = [SamplingParams(max_tokens=6, temperature=1.5, seed=seed, logprobs=2) for seed in range(6)]
        return [Request(str(i), prompt, p, fork_of=fork_of if i else None) for i, p in enumerate(params)]

    core = EngineCore(Scheduler(SLOTS, 100, runner.limits), runner)
    outputs: dict[str, list[TokenOutput]] = {}
    for request in family("0")[:SLOTS]:
        core.add(request)
    while not core.is_idle:
        for name, output in core.step():
            outputs.setdefault(name, []).extend(one_by_one(output))
    assert core.stats.prompt_tokens == len(prompt)
    together, apart = serve(runner, family("0")), serve(runner, family(None))
    assert together == apart
    assert {name: apart[name] for name in outputs} == outputs
    assert len({tuple(ids(o)) for o in apart.values()}) == 6


def test_no_token_comes_twice_under_a_large_penalty(runner: ModelRunner) -> None:
    params = SamplingParams(max_tokens=100, temperature=0.0, presence_penalty=1e6)
    tokens = ids(serve(runner, [Request("a", (2, 7, 8), params)])["a"])
    assert len(set(tokens)) == 100
    params = SamplingParams(max_tokens=100, temperature=0.0, frequency_penalty=1e6)
    again = ids(serve(runner, [Request("a", tuple(tokens[:50]), params)])["a"])
    assert set(again) & set(tokens[:50]), "the prompt does not count there"
    params = SamplingParams(max_tokens=100, temperature=0.0, repetition_penalty=1e6, presence_penalty=1e6)
    again = ids(serve(runner, [Request("a", tuple(tokens[:50]), params)])["a"])
    assert not set(again) & set(tokens[:50])


class Script:
    """Output constraint that allows one token after the other."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = mask_of_ids(self.left[:1], len(mask))

    def advance(self, token_id: int) -> None:
        assert token_id == self.left.pop(0)


def test_constraints_are_kept_and_cost_others_nothing(runner: ModelRunner) -> None:
    """There are more constraints than one mask step takes, and unconstrained requests in the same batches."""
    scripts = [tuple(np.random.default_rng(i).integers(3, 320, 7 + i).tolist()) for i in range(6)]
    dictated = [
        Request(f"d{i}", (2, 9), SamplingParams(max_tokens=len(s), temperature=float(i % 2)), constraint=Script(*s, 3))
        for i, s in enumerate(scripts)
    ]
    free = [Request(f"f{i}", (2, 9, i), SamplingParams(max_tokens=20, seed=i)) for i in range(3)]
    alone = serve(runner, free)
    together = serve(runner, [dictated[0], free[0], *dictated[1:4], free[1], *dictated[4:], free[2]], stagger=1)
    for request, script in zip(dictated, scripts, strict=True):
        assert tuple(ids(together[request.id])) == script
    assert {name: together[name] for name in alone} == alone


def test_a_constraint_that_runs_dry_is_an_error_of_its_request(runner: ModelRunner) -> None:
    outputs = serve(runner, [Request("a", (2, 9), SamplingParams(max_tokens=9), constraint=Script(5, 6))])["a"]
    assert ids(outputs) == [5]
    assert (outputs[-1].finish_reason, str(outputs[-1].error)) == (
        FinishReason.ERROR,
        "no token is allowed to come next",
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_choice_ends_its_request_alone(runner: ModelRunner, temperature: float) -> None:
    """Only a stop id is allowed while min_tokens forbids it, at the second token or at the first."""
    early = SamplingParams(max_tokens=9, min_tokens=5, stop_token_ids=(6,), temperature=temperature)
    banned = tuple((token,) for token in range(1000) if token != 6)
    dry = Request("dry", (2, 9), early, constraint=Script(5, 6))
    none = Request("none", (2, 9), replace(early, bad_words=banned))
    well = Request("well", (2, 9, 4), SamplingParams(max_tokens=9, temperature=temperature, seed=3))
    outputs = serve(runner, [dry, none, well])
    assert [ids(outputs[name]) for name in ("dry", "none")] == [[5], []]
    for name in ("dry", "none"):
        assert isinstance(outputs[name][-1].error, ConstraintError)
    assert outputs["well"] == serve(runner, [well])["well"]


def poison(runner: ModelRunner, slot: int) -> None:
    """Fills a slot's state with NaN."""
    states = states_of(runner)
    with uncounted_compiles(runner):
        slots = jnp.array([slot], jnp.int32)
        state = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), states.gather(slots, jnp.zeros(1, jnp.bool)))
        put_states(runner, states.scatter(slots, state))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_ends_its_own_request_alone(runner: ModelRunner, temperature: float) -> None:
    """The neighbour continues as if alone, and so does the next request in the same slot."""
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=3)
    core = EngineCore(Scheduler(SLOTS, 100, runner.limits), runner)
    crowd = {name: Request(name, (7, 8, 9, token), params) for token, name in enumerate(("ill", "well", "next"), 20)}
    alone = {name: ids(serve(runner, [request])[name]) for name, request in crowd.items()}
    outputs: dict[str, list[TokenOutput]] = {name: [] for name in crowd}
    core.add(crowd["ill"])
    core.add(crowd["well"])
    for step in range(200):
        if step == 4:
            poison(runner, 0)
        if step == 6:
            core.add(crowd["next"])
        for name, output in core.step():
            outputs[name].append(output)
    assert core.is_idle
    assert outputs["ill"][-1].finish_reason is FinishReason.ERROR
    assert isinstance(outputs["ill"][-1].error, NumericError)
    given = ids(outputs["ill"])
    assert given == alone["ill"][: len(given)] != alone["ill"]
    assert ids(outputs["well"]) == alone["well"]
    assert ids(outputs["next"]) == alone["next"]


def test_a_prompt_whose_activations_are_no_numbers(runner: ModelRunner) -> None:
    """The second chunk continues from a state with NaN."""
    core = EngineCore(Scheduler(SLOTS, 100, runner.limits), runner)
    core.add(Request("a", tuple(range(1, 151)), SamplingParams(max_tokens=0)))
    assert core.step() == []
    poison(runner, 0)
    outputs: list[TokenOutput] = []
    while not core.is_idle:
        outputs += [output for _, output in core.step()]
    (output,) = outputs
    assert isinstance(output.error, NumericError)
