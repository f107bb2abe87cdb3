"""Speculation changes no bit: tokens and log-probabilities with drafts equal those without, on a real model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from roost.engine import (
    UNUSED_PREDICTION,
    ConfigError,
    DraftCounts,
    EngineConfig,
    EngineCore,
    ModelRunner,
    PredictionUse,
    PrefixCache,
    Request,
    SamplingParams,
    Scheduler,
    Simulation,
    Speculation,
    TokenOutput,
    load_runner,
    open_model,
)
from roost.engine.checkpoint.source import ModelSource
from roost.engine.scheduling import preemption
from roost.engine.scheduling.drafting import DraftSwitch
from roost.engine.types.config import MeshShape
from roost.engine.types.output_constraint import Forced, TokenMask, mask_of_ids
from roost.engine.types.request import Replay
from roost.engine.types.snapshot import RequestSnapshotFormat
from roost.kernels import native
from small_models import TINY_A
from sweeps import examples, swept
from test_replay import EvenThenOdd

LEAST, FEW, MANY = (2, 1), (2, 3), (4, 7)
"""Numbers of slots, and of drafted tokens: rounds of up to 4 tokens, of up to 8, and of up to 32."""

KINDS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "float32, small rounds": (LEAST, {"dtype": "float32"}),  # compiles in half the time of the next
    "float32": (FEW, {"dtype": "float32"}),
    "float32, large rounds": (MANY, {"dtype": "float32"}),
    "bfloat16": (MANY, {"dtype": "bfloat16"}),
    "int8 by native kernels": (FEW, {"dtype": "bfloat16", "quantize": "int8"}),
    "int8, large rounds": (MANY, {"dtype": "bfloat16", "quantize": "int8"}),
    "int8 window": (MANY, {"dtype": "bfloat16", "quantize": "int8", "kv_dtype": "int8"}),
    "bfloat16 by XLA": (MANY, {"dtype": "bfloat16", "without_kernels": ("native",)}),
    "int4": (MANY, {"dtype": "bfloat16", "quantize": "int4"}),
    "int4 by XLA": (FEW, {"dtype": "float32", "quantize": "int4", "without_kernels": ("native",)}),
    "two key heads": (FEW, {"dtype": "float32", "num_key_heads": 2}),
    "four key heads, int8 window": (MANY, {"dtype": "bfloat16", "kv_dtype": "int8", "num_key_heads": 4}),
}
"""Sizes of rounds, and fields of the engine's and, for key heads, of the model's config."""


@pytest.fixture(scope="module", params=["float32, small rounds", *swept(*list(KINDS)[1:])])
def runner(request: pytest.FixtureRequest) -> Iterator[ModelRunner]:
    if request.param.endswith("native kernels") and not native.is_available():
        pytest.skip("the native kernels don't run here")
    (slots, num_tokens), kind = KINDS[request.param]
    heads = kind.get("num_key_heads", 1)
    source = open_model(str(TINY_A / "hf"))
    if heads > 1:
        source = ModelSource("many", replace(source.config, num_key_heads=heads), None, ())
    kind = {name: value for name, value in kind.items() if name != "num_key_heads"}
    settings = Speculation(num_tokens, min_match=1, max_match=3)
    config = EngineConfig(slots, prefill_chunk=64, request_snapshots=True, speculation=settings, **kind)
    runner = load_runner(source, config)
    yield runner
    assert runner.compiles_since_ready == 0
    runner.close()


@pytest.fixture(autouse=True)
def steady(steady_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts never pause: each case must have some."""
    monkeypatch.setattr(DraftSwitch, "is_on", lambda *_: True)


def make_core(runner: ModelRunner, *, drafts: bool, **changes: Any) -> EngineCore:
    """Returns a core whose batches have up to 4 rounds. The runner's limit depends on this machine's speed."""
    changes = {"speculation": runner.limits.speculation if drafts else None, "decode_steps": 4, **changes}
    limits = replace(runner.limits, **changes)
    return EngineCore(
        Scheduler(runner.served.slots, 100, limits, cache=PrefixCache(runner.served.config.window, 10**8)), runner
    )


def repetitive(seed: int, length: int) -> tuple[int, ...]:
    """A prompt in which few tokens come again and again."""
    rng = np.random.default_rng(seed)
    unit = rng.integers(3, 320, rng.integers(1, 9)).tolist()
    return tuple((unit * length)[:length])


