"""Programs for several chips: their collectives, and the memory that they take on each chip.

A layer takes one all-reduce for its temporal block and one for its MLP. Attention of one token per row takes an
all-to-all of queries and one of outputs. No other large array crosses a link.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh
from roost.engine.capacity.roofline import DEVICES
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS, ModelConfig, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.model.sharding import Collectives, shard_params
from roost.engine.types.config import DATA, MODEL, EngineConfig
from roost.engine.types.sampling_params import MAX_LOGPROBS
from roost.engine.worker.lowering import lower
from roost.engine.worker.served import (
    Devices,
    PrefillShape,
    Program,
    Served,
)
from sweeps import swept

pytestmark = pytest.mark.tpu_compile

BF16 = jnp.dtype("bfloat16")
COUNT_HBM_ONLY = {"xla_vf_vmem_memory_space_assignment": "false"}

LARGE = PRESETS["2b"]
LAYERS = ModelConfig(
    4096, LARGE.width, LARGE.mlp_width, LARGE.num_heads, LARGE.lru_width, cycle(("recurrent", "attention"), 2)
)
"""A model with one layer of each kind."""

KINDS = "all-reduce|all-to-all|all-gather|reduce-scatter|collective-permute"
HOSTS = {"v5e:2x2": (2, 2, 1), "v5e:2x4": (2, 4, 1), "v6e:2x2": (2, 2, 1), "v6e:2x4": (2, 4, 1)}


def served_on(
    config: ModelConfig, topology: str, shards: Collectives, slots: int, matrices: jnp.dtype = BF16
) -> Served:
    """Returns a model on the chips of one host, with matrices of this dtype."""
    chips = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=HOSTS[topology]
    ).devices
    mesh = Mesh(np.array(chips[: shards.count]).reshape(shards.data, shards.model), (DATA, MODEL))
    graph, whole = abstract_model(config, BF16, TPU, matrices, shards)
    params, specs = shard_params(whole, config, shards)
    return Served(config, EngineConfig(), Devices(TPU, shards, mesh), BF16, slots, graph, params, specs)


def compiled(model: Served, program: Program[Any]) -> Any:
    return lower(program, model).compile(compiler_options=COUNT_HBM_ONLY)


def collectives(program: Any) -> Counter[tuple[str, str, int]]:
    """Counts a program's collectives by kind, dtype and number of elements. The compiler may combine several."""
    found: Counter[tuple[str, str, int]] = Counter()
    for shapes, kind in re.findall(rf"= (\S.*?) ({KINDS})(?:-start)?\(", program.as_text()):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            found[kind, dtype, math.prod(map(int, filter(None, sizes.split(","))))] += 1
    return found


def hbm(program: Any) -> int:
    memory = program.memory_analysis()
    taken: int = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return taken + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


@pytest.mark.parametrize(
    ("topology", "shards", "kv_dtype"),
    [
        ("v5e:2x2", Collectives(1, 4), None),
        ("v5e:2x2", Collectives(1, 4), "int8"),
        *swept(("v5e:2x4", Collectives(1, 8), None), ("v6e:2x4", Collectives(2, 4), None)),
    ],
)
def test_what_crosses_links(topology: str, shards: Collectives, kv_dtype: str | None) -> None:
    """The embedding takes one all-reduce of activations and each layer two; other large arrays are listed here."""
    slots = 64
    rows, width, sums = slots // shards.data, LAYERS.width, 1 + 2 * LAYERS.depth
    model = served_on(replace(LAYERS, kv_dtype=kv_dtype), topology, shards, slots)
    heads = -(-LAYERS.num_heads // shards.model) * shards.model

    decode = collectives(compiled(model, model.programs.decode[slots]))
    assert decode.pop(("all-reduce", "bf16", rows * width)) == sums
    queries = rows * heads * LAYERS.head_dim // shards.model
    assert decode.pop(("all-to-all", "bf16", queries)) == 2, "queries to their rings, and back"
    assert decode.pop(("all-to-all", "f32", rows * LAYERS.vocab_size // shards.model)) == 1, "logits, to be sampled"
    assert max(size for _, _, size in decode) <= slots * MAX_LOGPROBS, "the rest is small"

    prefill = collectives(compiled(model, model.programs.prefill[PrefillShape(1, 512)][0]))
    assert prefill.pop(("all-reduce", "bf16", 512 * width)) == sums
    ring = LAYERS.window * LAYERS.head_dim
    if kv_dtype is None:
        assert prefill.pop(("all-reduce", "bf16", ring)) == 2, "a row's keys and values"
    else:
        assert prefill.pop(("all-reduce", "u32", ring // 4)) == 2, "the same, of which the compiler packs four"
        assert prefill.pop(("all-reduce", "f32", LAYERS.window)) == 2, "and their scales"
    assert all(kind == "all-gather" for kind, _, _ in prefill), "the rest is what is remembered of the chunk"


@pytest.mark.parametrize(("rows", "kv_dtype"), [(32, None), (256, None), (32, "int8"), (256, "int8")])
def test_rings_are_not_copied(rows: int, kv_dtype: str | None) -> None:
    """A step's temporaries are smaller than one ring, so no ring is gathered or copied, and its kernel is the TPU's.

    A step of 32 rows takes 8 slots of each device.
    """
    model = served_on(replace(LAYERS, kv_dtype=kv_dtype), "v5e:2x2", Collectives(2, 2), 256)
    program = compiled(model, model.programs.decode[rows])
    assert "window_attention_decode" in program.as_text()
    memory = program.memory_analysis()
    ring = 256 // 4 * LAYERS.window * LAYERS.head_dim * (BF16 if kv_dtype is None else jnp.dtype(kv_dtype)).itemsize
    assert memory.temp_size_in_bytes < ring
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.pool.states))
    assert memory.alias_size_in_bytes >= state // 4, "the pool is updated in place"


def test_each_chip_multiplies_its_part_of_int8_matrices_in_kernels() -> None:
    """Two projections and an MLP of each layer, in a decode step and in prefill."""
    model = served_on(LAYERS, "v5e:2x2", Collectives(1, 4), 64, jnp.dtype("int8"))
    step, (prefill,) = model.programs.decode[64], model.programs.prefill[PrefillShape(1, 512)]
    for program in (step, prefill):
        text = compiled(model, program).as_text()
        counts = Counter(re.findall(r"%(int8_[a-z_]+)[.\w]* = .* custom-call", text))
        assert counts == {"int8_product": 2 * LAYERS.depth, "int8_gated_mlp": LAYERS.depth}


def test_9b_in_bfloat16_fits_four_small_chips() -> None:
    """More than a thousand requests fit on chips of 16 GB, though the weights alone take 17.6 GB."""
    slots, layers = 1152, PRESETS["9b"].depth
    model = served_on(PRESETS["9b"], "v5e:2x2", Collectives(1, 4), slots)
    decode, prefill = model.programs.decode[slots], model.programs.prefill[PrefillShape(1, 512)][0]
    for program, rows in ((decode, slots), (prefill, 512)):
        executable = compiled(model, program)
        assert hbm(executable) < DEVICES["v5e"].memory_bytes, program.label
        assert collectives(executable)["all-reduce", "bf16", rows * PRESETS["9b"].width] == 1 + 2 * layers
        print(program.label, f"{hbm(executable) / 1e9:.2f} GB on each chip")
