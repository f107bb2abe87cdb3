"""The engine with `kv_dtype="int8"`: the invariance tests of other modules, and states in int8.

By default, matrices are in int8 too.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from roost.engine import (
    EngineConfig,
    EngineCore,
    ModelRunner,
    PrefixCache,
    Request,
    SamplingParams,
    StateFileError,
    load_runner,
    open_model,
)
from roost.engine.checkpoint.source import model_identity
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS
from roost.engine.model.state import state_bytes
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.errors import ConfigError
from roost.engine.types.snapshot import Snapshot, is_finite, unpack
from roost.engine.worker.earlier_starts import slots_key
from roost.engine.worker.served import Devices, Served
from sweeps import swept
from test_resume import (  # noqa: F401 - collected here again, with this module's runner
    test_outputs_with_cache_equal_outputs_without,
    test_restore_between_two_block_boundaries,
)
from test_runner import (  # noqa: F401 - collected here again
    SLOTS,
    TINY,
    ids,
    serve,
    test_forks_get_what_they_would_get_alone,
    test_in_any_crowd_a_request_gets_what_it_gets_alone,
    test_prompt_logprobs_do_not_depend_on_the_chunks,
    test_what_is_no_number_ends_its_own_request_alone,
)
from test_runner_int8 import (  # noqa: F401 - likewise
    test_in_a_crowd_a_request_gets_what_it_gets_alone,
    test_most_greedy_tokens_are_the_official_ones,
    test_one_broken_number_ends_its_request,
)

PROMPT = tuple(np.random.default_rng(3).integers(3, 320, 300).tolist())


@pytest.fixture(scope="module", params=["int8", *swept(None)], ids=["int8", "bfloat16"])
def runner(request: pytest.FixtureRequest) -> Iterator[ModelRunner]:
    kinds = {"dtype": "bfloat16", "quantize": request.param, "kv_dtype": "int8"}
    config = EngineConfig(SLOTS, prefill_chunk=64, state_cache_inexact=True, **kinds)
    runner = load_runner(open_model(str(TINY / "hf")), config)
    yield runner
    assert runner.compiles_since_ready == 0
    runner.close()


def make_core(runner: ModelRunner) -> EngineCore:
    scheduler = Scheduler(SLOTS, 100, runner.limits, cache=PrefixCache(runner.served.config.window, 10**9))
    return EngineCore(scheduler, runner, runner.state_format)


def ask(core: EngineCore, name: str, prompt: tuple[int, ...], **fields: Any) -> tuple[tuple[int, ...], int]:
    """Returns the generated tokens, and the number of cached prompt tokens."""
    core.add(Request(name, prompt, SamplingParams(max_tokens=9, temperature=1.0, seed=4), **fields))
    tokens, num_cached = (), 0
    while not core.is_idle:
        for _, output in core.step():
            tokens, num_cached = tokens + output.token_ids, num_cached + output.num_cached
    return tokens, num_cached


def saved(runner: ModelRunner) -> bytes:
    """Returns the file of a state after 256 tokens of a prompt."""
    core = make_core(runner)
    ask(core, "a", PROMPT)
    return runner.state_format.export(core.save("a"))


def test_an_exported_state_is_resumed_as_if_prefilled(runner: ModelRunner) -> None:
    data = saved(runner)
    state = runner.state_format.load(data)
    prompt = (*state.token_ids, 7, 8, 9)
    tokens, num_cached = ask(make_core(runner), "b", prompt, state=state.snapshot)
    assert num_cached == 256
    assert tokens == ask(make_core(runner), "b", prompt)[0]
    arrays, facts = unpack(data)
    assert facts["format"] == "roost-state-2"
    config = runner.served.config
    assert (arrays["window"].dtype, arrays["window"].shape[-1]) == (np.int8, config.head_dim + 4)


def test_a_scale_that_is_no_number_is_refused(runner: ModelRunner) -> None:
    state = runner.state_format.load(saved(runner))
    assert state.snapshot is not None
    first = state.snapshot.window[0].copy()
    first[3, 0, 1, -4:] = np.array([np.nan], np.float32).view(np.int8)
    spoiled = Snapshot(256, state.snapshot.recurrent, (first, *state.snapshot.window[1:]))
    assert is_finite(state.snapshot.window[0])
    assert not is_finite(first)
    with pytest.raises(StateFileError, match="window that are not finite"):
        runner.state_format.load(runner.state_format.export(replace(state, snapshot=spoiled)))


def test_a_window_in_int8_makes_another_model() -> None:
    """Its states cannot be restored by a model without, nor the other way round."""
    source = open_model(str(TINY / "hf"))
    int8 = source.with_kv_dtype("int8")
    assert model_identity(source, "bfloat16", None, 0) != model_identity(int8, "bfloat16", None, 0)
    assert repr(source.config) == repr(int8.config), "files of states in bfloat16 keep their model's identity"
    keys = {
        slots_key(
            "12345678", Served(PRESETS["2b"], EngineConfig(kv_dtype=kind), Devices(TPU), np.dtype("float32")), 10**9
        )
        for kind in (None, "int8")
    }
    assert len(keys) == 2


@pytest.mark.parametrize(("model", "activations"), [("2b", 2), ("9b", 2), ("2b", 4)])
def test_the_window_takes_a_byte_per_number_and_four_per_scale(model: str, activations: int) -> None:
    plain = PRESETS[model]
    int8 = replace(plain, kv_dtype="int8")
    vectors = 2 * plain.window * plain.block_types.count("attention")
    saved = vectors * (plain.head_dim * (activations - 1) - 4)
    assert state_bytes(plain, activations) - state_bytes(int8, activations) == saved


def test_another_dtype_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"\Akv_dtype must be int8 or None, got 'int4'\Z"):
        EngineConfig(kv_dtype="int4")
