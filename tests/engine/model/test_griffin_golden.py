"""Parity with the official implementation: the golden vectors of tiny-a, within the tolerances of its README."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from roost.engine.model.config import Params
from roost.engine.model.layer_kinds import RecurrentState
from roost.engine.model.state import ModelState
from small_models import CPU_OPTIONS, TINY_A, SmallModel, counting, ragged, tiny_a
from sweeps import swept

type Golden = Mapping[str, np.ndarray]

ROWS, STEPS = 3, 112
"""One shape for all prefills, so that they share a program; missing rows are padding."""

close_logits = partial(np.testing.assert_allclose, rtol=0, atol=5e-4)
close_state = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(TINY_A / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model() -> SmallModel:
    return tiny_a()


@pytest.fixture(scope="module")
def model_bf16() -> SmallModel:
    return tiny_a("bfloat16")


def prefill(model: SmallModel, prompts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], ModelState]:
    """Returns the logits of each prompt after a prefill of all in one batch."""
    prompts = [*prompts, *[np.zeros(0, np.int32)] * (ROWS - len(prompts))]
    lengths = [len(p) for p in prompts]
    logits, state = model.run(ragged(prompts, STEPS), counting(lengths, STEPS), model.zero(ROWS))
    return [row[:n] for row, n in zip(logits, lengths, strict=True)], state


def decode(
    model: SmallModel, tokens: Sequence[int], positions: Sequence[int], state: ModelState
) -> tuple[np.ndarray, ModelState]:
    """Returns logits `[ROWS, V]` of one decode step."""
    logits, state = model.run(*(np.array(x, np.int32)[:, None] for x in (tokens, positions)), state)
    return logits[:, 0], state


def prefill_40_decode_60(model: SmallModel, tokens: np.ndarray) -> tuple[np.ndarray, ModelState, ModelState]:
    """Returns logits `[60, V]` of decode steps, and the states after prefill and at the end; two rows are idle."""
    _, after_prefill = prefill(model, [tokens[:40]])
    rows, state = [], after_prefill
    for position in range(40, 100):
        logits, state = decode(model, [tokens[position], 0, 0], [position, -1, -1], state)
        rows.append(logits[0])
    return np.stack(rows), after_prefill, state


def greedy(model: SmallModel, prompts: Sequence[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` greedy tokens for each prompt of a batch, and the logits they were chosen from."""
    prompt_logits, state = prefill(model, prompts)
    logits = [np.stack([row[-1] for row in prompt_logits])]
    tokens = [logits[-1].argmax(axis=-1)]
    for step in range(count - 1):
        positions = [len(p) + step for p in prompts]
        row_logits, state = decode(model, tokens[-1].tolist(), positions, state)
        logits.append(row_logits)
        tokens.append(row_logits.argmax(axis=-1))
    return np.stack(tokens, axis=1), np.stack(logits, axis=1)


def check_state(state: ModelState, row: int, golden: Golden, name: str, num_tokens: int) -> None:
    for index, layer in enumerate(jax.tree.map(np.asarray, state)):
        expected = {
            key.rpartition("/")[2]: value[0]
            for key, value in golden.items()
            if key.startswith(f"{name}/blocks.{index}/")
        }
        if isinstance(layer, RecurrentState):
            close_state(layer.h[row], expected["rg_lru_state"])
            close_state(layer.conv[:, row], expected["conv1d_state"])
        else:
            filled = slice(0, num_tokens)  # rows of the ring that nothing was written to hold anything
            keys, values = layer.rings
            close_state(keys[row, filled], expected["keys"][filled, 0])
            close_state(values[row, filled], expected["values"][filled, 0])


def test_full_pass(model: SmallModel, golden: Golden) -> None:
    (logits, *_), state = prefill(model, [golden["full_tokens"][0]])
    close_logits(logits, golden["full_logits"][0])
    check_state(state, 0, golden, "state_at_end", 100)


def test_prefill_then_decode_past_the_window(model: SmallModel, golden: Golden) -> None:
    steps, after_prefill, at_end = prefill_40_decode_60(model, golden["full_tokens"][0])
    close_logits(steps, golden["step_logits"][0])
    check_state(after_prefill, 0, golden, "state_after_prefill", 40)
    check_state(at_end, 0, golden, "state_at_end", 100)


