"""Tests of checkpoints and replays: a request that goes on has the tokens of an uninterrupted one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from roost.engine import EngineCore, ModelRunner, PrefixCache, Request, SamplingParams
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.errors import StateFileError, UnknownRequestError
from roost.engine.types.output_constraint import TokenMask, mask_of_ids
from roost.engine.types.request import FinishReason, Replay
from roost.engine.types.snapshot import RequestSnapshot, RequestSnapshotFormat

SLOTS = 4
KEY = b"a key"


class EvenThenOdd:
    """Allows even ids after odd ones, and the other way around."""

    def __init__(self) -> None:
        self._parity = 0

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask |= mask_of_ids(range(4 + self._parity, 300, 2), len(mask))

    def advance(self, token_id: int) -> None:
        assert token_id % 2 == self._parity
        self._parity = 1 - self._parity


def make_core(runner: ModelRunner) -> EngineCore:
    return EngineCore(
        Scheduler(SLOTS, 100, runner.limits, cache=PrefixCache(runner.served.config.window, 10**9)), runner
    )


def request(name: str, length: int, fields: dict[str, Any], replay: Replay | None = None) -> Request:
    fields = dict(fields)
    constraint = EvenThenOdd() if fields.pop("is_constrained", False) else None
    prompt = tuple(np.random.default_rng(length).integers(3, 320, length).tolist())
    return Request(name, prompt, SamplingParams(**fields), constraint=constraint, replay=replay)


def outputs(core: EngineCore, name: str, until: int | None = None) -> tuple[list[int], list[Any]]:
    """Steps until a request has ended, or has got a number of tokens; returns its tokens and log-probabilities."""
    tokens: list[int] = []
    logprobs: list[Any] = []
    for _ in range(1000):
        for each, output in core.step():
            if each != name:
                continue
            assert output.error is None
            tokens += output.token_ids
            logprobs += output.logprobs or ()
            if output.finish_reason is not None:
                return tokens, logprobs
        if until is not None and len(tokens) >= until:
            return tokens, logprobs
    raise AssertionError("the request has not ended")


def checkpoint_of(core: EngineCore, name: str) -> RequestSnapshot | None:
    """Returns a request's checkpoint; None if the batch in flight has ended it."""
    try:
        return core.snapshot_request(name)
    except UnknownRequestError:
        return None


REQUESTS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(8, 30),
        "temperature": st.sampled_from([0.0, 1.3]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "seed": st.integers(0, 9),
        "logprobs": st.sampled_from([None, 2]),
        "allowed_token_ids": st.sampled_from([None, tuple(range(3, 90))]),
        "is_constrained": st.booleans(),
    }
).filter(lambda fields: not (fields["is_constrained"] and fields["allowed_token_ids"]))


@settings(max_examples=15)
@given(
    length=st.sampled_from([1, 5, 64, 130, 200]),
    fields=REQUESTS,
    cut=st.integers(1, 5),
    num_later=st.integers(0, 9),
    has_checkpoint=st.booleans(),
    crowd=st.lists(st.integers(1, 70), max_size=3),
)
def test_a_replayed_request_equals_an_uninterrupted_one(
    runner: ModelRunner,
    length: int,
    fields: dict[str, Any],
    cut: int,
    num_later: int,
    has_checkpoint: bool,
    crowd: Sequence[int],
) -> None:
    """Tokens logged after the checkpoint are replayed; neighbours come and go on the second engine."""
    whole = make_core(runner)
    whole.add(request("r", length, fields))
    tokens, logprobs = outputs(whole, "r")
    first = make_core(runner)
    first.add(request("r", length, fields))
    received = len(outputs(first, "r", until=cut)[0])
    checkpoint = checkpoint_of(first, "r") if has_checkpoint else None
    first.abort("r")
    logged = min(len(tokens) - 1, (received if checkpoint is None else checkpoint.num_tokens) + num_later)
    replay = Replay(tuple(tokens[:logged]), None if checkpoint is None else checkpoint.snapshot)
    second = make_core(runner)
    for index, each in enumerate(crowd):
        second.add(request(f"other {index}", each, {"max_tokens": 5 * index + 3}))
        second.step()
    second.add(request("r", length, fields, replay))
    rest, their_logprobs = outputs(second, "r")
    assert rest == tokens[logged:]
    assert their_logprobs == logprobs[logged:]


