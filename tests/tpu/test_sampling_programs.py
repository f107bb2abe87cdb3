"""The sampler compiles for real TPUs: alone at common and at odd shapes, and in the decode step that is served."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.sampling.sampler import zero_token_memory
from roost.engine.types.config import EngineConfig
from roost.engine.types.output_constraint import words_of_mask
from roost.engine.types.sampling_params import NUMBER_COLUMNS, SAMPLING_COLUMNS
from roost.engine.worker.lowering import lower
from roost.engine.worker.served import Devices, Served
from roost.kernels.sampling import SamplingInputs
from roost.kernels.sampling.pallas_tpu import sample_tpu

pytestmark = pytest.mark.tpu_compile

BF16 = jnp.dtype("bfloat16")
LARGE = PRESETS["2b"]


def on(chip: SingleDeviceSharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), tree)


def inputs(rows: int, vocab: int) -> SamplingInputs:
    """Returns the kernel's inputs with the widths of the engine's lists."""

    def column(dtype: str, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), jnp.dtype(dtype))

    flag, mask, width = column("bool"), column("uint32", words_of_mask(vocab)), SAMPLING_COLUMNS["bias_ids"].shape
    recent = jax.eval_shape(lambda: zero_token_memory(rows, vocab)).recent
    ids, stop_ids = column("int32", *width), column("int32", *SAMPLING_COLUMNS["stop_ids"].shape)
    numbers = {name: column("float32") for name in NUMBER_COLUMNS}
    biases = column("float32", *width)
    return SamplingInputs(flag, flag, numbers, column("float32"), ids, biases, stop_ids, flag, recent, mask, flag, mask)


@pytest.mark.parametrize(("rows", "vocab"), [(512, 256_000), (8, 256_000), (20, 32_000), (3, 1000)])
def test_the_kernel_alone(chip: SingleDeviceSharding, rows: int, vocab: int) -> None:
    logits = jax.ShapeDtypeStruct((rows, vocab), jnp.float32)
    lowered = jax.jit(sample_tpu).lower(on(chip, logits), on(chip, inputs(rows, vocab)))
    text = lowered.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1


def test_the_served_decode_step_keeps_its_logits_once(chip: SingleDeviceSharding) -> None:
    """With every branch compiled in, no vocabulary is sorted, and nothing but the logits takes their memory."""
    rows = 256
    config = ModelConfig(
        LARGE.vocab_size, 256, 768, 2, 256, cycle(("recurrent", "attention"), 2), logits_soft_cap=LARGE.logits_soft_cap
    )
    graph, params = abstract_model(config, BF16, TPU)
    served = Served(config, EngineConfig(), Devices(TPU, device=next(iter(chip.device_set))), BF16, rows, graph, params)
    compiled = lower(served.programs.decode[rows], served).compile()
    sorts = [line for line in compiled.as_text().splitlines() if " sort(" in line]
    assert not [line for line in sorts if str(config.vocab_size) in line]
    logits = 4 * rows * config.vocab_size
    assert logits <= compiled.memory_analysis().temp_size_in_bytes < 1.6 * logits