def test_state_of_a_prompt_shorter_than_the_window(model: SmallModel, golden: Golden) -> None:
    """A row beside two longer ones is followed by padding."""
    tokens = golden["full_tokens"][0]
    _, state = prefill(model, [tokens[:100], tokens[:5], tokens[:40]])
    check_state(state, 0, golden, "state_at_end", 100)
    check_state(state, 1, golden, "state_after_5", 5)
    check_state(state, 2, golden, "state_after_prefill", 40)


def test_packed_documents(model: SmallModel, golden: Golden) -> None:
    """The second of two documents in a row has nothing of the first."""
    tokens = ragged([golden["packed_tokens"][0], [], []], STEPS)
    positions = ragged([golden["packed_segment_pos"][0], [], []], STEPS, filler=-1)
    logits, _ = model.run(tokens, positions, model.zero(ROWS))
    close_logits(logits[0, : len(golden["packed_tokens"][0])], golden["packed_logits"][0])


def test_ragged_batch_gives_each_prompt_what_it_gets_alone(model: SmallModel, golden: Golden) -> None:
    prompts = [golden[f"sampler_prompt_{i}"] for i in range(3)]
    assert [len(p) for p in prompts] == [23, 9, 5]
    tokens, logits = greedy(model, prompts, 24)
    np.testing.assert_array_equal(tokens, golden["sampler_alone_tokens"])
    close_logits(logits, golden["sampler_alone_logits"])


def test_prompts_shorter_than_the_convolution(model: SmallModel, golden: Golden) -> None:
    """Two tokens and one beside nine: the official batch gets these wrong, as its padding enters the convolution."""
    tokens, logits = greedy(model, [golden[f"short_prompt_{i}"] for i in range(3)], 4)
    for i in range(3):
        np.testing.assert_array_equal(tokens[i], golden[f"short_alone_tokens_{i}"])
        close_logits(logits[i], golden[f"short_alone_logits_{i}"])
    assert np.abs(logits[2, 0] - golden["short_padded_first_logits_2"]).max() > 1


@partial(jax.jit, static_argnums=(0,), compiler_options=CPU_OPTIONS)
def layer_outputs(
    graph: nnx.GraphDef[nnx.Module], params: Params, tokens: jax.Array, positions: jax.Array, state: ModelState
) -> dict[str, jax.Array]:
    model = nnx.merge(graph, params)
    x = model.embedding[...][tokens] * 8.0  # the square root of its width
    outputs = {}
    for index, (layer, layer_state) in enumerate(zip(model.blocks, state, strict=True)):
        x, *_ = layer(x, layer_state, positions, tokens.shape[1])
        outputs[f"blocks.{index}"] = x
    return outputs | {"final_norm": model.final_norm(x)}


@pytest.mark.full
def test_output_of_every_layer(model: SmallModel) -> None:
    """Finds the layer at fault when the logits differ."""
    with np.load(TINY_A / "internals.npz") as internals:
        tokens = internals["tokens"]
        outputs = layer_outputs(model.graph, model.params, tokens, counting([20], 20), model.zero(1))
        for name, value in outputs.items():
            np.testing.assert_allclose(value, internals[name], rtol=0, atol=2e-4, err_msg=name)


def test_bfloat16_stays_as_close_to_float32_as_the_official_one(model_bf16: SmallModel, golden: Golden) -> None:
    """Compares with float32 logits, because official bfloat16 logits depend on how they are compiled."""
    tokens = golden["full_tokens"][0]
    (full, *_), _ = prefill(model_bf16, [tokens])
    steps, *_ = prefill_40_decode_60(model_bf16, tokens)
    for logits, expected in ((full, golden["full_logits"][0]), (steps, golden["step_logits"][0])):
        assert np.abs(logits - expected).mean() <= 0.25
        assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.92


@pytest.mark.parametrize("dtype", [*swept("float32"), "bfloat16"])
def test_matrices_in_int8_stay_close_to_float32(dtype: str, golden: Golden) -> None:
    (logits, *_), _ = prefill(tiny_a(dtype, matrices="int8"), [golden["full_tokens"][0]])
    expected = golden["full_logits"][0]
    assert np.abs(logits - expected).mean() <= 0.5
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.85


def test_matrices_in_four_bits_stay_near_float32(golden: Golden) -> None:
    (logits, *_), _ = prefill(tiny_a(matrices="int4"), [golden["full_tokens"][0]])
    expected = golden["full_logits"][0]
    assert np.abs(logits - expected).mean() <= 0.5 * np.abs(expected).mean()
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.4
