"""The engine with `quantize="int4"`: results do not depend on neighbours."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from roost.engine import EngineConfig, ModelRunner, convert, load_runner, open_model
from roost.engine.devices.platform import CPU
from roost.engine.types.errors import ConfigError
from roost.engine.worker.served import Devices, open_weights
from roost.kernels.matrices import Int4Matrix, Int8Matrix
from test_runner import SLOTS, TINY
from test_runner_int8 import (  # noqa: F401 - collected here again, with this module's runner
    test_in_a_crowd_a_request_gets_what_it_gets_alone,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[ModelRunner]:
    config = EngineConfig(SLOTS, prefill_chunk=64, dtype="bfloat16", quantize="int4")
    runner = load_runner(open_model(str(TINY / "hf")), config)
    yield runner
    assert runner.compiles_since_ready == 0
    runner.close()


def test_matrices_are_in_four_bits_and_the_embedding_in_eight() -> None:
    config = EngineConfig(quantize="int4")
    with open_weights(open_model(str(TINY / "hf")), config, Devices(CPU)) as weights:
        assert isinstance(weights.served.params["embedding"], Int8Matrix)
        block = weights.served.params["blocks"][0]
        assert isinstance(block["mlp"]["down"]["weight"], Int4Matrix)
        assert block["temporal"]["rg_lru"]["gate_weight"].dtype == np.float32


def test_a_checkpoint_in_int8_is_refused_in_one_line(tmp_path: Path) -> None:
    convert(open_model(str(TINY / "hf")), tmp_path / "int8", quantize="int8")
    with pytest.raises(ConfigError, match=r"\Aint8: is stored in int8; take the original weights for quantize int4\Z"):
        load_runner(open_model(str(tmp_path / "int8")), EngineConfig(SLOTS, quantize="int4"))


def test_a_checkpoint_in_int4_is_served_as_it_is_with_the_bits_of_quantising_at_load(tmp_path: Path) -> None:
    convert(open_model(str(TINY / "hf")), tmp_path / "int4", quantize="int4")
    stored, config = open_model(str(tmp_path / "int4")), EngineConfig()
    with open_weights(stored, config, Devices(CPU)) as weights:
        dtype, params = weights.served.dtype, weights.read(lambda done, total: None)
    with open_weights(open_model(str(TINY / "hf")), replace(config, quantize="int4"), Devices(CPU)) as whole:
        assert whole.served.dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, params, whole.read(lambda done, total: None))