class Phrases:
    """Allows any token, and after each of these forces some that follow from it.

    Args:
      size: Number of tokens that are forced at a time.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._left: tuple[int, ...] = ()

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = self._mask(len(mask)) if not self._left else mask_of_ids(self._left[:1], len(mask))
        self._words = len(mask)

    def forced(self) -> Forced:
        return Forced(self._left, self._mask(self._words))

    def advance(self, token_id: int) -> None:
        assert not self._left or token_id == self._left[0]
        following = tuple(5 + (7 * token_id + i) % 300 for i in range(self._size))
        self._left = self._left[1:] if self._left else following

    def _mask(self, words: int) -> TokenMask:
        return mask_of_ids(range(4, 310), words)


def crowd(fields: Sequence[dict[str, Any]]) -> list[Request]:
    """Requests with these sampling fields; "constrained", "phrases", "stepwise" and "fork_of" are of the request."""
    requests = []
    for index, each in enumerate(fields):
        params, more = dict(each), {}
        for name in ("fork_of", "stepwise"):
            if name in params:
                more[name] = params.pop(name)
        if params.pop("constrained", False):
            more["constraint"] = EvenThenOdd()
        if size := params.pop("phrases", 0):
            more["constraint"] = Phrases(size)
        prompt = repetitive(*params.pop("prompt", (index, 5 + 9 * index)))
        requests.append(Request(str(index), prompt, SamplingParams(**{"max_tokens": 40, **params}), **more))
    return requests


def serve(core: EngineCore, requests: Sequence[Request]) -> dict[str, TokenOutput]:
    """Returns the outputs of each request as one."""
    for request in requests:
        core.add(request)
    results: dict[str, list[TokenOutput]] = {request.id: [] for request in requests}
    while not core.is_idle:
        for name, output in core.step():
            assert output.error is None
            results[name].append(output)
    return {name: joined(outputs) for name, outputs in results.items()}


def joined(outputs: Sequence[TokenOutput]) -> TokenOutput:
    tokens = tuple(token for output in outputs for token in output.token_ids)
    logprobs = tuple(entry for output in outputs for entry in output.logprobs or ())
    return TokenOutput(tokens, logprobs, finish_reason=outputs[-1].finish_reason, stop_reason=outputs[-1].stop_reason)


def assert_both(counts: DraftCounts | None) -> None:
    """Some drafts were accepted and some rejected."""
    assert counts is not None
    assert 0 < sum(counts.accepted) < counts.tokens


def check(runner: ModelRunner, fields: Sequence[dict[str, Any]]) -> dict[str, TokenOutput]:
    """Serves a crowd with and without drafts; returns its outputs."""
    expected = serve(make_core(runner, drafts=False), crowd(fields))
    core = make_core(runner, drafts=True)
    assert serve(core, crowd(fields)) == expected
    assert_both(core.stats.drafts)
    return expected


EVEN = {"temperature": 1000.0, "allowed_token_ids": (5, 6), "max_tokens": 90}
"""Sampling fields with which any model draws two tokens evenly, so that it accepts and rejects about as many drafts."""

CROWDS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0.0}] * 6,
    "sampled": [{"temperature": 0.2, "seed": seed} for seed in range(6)],
    "hot and cold": [{"temperature": temperature, "seed": 3} for temperature in (0.0, 0.1, 0.3, 1.0, 2.0)],
    "truncated": [
        {"temperature": 0.4, "seed": 1, **cut}
        for cut in ({"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.9}, {"top_k": 9, "top_p": 0.7})
    ],
    "penalties": [
        {"temperature": temperature, "seed": 5, **penalty}
        for temperature in (0.0, 0.2)
        for penalty in ({"frequency_penalty": 0.1}, {"presence_penalty": 0.4}, {"repetition_penalty": 1.1})
    ],
    "log-probabilities": [
        {"temperature": 0.2, "seed": seed, "logprobs": 3, "logprob_token_ids": (5, 9)} for seed in range(4)
    ],
    "biases and masks": [
        {"temperature": 0.0, "logit_bias": ((7, 2.0), (8, 2.0))},
        EVEN,
        {"temperature": 0.3, "min_tokens": 30, "stop_token_ids": tuple(range(3, 60))},
    ],
    "ring": [
        {"temperature": 0.1, "prompt": (seed, length), "max_tokens": 60}
        for seed, length in enumerate((1, 14, 15, 16, 17))
    ],
    "ends": [
        *({"temperature": 0.0, "max_tokens": count, "prompt": (2, 30)} for count in (1, 2, 3, 4, 5, 6, 7, 30)),
        EVEN,
    ],
    "no drafts for some": [
        {"temperature": 0.0},
        {"temperature": 0.2, "constrained": True},
        {"temperature": 0.0, "stepwise": True},
        {"temperature": 0.1},
    ],
    "forks": [
        {"temperature": 0.3, "seed": seed, "prompt": (4, 40), **({"fork_of": "0"} if seed else {})} for seed in range(6)
    ],
}


@pytest.mark.parametrize("name", CROWDS)
def test_drafts_change_no_bit(runner: ModelRunner, name: str) -> None:
    check(runner, CROWDS[name])


@examples(5, sweep=60)
@given(
    fields=st.lists(
        st.fixed_dictionaries(
            {
                "prompt": st.tuples(st.integers(0, 9), st.integers(1, 70)),
                "max_tokens": st.integers(1, 60),
                "temperature": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
                "seed": st.integers(0, 9),
                "top_p": st.sampled_from([1.0, 0.9]),
                "top_k": st.sampled_from([0, 5]),
                "frequency_penalty": st.sampled_from([0.0, 0.2]),
                "repetition_penalty": st.sampled_from([1.0, 1.2]),
                "logprobs": st.sampled_from([None, 2]),
            }
        ),
        max_size=5,
    )
)
def test_no_crowd_gets_other_bits(runner: ModelRunner, fields: list[dict[str, Any]]) -> None:
    """A greedy request, and one that has accepted and rejected drafts, are always there."""
    check(runner, [{"temperature": 0.0, "prompt": (1, 14)}, EVEN, *fields])


def test_a_stop_id_inside_a_round_is_the_last_token(runner: ModelRunner) -> None:
    """Each token of an output in turn ends it, at its first place."""
    plain = [{"temperature": 0.0, "prompt": (2, 23)}, {**EVEN, "prompt": (1, 14)}]
    outputs = check(runner, plain)
    tokens = list(dict.fromkeys(outputs["0"].token_ids))
    ended = check(runner, [*plain, *({**plain[0], "stop_token_ids": (token,)} for token in tokens)])
    for index, token in enumerate(tokens):
        end = outputs["0"].token_ids.index(token) + 1
        assert ended[str(2 + index)].token_ids == outputs["0"].token_ids[:end]
        assert ended[str(2 + index)].stop_reason == token


FORCED_CROWDS: dict[str, list[dict[str, Any]]] = {
    "alone and beside others": [
        {"temperature": 0.0},
        *({"temperature": 1.0, "seed": size, "phrases": size, "logprobs": 2} for size in (1, 2, 3, 9)),
        {
            "temperature": 0.5,
            "seed": 4,
            "phrases": 4,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.2,
            "top_p": 0.9,
        },
        {"temperature": 1.0, "seed": 2, "phrases": 2, "logit_bias": ((9, 3.0),), "min_tokens": 9},
        {"temperature": 1.0, "phrases": 2, "allowed_token_ids": tuple(range(4, 306))},
        {"temperature": 1.0, "phrases": 2, "stepwise": True},
        *({"temperature": 1.0, "seed": count, "phrases": 3, "max_tokens": count} for count in range(2, 12)),
    ],
    "forks": [
        {"temperature": 0.0},
        *({"seed": seed, "prompt": (4, 40), "phrases": 2, **({"fork_of": "1"} if seed else {})} for seed in range(4)),
    ],
}


@pytest.mark.parametrize("name", FORCED_CROWDS)
def test_forced_tokens_change_no_bit(runner: ModelRunner, name: str) -> None:
    fields = FORCED_CROWDS[name]
    core = make_core(runner, drafts=True)
    assert serve(core, crowd(fields)) == serve(make_core(runner, drafts=False), crowd(fields))
    assert core.stats.drafts is not None
    assert sum(core.stats.drafts.accepted) > 0


FORCED = {"temperature": 1.0, "seed": 3, "phrases": 2, "logprobs": 1}


def test_forced_tokens_take_fewer_steps_and_are_right(runner: ModelRunner) -> None:
    """Without repetitions too, and without searching for any."""
    num_steps, results = [], []
    for drafts in (False, True):
        core = make_core(runner, drafts=drafts)
        core.add(*crowd([FORCED]))
        outputs: list[TokenOutput] = []
        while not core.is_idle:
            outputs += [output for _, output in core.step()]
        num_steps.append(len(outputs))
        results.append(joined(outputs))
    assert results[0] == results[1]
    counts = core.stats.drafts
    assert counts is not None
    assert counts.tokens == sum(counts.accepted) == num_steps[0] - num_steps[1] > 0


@pytest.mark.parametrize("min_tokens", [0, 40])
def test_a_forced_stop_id_ends_the_output_or_fails_it(runner: ModelRunner, min_tokens: int) -> None:
    """It is banned before `min_tokens`, and then nothing is allowed."""
    output, num_rejected = serve(make_core(runner, drafts=False), crowd([FORCED]))["0"], 0
    for token in dict.fromkeys(output.token_ids[:12]):
        (request,) = crowd([{**FORCED, "stop_token_ids": (token,), "min_tokens": min_tokens}])
        ends = []
        for drafts in (False, True):
            core, outputs = make_core(runner, drafts=drafts), []
            core.add(replace(request, constraint=Phrases(2)))
            while not core.is_idle:
                outputs += [output for _, output in core.step()]
            ends.append((joined(outputs), str(outputs[-1].error)))
        assert ends[0] == ends[1]
        assert core.stats.drafts is not None
        num_rejected += core.stats.drafts.tokens - sum(core.stats.drafts.accepted)
    assert num_rejected or not min_tokens


def test_a_request_with_forced_tokens_goes_on_after_a_replay(runner: ModelRunner) -> None:
    whole = serve(make_core(runner, drafts=False), crowd([FORCED]))["0"]
    for length in (1, 7, 8, 9, 20):
        core = make_core(runner, drafts=True)
        (request,) = crowd([FORCED])
        rest = serve(core, [replace(request, replay=Replay(whole.token_ids[:length]))])["0"]
        assert (rest.token_ids, rest.logprobs) == (whole.token_ids[length:], (whole.logprobs or ())[length:])
        assert core.stats.drafts is not None
        assert core.stats.drafts.tokens


def test_requests_draft_once_programs_for_it_are_compiled(runner: ModelRunner) -> None:
    """Until then they get their tokens without drafts. Which tokens these are does not depend on it."""
    compiled, requests = runner.executor.compiled, crowd([{"temperature": 0.0}] * 2)
    expected = serve(make_core(runner, drafts=False), requests)
    later = {label: compiled.pop(label) for label in list(compiled) if label.startswith("speculate")}
    core, results = make_core(runner, drafts=True), {request.id: list[TokenOutput]() for request in requests}
    for request in requests:
        core.add(request)
    for step in count():
        if step == 4:
            assert later
            assert core.stats.drafts is not None
            assert core.stats.drafts.tokens == 0
            compiled.update(later)
        for name, output in core.step():
            results[name].append(output)
        if core.is_idle:
            break
    assert {name: joined(outputs) for name, outputs in results.items()} == expected
    assert core.stats.drafts is not None
    assert sum(core.stats.drafts.accepted)


def test_a_cancelled_request_leaves_others_as_they_are(runner: ModelRunner) -> None:
    fields = [{"temperature": 0.0, "max_tokens": 400 if index == 1 else 40} for index in range(6)]
    expected = serve(make_core(runner, drafts=False), crowd(fields))
    core = make_core(runner, drafts=True)
    for request in crowd(fields):
        core.add(request)
    results: dict[str, list[TokenOutput]] = {request.id: [] for request in crowd(fields)}
    for step in range(1000):
        if core.is_idle:
            break
        for name, output in core.step():
            results[name].append(output)
        if step == 9:
            assert core.abort("1")
    assert {name: joined(results[name]) for name in results if name != "1"} == {
        name: output for name, output in expected.items() if name != "1"
    }
    assert_both(core.stats.drafts)


@pytest.mark.parametrize("until", [50, 80, 120])
def test_a_state_after_drafts_is_that_of_single_steps(runner: ModelRunner, until: int) -> None:
    """It is equal bit for bit, the window included, although rejected tokens were written there."""
    (request,) = crowd([{"temperature": 0.5, "prompt": (1, 14), "max_tokens": 200}])
    core = make_core(runner, drafts=True, decode_steps=2)
    steps_until(core, request, until)
    ours = core.snapshot_request(request.id)
    single = make_core(runner, drafts=False, decode_steps=1)
    steps_until(single, request, ours.num_tokens - 1)  # one more is in flight
    theirs = single.snapshot_request(request.id)
    assert theirs.num_tokens == ours.num_tokens
    assert_both(core.stats.drafts)
    for x, y in zip(ours.snapshot.recurrent, theirs.snapshot.recurrent, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(ours.snapshot.window, theirs.snapshot.window, strict=True):
        np.testing.assert_array_equal(x, y)


def steps_until(core: EngineCore, request: Request, num_tokens: int) -> None:
    """Steps until a request has at least so many tokens."""
    core.add(request)
    count = 0
    while count < num_tokens:
        count += sum(len(output.token_ids) for _, output in core.step())


def test_a_replayed_request_goes_on_with_drafts(runner: ModelRunner) -> None:
    request = crowd([{"temperature": 0.2, "prompt": (2, 23), "logprobs": 1}])[0]
    whole = serve(make_core(runner, drafts=False), [request])["0"]
    for length in (1, 7, 20):
        core = make_core(runner, drafts=True)
        rest = serve(core, [replace(request, replay=Replay(whole.token_ids[:length]))])["0"]
        assert rest.token_ids == whole.token_ids[length:]
        assert rest.logprobs == (whole.logprobs or ())[length:]
        assert core.stats.drafts is not None
        assert core.stats.drafts.tokens


def edited(token_ids: Sequence[int]) -> tuple[int, ...]:
    """An output as somebody may have predicted it: another token now and then, one missing, and one too many."""
    changed = [token if place % 9 != 5 else 3 + token % 300 for place, token in enumerate(token_ids)]
    return (*changed[:12], *changed[13:20], 7, *changed[20:])


def new_texts(runner: ModelRunner, fields: Sequence[dict[str, Any]]) -> tuple[list[Request], dict[str, TokenOutput]]:
    """Returns requests whose prompts and outputs repeat little, with predictions, and their outputs without drafts."""
    rng = np.random.default_rng(5)
    prompts = {length: tuple(rng.integers(3, 320, length).tolist()) for length in (1, 9, 70, 90)}
    params = {"max_tokens": 40, "temperature": 3.0, "logprobs": 2, "logprob_token_ids": (5,)}
    requests = []
    for index, each in enumerate(fields):
        length, fork_of = each.get("prompt", 9), each.get("fork_of")
        own = SamplingParams(**{**params, "seed": index, **each.get("params", {})})
        requests.append(Request(str(index), prompts[length], own, fork_of=fork_of))
    outputs = serve(make_core(runner, drafts=False), requests)
    return [replace(each, predicted_token_ids=edited(outputs[each.id].token_ids)) for each in requests], outputs


ONCE = {"presence_penalty": 1000.0}
"""Sampling fields with which no token comes twice, so that drafts continue the prediction, whatever the model."""

PREDICTED: dict[str, list[dict[str, Any]]] = {
    "sampled": [{"prompt": length} for length in (1, 9, 70, 90)],
    "greedy": [
        {"prompt": length, "params": {"temperature": 0.0, "repetition_penalty": 2.0}} for length in (1, 9, 70, 90)
    ],
    "penalties": [{"params": {"frequency_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 20}}] * 3,
    "forks": [{"prompt": 70, "params": ONCE}, *[{"prompt": 70, "params": ONCE, "fork_of": "0"}] * 4],
}


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_change_no_bit(runner: ModelRunner, name: str) -> None:
    """The second time, prompts come from the prefix cache."""
    requests, expected = new_texts(runner, PREDICTED[name])
    core = make_core(runner, drafts=True)
    for _ in range(2):
        uses = check_uses(core, requests, expected)
        for request in requests:
            assert 0 < uses[request.id].num_accepted <= len(expected[request.id].token_ids)
        assert sum(use.num_rejected for use in uses.values()) > 0
    assert_both(core.stats.drafts)


def check_uses(
    core: EngineCore, requests: Sequence[Request], expected: dict[str, TokenOutput]
) -> dict[str, PredictionUse]:
    """Serves requests, compares their outputs, and returns how their predictions were used."""
    for request in requests:
        core.add(request)
    outputs: dict[str, list[TokenOutput]] = {request.id: [] for request in requests}
    while not core.is_idle:
        for name, output in core.step():
            outputs[name].append(output)
    assert {name: joined(own) for name, own in outputs.items()} == expected
    assert all(output.prediction == UNUSED_PREDICTION for own in outputs.values() for output in own[:-1])
    return {name: own[-1].prediction for name, own in outputs.items()}


def test_a_predicted_output_takes_fewer_steps(runner: ModelRunner) -> None:
    ((request,), expected) = new_texts(runner, [{}])
    whole = replace(request, predicted_token_ids=expected["0"].token_ids)
    num_steps = []
    for each in (replace(request, predicted_token_ids=()), whole):
        core = make_core(runner, drafts=True, decode_steps=1)
        core.add(each)
        count = 0
        while not core.is_idle:
            core.step()
            count += 1
        num_steps.append(count)
    assert num_steps[1] < 0.8 * num_steps[0]


def test_predictions_without_effect(runner: ModelRunner) -> None:
    """Without speculation, or one token at a time, nothing of a prediction is drafted; nor of a useless one."""
    requests, expected = new_texts(runner, [{}, {}])
    cases = [
        (False, requests),
        (True, [replace(each, stepwise=True) for each in requests]),
        (True, [replace(each, predicted_token_ids=(320, 321, 322)) for each in requests]),
    ]
    for drafts, some in cases:
        uses = check_uses(make_core(runner, drafts=drafts), some, expected)
        assert {use.num_accepted for use in uses.values()} == {0}


def test_a_replayed_request_goes_on_with_its_prediction(runner: ModelRunner) -> None:
    ((request,), expected) = new_texts(runner, [{"prompt": 70}])
    for length in (1, 7, 20):
        output, replay = expected["0"], Replay(expected["0"].token_ids[:length])
        rest = output._replace(token_ids=output.token_ids[length:], logprobs=(output.logprobs or ())[length:])
        core = make_core(runner, drafts=True, decode_steps=1)
        uses = check_uses(core, [replace(request, replay=replay)], {"0": rest})
        assert uses["0"].num_accepted


def test_a_preempted_request_keeps_its_prediction(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_LINGER_S", 0.0)
    requests, expected = new_texts(runner, [{"params": {**ONCE, "max_tokens": 120}}] * runner.served.slots)
    limits, cache = (
        replace(runner.limits, itl_target_s=0.0, decode_steps=1),
        PrefixCache(runner.served.config.window, 10**8),
    )
    scheduler = Scheduler(runner.served.slots, 100, limits, cache=cache)
    core = EngineCore(
        scheduler, runner, request_snapshot_format=RequestSnapshotFormat("test", runner.state_format.snapshot)
    )
    results: dict[str, list[TokenOutput]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(replace(request, preemptible=True))
    for step in range(1000):
        for name, output in core.step():
            results.setdefault(name, []).append(output)
        if step == 9:
            core.add(Request("other", (5, 6, 7), SamplingParams(max_tokens=9)))
    assert core.is_idle
    assert core.stats.preemptions > 0
    assert {name: joined(results[name]) for name in expected} == expected
    for name in expected:
        accepted = results[name][-1].prediction.accepted
        assert accepted & 0b1111111  # before it lost its slot
        assert accepted >> 80  # after that, as ten rounds have at most 80 tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculation": Speculation(16)}, "num_speculative_tokens must be below the attention window of 16, got 16"),
        ({"speculation": Speculation(), "shards": MeshShape(2, 1)}, "speculative_config works on one CPU device only"),
    ],
)
def test_what_cannot_draft_is_refused_at_start(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_runner(open_model(str(TINY_A / "hf")), EngineConfig(4, **settings))


def test_a_simulated_device_drafts_nothing() -> None:
    with pytest.raises(ConfigError, match="simulate drafts no tokens; leave speculative_config out"):
        EngineConfig(simulate=Simulation.parse("v5e"), speculation=Speculation())
