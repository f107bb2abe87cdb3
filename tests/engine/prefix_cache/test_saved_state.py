"""Tests of saved states: saving, export, import and resuming."""

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from roost.engine import (
    EngineCore,
    ModelRunner,
    PrefixCache,
    Request,
    SamplingParams,
    SavedState,
    SavedStateFormat,
    Snapshot,
    StateFileError,
    UnknownRequestError,
)
from roost.engine.model.config import PRESETS
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import MAX_TOKENS
from roost.engine.types.snapshot import SnapshotFormat, pack, unpack
from unpacked_states import saved_state

SLOTS, PLENTY = 4, 10**9
PROMPT = tuple(np.random.default_rng(3).integers(3, 320, 300).tolist())
MORE = (7, 8, 9)


def make_core(runner: ModelRunner) -> EngineCore:
    scheduler = Scheduler(SLOTS, 100, runner.limits, cache=PrefixCache(runner.served.config.window, PLENTY))
    return EngineCore(scheduler, runner, runner.state_format)


def ask(core: EngineCore, name: str, prompt: tuple[int, ...], **fields: Any) -> tuple[tuple[int, ...], int]:
    """Returns the generated tokens, and the number of cached prompt tokens."""
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=4)
    core.add(Request(name, prompt, params, **fields))
    tokens, num_cached = (), 0
    while not core.is_idle:
        for _, output in core.step():
            tokens, num_cached = tokens + output.token_ids, num_cached + output.num_cached
    return tokens, num_cached


def resume(runner: ModelRunner, state: SavedState) -> tuple[tuple[int, ...], int]:
    """Resumes a state in an engine with an empty cache."""
    return ask(make_core(runner), "b", (*state.token_ids, *MORE), state=state.snapshot)


def test_resuming_equals_prefilling_everything(runner: ModelRunner) -> None:
    core = make_core(runner)
    answer, _ = ask(core, "a", PROMPT)
    state = core.save("a")
    assert tuple(state.token_ids) == PROMPT + answer
    assert state.snapshot is not None
    assert state.snapshot.length == 256
    tokens, num_cached = resume(runner, state)
    assert num_cached == 256
    assert tokens == ask(make_core(runner), "b", (*state.token_ids, *MORE))[0]
    assert state.num_bytes > 1000


def test_running_request_is_saved_up_to_its_last_token(runner: ModelRunner) -> None:
    core = make_core(runner)
    core.add(Request("a", PROMPT, SamplingParams(max_tokens=100, temperature=0.0), stepwise=True))
    told: tuple[int, ...] = ()
    while len(told) < 5:
        told += tuple(token for _, output in core.step() for token in output.token_ids)
    state = core.save("a")
    assert tuple(state.token_ids) == PROMPT + told
    core.abort("a")
    assert core.save("a").token_ids[: len(state.token_ids)] == state.token_ids, "also when it has been aborted"


@pytest.mark.parametrize("num_generated", [0, 3, 9])
def test_history_is_cut_after_num_generated(runner: ModelRunner, num_generated: int) -> None:
    """Later tokens are no part of it; the same holds for a fork."""
    core, params = make_core(runner), SamplingParams(max_tokens=9, temperature=1.0, seed=4)
    core.add(Request("a", PROMPT, params))
    core.add(Request("b", PROMPT, params, fork_of="a"))
    answer: tuple[int, ...] = ()
    while not core.is_idle:
        answer += tuple(token for name, output in core.step() for token in output.token_ids if name == "b")
    for name in "ab":
        state = core.save(name, num_generated)
        assert tuple(state.token_ids) == PROMPT + answer[:num_generated]
        assert state.snapshot is not None
        assert state.snapshot.length == 256
    assert resume(runner, state)[0] == ask(make_core(runner), "b", (*state.token_ids, *MORE))[0]


def test_request_that_resumes_a_file_is_imported(runner: ModelRunner) -> None:
    core = make_core(runner)
    ask(core, "a", PROMPT)
    assert not core.save("a").is_imported
    loaded = runner.state_format.load(runner.state_format.export(core.save("a")))
    assert loaded.is_imported
    ask(core, "b", (*loaded.token_ids, *MORE), state=loaded.snapshot, state_is_imported=loaded.is_imported)
    assert core.save("b").is_imported


