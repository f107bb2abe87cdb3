"""The engine with `quantize="int8"`: results do not depend on neighbours, and are close to those in float.

By default, `test_int8_window.py` runs these tests, with windows in int8 too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine import (
    EngineConfig,
    EngineCore,
    ModelRunner,
    Request,
    SamplingParams,
    Scheduler,
    TokenOutput,
    convert,
    load_runner,
    open_model,
)
from roost.engine.devices.platform import CPU
from roost.engine.types.errors import ConfigError, NumericError
from roost.engine.worker.served import Devices, open_weights
from roost.kernels.matrices import Int8Matrix
from sweeps import swept
from test_runner import SLOTS, TINY, ids, put_states, serve, states_of, uncounted_compiles

CROWD: list[tuple[int, dict[str, Any]]] = [
    (1, {"temperature": 0.0, "max_tokens": 12}),
    (130, {"temperature": 0.0, "max_tokens": 9}),
    (17, {"temperature": 1.5, "max_tokens": 12, "seed": 1}),
    (64, {"temperature": 0.7, "max_tokens": 7, "top_k": 40, "seed": 2}),
    (3, {"temperature": 0.0, "max_tokens": 1}),
    (65, {"temperature": 0.0, "max_tokens": 12, "prompt_logprobs": 1}),
    (2, {"temperature": 1.0, "max_tokens": 12, "top_p": 0.9, "seed": 3}),
]
"""Length of each prompt and its sampling parameters; there are more requests than slots."""


@pytest.fixture(scope="module", params=swept("float32", "bfloat16"))
def runner(request: pytest.FixtureRequest) -> Iterator[ModelRunner]:
    config = EngineConfig(SLOTS, prefill_chunk=64, dtype=request.param, quantize="int8")
    runner = load_runner(open_model(str(TINY / "hf")), config)
    yield runner
    assert runner.compiles_since_ready == 0
    runner.close()


def test_in_a_crowd_a_request_gets_what_it_gets_alone(runner: ModelRunner) -> None:
    """Tokens and log-probabilities are equal bit for bit."""
    rng = np.random.default_rng(0)
    crowd = [
        Request(str(i), tuple(rng.integers(3, 320, length).tolist()), SamplingParams(logprobs=2, **params))
        for i, (length, params) in enumerate(CROWD)
    ]
    alone = {request.id: serve(runner, [request])[request.id] for request in crowd}
    for stagger in (0, 2):
        assert serve(runner, crowd, stagger=stagger) == alone


def test_most_greedy_tokens_are_the_official_ones(runner: ModelRunner) -> None:
    """Tokens are compared up to the first difference, after which the texts diverge."""
    same, params = [], SamplingParams(max_tokens=24, temperature=0.0)
    with np.load(TINY / "golden.npz") as golden:
        for i in range(3):
            prompt, expected = golden[f"sampler_prompt_{i}"].ravel(), golden["sampler_alone_tokens"][i]
            tokens = ids(serve(runner, [Request("a", tuple(prompt.tolist()), params)])["a"])
            same.append(int(np.cumprod(np.array(tokens) == expected).sum()))
    assert np.mean(same) >= 5, same


def spoil(runner: ModelRunner, leaf: int, value: float) -> bool:
    """Overwrites slot 0's first number in one array of floats of the state; returns whether there is such an array."""
    states = states_of(runner)
    with uncounted_compiles(runner):
        slots = jnp.zeros(1, jnp.int32)
        parts, tree = jax.tree.flatten(states.gather(slots, jnp.zeros(1, jnp.bool)))
        places = [place for place, part in enumerate(parts) if part.dtype != jnp.int8]
        if leaf >= len(places):
            return False
        host = np.array(parts[places[leaf]])
        host.flat[0] = value
        parts[places[leaf]] = jnp.asarray(host)
        put_states(runner, states.scatter(slots, jax.tree.unflatten(tree, parts)))
    return True


@pytest.mark.parametrize("value", [np.nan, -np.nan])
def test_one_broken_number_ends_its_request(runner: ModelRunner, value: float) -> None:
    """Rounding activations to int8 must not lose a NaN, whichever array of the state holds it."""
    params = SamplingParams(max_tokens=30, temperature=0.0)
    well = Request("well", (7, 8, 9, 5), params)
    alone, leaf, is_there = ids(serve(runner, [well])["well"]), 0, True
    while is_there:
        core = EngineCore(Scheduler(SLOTS, 100, runner.limits), runner)
        outputs: dict[str, list[TokenOutput]] = {"ill": [], "well": []}
        core.add(Request("ill", (7, 8, 9, 4), params))
        core.add(well)
        for _ in range(4):
            core.step()
        is_there = spoil(runner, leaf, value)
        while not core.is_idle:
            for name, output in core.step():
                outputs[name].append(output)
        assert isinstance(outputs["ill"][-1].error, NumericError) == is_there, leaf
        assert alone[-len(ids(outputs["well"])) :] == ids(outputs["well"])
        leaf += 1
    assert leaf > 6


def test_a_checkpoint_in_int8_is_run_so(tmp_path: Path) -> None:
    """The config need not say so; parameters equal those of quantising at load (tests/engine/model)."""
    convert(open_model(str(TINY / "orbax")), tmp_path / "int8", quantize="int8")
    with open_weights(open_model(str(tmp_path / "int8")), EngineConfig(), Devices(CPU)) as weights:
        assert isinstance(weights.served.params["embedding"], Int8Matrix)
        assert weights.served.dtype == "bfloat16"


def test_another_quantisation_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"\Aquantize must be int8, int4 or None, got 'int2'\Z"):
        EngineConfig(quantize="int2")
