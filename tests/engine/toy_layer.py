"""A kind of layer that Roost does not have: a plain linear recurrence, s(t) = 0.9 s(t - 1) + x(t), for each channel.

JAX_NUM_CPU_DEVICES=6 python toy_layer.py DATA MODEL prints the results of a model with such layers on a mesh, as JSON.
"""

import json
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32
from roost.engine import (
    EngineConfig,
    EngineCore,
    MeshShape,
    ModelRunner,
    PrefixCache,
    Request,
    SamplingParams,
    load_runner,
    open_model,
)
from roost.engine.model import layers
from roost.engine.model.config import ModelConfig
from roost.engine.model.layer_kinds import LAYER_KINDS, LayerKind, StateArray, channels
from roost.engine.model.layers import Dense, LayerContext
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.snapshot import unpack

CONFIG = ModelConfig(96, 64, 64, 4, 64, ("toy", "attention", "toy", "recurrent"), window=96)
PROMPT = tuple(range(3, 93)) + tuple(range(90, 10, -1))


class ToyState(NamedTuple):
    """State of a toy layer: sums of its channels."""

    sums: Float32[Array, "B E"]


class ToyBlock(nnx.Module):
    """Temporal block of a toy layer."""

    def __init__(self, context: LayerContext) -> None:
        config = context.config
        self.collectives = context.collectives
        self.inputs = Dense(config.width, config.lru_width, context)
        self.out = Dense(config.lru_width, config.width, context, is_summed=True)

    def __call__(
        self, u: Float[Array, "B T D"], state: ToyState, positions: Int32[Array, "B T"], block: int
    ) -> tuple[Float[Array, "B T D"], ToyState, tuple[Array, ...] | None]:
        def step(sums: Array, item: tuple[Array, Array]) -> tuple[Array, Array]:
            x, position = item
            sums = jnp.where(position[:, None] < 0, sums, 0.9 * sums + x)
            return sums, sums

        x = jnp.swapaxes(self.inputs(u).astype(jnp.float32), 0, 1)
        last, sums = jax.lax.scan(step, self.collectives.first_rows(state.sums, u.shape[0]), (x, positions.T))
        sums = jnp.swapaxes(sums, 0, 1)
        new = ToyState(self.collectives.with_first_rows(state.sums, last))
        return self.out(sums.astype(u.dtype)), new, (sums[:, block - 1 :: block],) if u.shape[1] > 1 else None


TOY = LayerKind(
    ToyState,
    (StateArray("sums", lambda config: ((config.lru_width,), "float32"), channels=channels),),
    rules={
        ("temporal", "inputs", "weight"): (0, (channels,)),
        ("temporal", "inputs", "bias"): (0, (channels,)),
        ("temporal", "out", "weight"): (1, (channels,)),
    },
    matrices=lambda config: [(config.lru_width, config.width), (config.width, config.lru_width)],
)


def toy_runner(shards: MeshShape) -> ModelRunner:
    """Returns a runner of a model with toy layers, random weights and three slots."""
    source = replace(open_model("random:2b"), config=CONFIG)
    return load_runner(
        source, EngineConfig(3, prefill_chunk=64, dtype="float32", shards=shards, request_snapshots=True)
    )


def toy_core(runner: ModelRunner) -> EngineCore:
    cache = PrefixCache(runner.served.config.window, 10**9)
    return EngineCore(Scheduler(runner.served.slots, 100, runner.limits, cache=cache), runner, runner.state_format)


def ask(core: EngineCore, name: str, prompt: tuple[int, ...] = PROMPT, **fields: Any) -> tuple[list[int], int]:
    """Returns the generated tokens, and the number of cached prompt tokens."""
    core.add(Request(name, prompt, SamplingParams(max_tokens=6, temperature=0.0), **fields))
    tokens, num_cached = [], 0
    while not core.is_idle:
        for _, output in core.step():
            tokens, num_cached = tokens + list(output.token_ids), num_cached + output.num_cached
    return tokens, num_cached


def answers(runner: ModelRunner) -> dict[str, Any]:
    """Returns tokens of a prompt, of its prefix and of its exported state, with the shapes of exported arrays."""
    core = toy_core(runner)
    first, again = ask(core, "first"), ask(core, "again")
    file = runner.state_format.export(core.save("first"))
    state = runner.state_format.load(file)
    resumed = ask(toy_core(runner), "resumed", (*state.token_ids, 7), state=state.snapshot)
    whole = ask(toy_core(runner), "whole", (*state.token_ids, 7))
    sums = unpack(file)[0]["sums"]
    slot = runner.snapshot(0, len(PROMPT))
    return {
        "first": first,
        "again": again,
        "resumed": resumed,
        "whole": whole,
        "sums": [list(sums.shape), sums.dtype.name, float(abs(sums).sum())],
        "slot": [list(array.shape) for array in slot.recurrent],
    }


if __name__ == "__main__":
    LAYER_KINDS["toy"], layers.TEMPORAL_BLOCKS["toy"] = TOY, ToyBlock
    print(json.dumps(answers(toy_runner(MeshShape(*map(int, sys.argv[1:]))))))