def test_signed_file_of_the_same_engine_is_its_own_state(runner: ModelRunner) -> None:
    """A file of another engine, without a signature or of an older version isn't, nor what another engine resumed."""
    core, kind, key = make_core(runner), replace(runner.state_format, engine="cpu"), b"sesame"
    ask(core, "a", PROMPT)
    state, other = core.save("a"), replace(kind, engine="gpu")
    assert not kind.load(kind.export(state, key), key).is_imported
    assert kind.load(kind.export(state)).is_imported
    assert other.load(kind.export(state, key), key).is_imported
    resumed = other.export(other.load(kind.export(state, key), key), key)
    assert kind.load(resumed, key).is_imported
    assert other.load(resumed, key).is_imported
    arrays, facts = unpack(kind.export(state, key), key)
    del facts["engine"]
    older = kind.load(pack(arrays, facts, key), key)
    assert older.is_imported
    assert resume(runner, older) == resume(runner, state)


def test_inserted_state_is_a_cached_prefix_of_its_salt(runner: ModelRunner) -> None:
    core, other = make_core(runner), make_core(runner)
    ask(core, "a", PROMPT)
    state = core.save("a")
    whole = (*PROMPT, *MORE)
    other.insert(state)
    assert ask(other, "b", whole, cache_salt="other")[1] == 0
    assert ask(other, "c", whole) == (ask(make_core(runner), "c", whole)[0], 256)
    other.insert(saved_state(PROMPT))


def test_short_history_has_no_snapshot(runner: ModelRunner) -> None:
    core = make_core(runner)
    ask(core, "a", PROMPT[:10])
    state = core.save("a")
    assert state.snapshot is None
    assert resume(runner, state)[1] == 0
    assert runner.state_format.load(runner.state_format.export(state)).token_ids == state.token_ids


def test_unknown_requests(runner: ModelRunner) -> None:
    core = make_core(runner)
    with pytest.raises(UnknownRequestError, match="'x'"):
        core.save("x")
    without = EngineCore(Scheduler(SLOTS, 100, runner.limits), runner)
    ask(without, "a", PROMPT)
    with pytest.raises(UnknownRequestError):
        without.save("a")


def test_snapshot_of_the_whole_prompt_is_not_used(runner: ModelRunner) -> None:
    """It has no activations to sample from."""
    core = make_core(runner)
    ask(core, "a", PROMPT)
    snapshot = core.save("a").snapshot
    assert ask(make_core(runner), "b", PROMPT[:256], state=snapshot)[1] == 0


@pytest.mark.parametrize("key", [None, b"sesame"])
def test_resuming_a_file_equals_resuming_the_state(runner: ModelRunner, key: bytes | None) -> None:
    core = make_core(runner)
    ask(core, "a", PROMPT)
    state = core.save("a")
    loaded = runner.state_format.load(runner.state_format.export(state, key), key)
    assert resume(runner, loaded) == resume(runner, state)