def test_a_checkpoint_loses_no_token_of_its_own_or_others(runner: ModelRunner) -> None:
    core = make_core(runner)
    fields = {"max_tokens": 12, "temperature": 0.0}
    alone = make_core(runner)
    alone.add(request("a", 9, fields))
    expected = outputs(alone, "a")[0]
    for name in ("a", "b"):
        core.add(request(name, 9, fields))
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    while not core.is_idle:
        for name, output in core.step():
            tokens[name] += output.token_ids
        if (checkpoint := checkpoint_of(core, "a")) is None:
            continue
        assert checkpoint.num_tokens >= len(tokens["a"])
        assert checkpoint.snapshot.length == 9 + checkpoint.num_tokens - 1
    assert tokens == {"a": expected, "b": expected}


def test_only_a_generating_request_has_a_checkpoint(runner: ModelRunner) -> None:
    core = make_core(runner)
    core.add(request("a", 5, {"max_tokens": 3}))
    with pytest.raises(UnknownRequestError):
        core.snapshot_request("a")
    outputs(core, "a")
    with pytest.raises(UnknownRequestError):
        core.snapshot_request("a")


def test_replayed_tokens_are_no_output_and_count_for_the_limit(runner: ModelRunner) -> None:
    fields = {"max_tokens": 6, "temperature": 0.0}
    core = make_core(runner)
    core.add(request("a", 5, fields))
    tokens = outputs(core, "a")[0]
    core.add(request("b", 5, fields, Replay(tuple(tokens[:5]))))
    results = [output for _ in range(50) for _, output in core.step()]
    assert [output.token_ids for output in results] == [(tokens[5],)]
    assert results[0].finish_reason is FinishReason.LENGTH


def test_a_snapshot_of_other_tokens_is_refused(runner: ModelRunner) -> None:
    core = make_core(runner)
    core.add(request("a", 70, {"max_tokens": 60, "temperature": 0.0}))
    outputs(core, "a", until=4)
    checkpoint = core.snapshot_request("a")
    short, long = (replace(checkpoint.snapshot, length=length) for length in (69, 73))
    with pytest.raises(ValueError, match="before token 4 of 3"):
        request("b", 70, {"max_tokens": 9}, Replay((5, 6, 7), long))
    with pytest.raises(ValueError, match="before token 0 of 3"):
        request("b", 70, {"max_tokens": 9}, Replay((5, 6, 7), short))


@pytest.mark.parametrize("length", [1, 63, 70, 150])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_file_holds_the_checkpoint(runner: ModelRunner, length: int, key: bytes | None) -> None:
    core = make_core(runner)
    core.add(request("a", length, {"max_tokens": 60, "temperature": 0.0}))
    outputs(core, "a", until=5)
    checkpoint = core.snapshot_request("a")
    formats = RequestSnapshotFormat("model-numerics", runner.state_format.snapshot)
    loaded = formats.load(formats.export(checkpoint, "file", key), "file", key)
    assert (loaded.num_tokens, loaded.snapshot.length) == (checkpoint.num_tokens, checkpoint.snapshot.length)
    for ours, theirs in zip(loaded.snapshot.recurrent, checkpoint.snapshot.recurrent, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [len(block) for block in loaded.snapshot.window] == [len(block) for block in checkpoint.snapshot.window]
    for ours, theirs in zip(loaded.snapshot.window, checkpoint.snapshot.window, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_is_not_ours_is_refused(runner: ModelRunner) -> None:
    core = make_core(runner)
    core.add(request("a", 70, {"max_tokens": 60, "temperature": 0.0}))
    outputs(core, "a", until=2)
    checkpoint, formats = (
        core.snapshot_request("a"),
        RequestSnapshotFormat("model-numerics", runner.state_format.snapshot),
    )
    data = formats.export(checkpoint, "file", KEY)
    for broken, message in (
        (data[:-1], "no whole state file"),
        (data[:-1] + bytes([data[-1] ^ 1]), "was changed"),
        (formats.export(checkpoint, "file"), "not signed"),
        (formats.export(checkpoint, "other", KEY), "is another file \\(other\\)"),
        (replace(formats, engine="other").export(checkpoint, "file", KEY), "of another engine"),
        (formats.export(RequestSnapshot(0, checkpoint.snapshot), "file", KEY), "0 generated tokens"),
        (runner.state_format.export(core.save("a"), KEY), "expected 'roost-checkpoint-1'"),
    ):
        with pytest.raises(StateFileError, match=message):
            formats.load(broken, "file", KEY)