def test_max_file_bytes_is_the_size_of_the_largest_file(runner: ModelRunner) -> None:
    core = make_core(runner)
    prompt = PROMPT * (2 + runner.served.config.window // len(PROMPT))
    ask(core, "a", prompt)
    snapshot = core.save("a").snapshot
    assert snapshot is not None
    assert snapshot.length >= runner.served.config.window
    file = runner.state_format.export(saved_state((5,) * MAX_TOKENS, snapshot), b"sesame")
    assert 0 <= runner.state_format.max_file_bytes - len(file) < 20_000
    assert runner.state_format.load(file, b"sesame").snapshot is not None


@pytest.mark.parametrize(("config", "mib"), [("2b", 17), ("9b", 26)])
def test_file_size_of_large_models(config: str, mib: int) -> None:
    """The sizes are without the tokens."""
    shape = PRESETS[config]
    recurrent, attention = shape.block_types.count("recurrent"), shape.block_types.count("attention")
    kind = SavedStateFormat(
        model=config,
        vocab_size=shape.vocab_size,
        snapshot=SnapshotFormat(
            window=shape.window,
            recurrent={
                "h": ((recurrent, shape.lru_width), "float32"),
                "conv": ((recurrent, shape.conv_width - 1, shape.lru_width), "bfloat16"),
            },
            token=((attention, 2, shape.head_dim), "bfloat16"),
            hidden=((shape.width,), "bfloat16"),
        ),
    )
    assert mib - 1 < (kind.max_file_bytes - 4 * MAX_TOKENS) / 2**20 < mib


def test_files_that_are_rejected(runner: ModelRunner) -> None:
    core, kind = make_core(runner), runner.state_format
    ask(core, "a", PROMPT)
    data = kind.export(core.save("a"))
    tokens = {"tokens": np.array(PROMPT, np.int32)}
    facts = {"model": kind.model, "length": "256"}
    h = np.zeros((1, 1), np.float32)
    refused = {
        "of another model": replace(kind, model="other").export(core.save("a")),
        "was changed": data[:-1] + bytes([data[-1] ^ 1]),
        "no whole state file": data[:-20],
        "no whole": b"",
        "cut off": b"\x08\0\0\0\0\0\0\0{}      ",
        "has the format 'roost-state-9'": data.replace(b"roost-state-1", b"roost-state-9"),
        "outside the vocabulary": pack({"tokens": np.array([320], np.int32)}, {"model": kind.model}),
        "holds no tokens": pack({}, {"model": kind.model}),
        "after 100 tokens of 300": pack(tokens, {**facts, "length": "100"}),
        "after 640 tokens of 300": pack(tokens, {**facts, "length": "640"}),
        "has the length 'x'": pack(tokens, {**facts, "length": "x"}),
        "has the length '9999": pack(tokens, {**facts, "length": "9" * 5000}),
        "has the length '²'": pack(tokens, {**facts, "length": "²"}),
        "has tokens as float32, expected int32": pack({"tokens": np.array([5, 6], np.float32)}, facts),
        "has tokens as bfloat16": pack({"tokens": np.array([5, 6], ml_dtypes.bfloat16)}, {"model": kind.model}),
        "holds 1048577 tokens": pack({"tokens": np.full(MAX_TOKENS + 1, 5, np.int32)}, facts),
        "has h as None": pack(tokens, facts),
        r"has h as \(\(1, 1\)": pack({**tokens, "h": h}, facts),
    }
    for message, file in refused.items():
        with pytest.raises(StateFileError, match=message):
            kind.load(file)
    for message in ("the model " + "x" * 9000, "9" * 5000):
        with pytest.raises(StateFileError) as refusal:
            kind.load(pack(tokens, {**facts, "model": message} if "x" in message else {**facts, "length": message}))
        assert len(str(refusal.value)) < 300, "a message repeats little of what a file says"
    with pytest.raises(StateFileError, match="is not signed"):
        kind.load(data, b"sesame")
    with pytest.raises(StateFileError, match="another key"):
        kind.load(kind.export(core.save("a"), b"other"), b"sesame")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["h", "conv", "window"])
def test_values_that_are_not_finite_are_rejected(runner: ModelRunner, name: str, value: float) -> None:
    """A request that resumed such a state would fail."""
    core, kind = make_core(runner), runner.state_format
    ask(core, "a", PROMPT)
    data = kind.export(core.save("a"), b"sesame")
    arrays, facts = unpack(data, b"sesame")
    for place in (0, -1):
        broken = arrays[name].copy()
        broken.reshape(-1)[place] = value
        with pytest.raises(StateFileError, match=f"has values in {name} that are not finite numbers"):
            kind.load(pack({**arrays, name: broken}, facts, b"sesame"), b"sesame")
    assert kind.load(data, b"sesame").num_tokens == len(PROMPT) + 9


def test_huge_header_is_not_parsed() -> None:
    """Parsed, twenty megabytes of brackets would be half a gigabyte of lists."""
    header = b"[" * 2**20 + b"]" * 2**20
    with pytest.raises(StateFileError, match="its header would have 2097152 bytes"):
        unpack(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("num_tokens", [1, 5000])
@pytest.mark.parametrize("num_blocks", [0, 1, 32])
def test_num_bytes_is_the_memory_of_a_state(num_tokens: int, num_blocks: int) -> None:
    def make() -> SavedState:
        h, conv = np.zeros((4, 64), np.float32), np.zeros((4, 3, 64), np.float32)
        window = tuple(np.zeros((64, 1, 2, 8), np.float32) for _ in range(num_blocks))
        snapshot = Snapshot(64 * num_blocks, (h, conv), window) if num_blocks else None
        return saved_state([5] * num_tokens, snapshot, "salt", "tenant")

    make()
    tracemalloc.start()
    try:
        states = [make() for _ in range(50)]
        gc.collect(1)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = sum(state.num_bytes for state in states)
    assert taken <= 1.25 * counted
    if num_tokens > 1 or num_blocks > 1:
        assert counted <= 1.25 * taken


def test_num_bytes_is_the_memory_of_a_loaded_state(runner: ModelRunner) -> None:
    """No part of the file stays in memory."""
    core, kind = make_core(runner), runner.state_format
    ask(core, "a", PROMPT)
    data = kind.export(core.save("a"))
    kind.load(data)
    tracemalloc.start()
    try:
        states = [kind.load(data) for _ in range(20)]
        gc.collect(1)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = sum(state.num_bytes for state in states)
    assert taken <= 1.25 * counted
    assert counted <= 1.25 * taken
