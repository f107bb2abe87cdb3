"""Checkpoints are read as written, and files that do not fit the model are reported with the reason."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint import weights as weights_module
from roost.engine.checkpoint.layout import checkpoint_layout
from roost.engine.checkpoint.source import open_tensors
from roost.engine.checkpoint.weights import Checkpoint, load_params, random_params
from roost.engine.model.config import ModelConfig, Params
from roost.engine.model.griffin import abstract_model
from roost.engine.types.errors import CheckpointError
from safetensors.numpy import save_file

CONFIG = ModelConfig(
    vocab_size=10, width=8, mlp_width=12, num_heads=2, lru_width=6, block_types=("recurrent", "attention"), window=4
)

R, A = "model.layers.0", "model.layers.1"
HF_TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 8),
    "model.final_norm.weight": (8,),
    **{f"{layer}.{norm}_pre_norm.weight": (8,) for layer in (R, A) for norm in ("temporal", "channel")},
    **{f"{layer}.mlp_block.{name}_proj.weight": (12, 8) for layer in (R, A) for name in ("gate", "up")},
    **{f"{layer}.mlp_block.{name}_proj.bias": (12,) for layer in (R, A) for name in ("gate", "up")},
    **{f"{layer}.mlp_block.down_proj.weight": (8, 12) for layer in (R, A)},
    **{f"{layer}.mlp_block.down_proj.bias": (8,) for layer in (R, A)},
    f"{R}.temporal_block.linear_x.weight": (6, 8),
    f"{R}.temporal_block.linear_x.bias": (6,),
    f"{R}.temporal_block.linear_y.weight": (6, 8),
    f"{R}.temporal_block.linear_y.bias": (6,),
    f"{R}.temporal_block.linear_out.weight": (8, 6),
    f"{R}.temporal_block.linear_out.bias": (8,),
    f"{R}.temporal_block.conv_1d.weight": (6, 1, 4),
    f"{R}.temporal_block.conv_1d.bias": (6,),
    f"{R}.temporal_block.rg_lru.recurrent_param": (6,),
    f"{R}.temporal_block.rg_lru.input_gate_weight": (2, 3, 3),
    f"{R}.temporal_block.rg_lru.input_gate_bias": (2, 3),
    f"{R}.temporal_block.rg_lru.recurrent_gate_weight": (2, 3, 3),
    f"{R}.temporal_block.rg_lru.recurrent_gate_bias": (2, 3),
    f"{A}.temporal_block.q_proj.weight": (8, 8),
    f"{A}.temporal_block.k_proj.weight": (4, 8),
    f"{A}.temporal_block.v_proj.weight": (4, 8),
    f"{A}.temporal_block.o_proj.weight": (8, 8),
    f"{A}.temporal_block.o_proj.bias": (8,),
}
"""Hugging Face's names and shapes, written out."""

type Tensors = dict[str, np.ndarray]


@pytest.fixture
def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in HF_TENSORS.items()}


def save(tensors: Tensors, folder: Path, shards: int = 1, dtype: Any = np.float32) -> list[Path]:
    """Writes the tensors dealt out over files."""
    files = [folder / f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({name: tensors[name].astype(dtype) for name in sorted(tensors)[i::shards]}, file)
    return files


def load(files: list[Path], dtype: str = "float32") -> Params:
    _, abstract = abstract_model(CONFIG, jnp.dtype(dtype))
    with open_checkpoint(files) as checkpoint:
        return load_params(checkpoint, abstract)


@contextmanager
def open_checkpoint(files: list[Path]) -> Iterator[Checkpoint]:
    with open_tensors(files, CONFIG) as tensors:
        yield Checkpoint(CONFIG, tensors)


def test_the_layout_has_hugging_faces_names_and_shapes() -> None:
    layout = checkpoint_layout(CONFIG)
    assert {t.name: t.shape for spec in layout.values() for t in spec.tensors} == HF_TENSORS
    assert sum(np.prod(shape) for shape in HF_TENSORS.values()) == CONFIG.num_parameters


def test_the_layout_has_every_parameter_of_the_model() -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype("float32"))
    paths = {tuple(k.key for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(abstract)[0]}
    assert paths == checkpoint_layout(CONFIG).keys()


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_land_where_the_model_reads_them(tensors: Tensors, tmp_path: Path, shards: int) -> None:
    params = load(save(tensors, tmp_path, shards))
    recurrent, attention = params["blocks"][0], params["blocks"][1]
    block = f"{R}.temporal_block"

    def joined(prefix: str, names: tuple[str, ...], suffix: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([tensors[f"{prefix}.{name}{suffix}"] for name in names], axis=axis)

    gates = ("input_gate", "recurrent_gate")
    expected = [
        (params["embedding"], tensors["model.embed_tokens.weight"]),
        (params["final_norm"]["scale"], tensors["model.final_norm.weight"]),
        (recurrent["temporal_norm"]["scale"], tensors[f"{R}.temporal_pre_norm.weight"]),
        (recurrent["mlp_norm"]["scale"], tensors[f"{R}.channel_pre_norm.weight"]),
        (recurrent["mlp"]["gate_up"]["weight"], joined(f"{R}.mlp_block", ("gate_proj", "up_proj"), ".weight")),
        (recurrent["mlp"]["down"]["weight"], tensors[f"{R}.mlp_block.down_proj.weight"]),
        (recurrent["temporal"]["xy"]["weight"], joined(block, ("linear_x", "linear_y"), ".weight")),
        (recurrent["temporal"]["xy"]["bias"], joined(block, ("linear_x", "linear_y"), ".bias")),
        (recurrent["temporal"]["conv_weight"], tensors[f"{block}.conv_1d.weight"][:, 0].T),
        (recurrent["temporal"]["rg_lru"]["gate_weight"], joined(f"{block}.rg_lru", gates, "_weight", axis=2)),
        (recurrent["temporal"]["rg_lru"]["gate_bias"], joined(f"{block}.rg_lru", gates, "_bias", axis=1)),
        (recurrent["temporal"]["rg_lru"]["a_param"], tensors[f"{block}.rg_lru.recurrent_param"]),
        (
            attention["temporal"]["qkv"],
            joined(f"{A}.temporal_block", ("q_proj", "k_proj", "v_proj"), ".weight"),
        ),
        (attention["temporal"]["out"]["bias"], tensors[f"{A}.temporal_block.o_proj.bias"]),
    ]
    for parameter, tensor in expected:
        np.testing.assert_array_equal(parameter, tensor)


def test_progress_counts_every_array(tensors: Tensors, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    _, abstract = abstract_model(CONFIG, jnp.dtype("float32"))
    with open_checkpoint(save(tensors, tmp_path)) as checkpoint:
        load_params(checkpoint, abstract, lambda done, total: seen.append((done, total)))
    count = len(jax.tree.leaves(abstract))
    assert seen == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize(
    ("stored", "runs_in"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_a_checkpoint_runs_in_its_own_type(tensors: Tensors, tmp_path: Path, stored: str, runs_in: str) -> None:
    """float16 has too little range: it is widened."""
    files = save(tensors, tmp_path, dtype=jnp.dtype(stored))
    with open_checkpoint(files) as checkpoint:
        assert checkpoint.dtype == runs_in
    embedding = load(files, runs_in)["embedding"]
    assert embedding.dtype == runs_in
    rounded = tensors["model.embed_tokens.weight"].astype(jnp.dtype(stored)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(embedding, np.float32), rounded)


def test_vectors_and_the_recurrence_stay_float32(tensors: Tensors, tmp_path: Path) -> None:
    params = load(save(tensors, tmp_path, dtype=jnp.bfloat16), "bfloat16")
    temporal = params["blocks"][0]["temporal"]
    assert temporal["xy"]["weight"].dtype == jnp.bfloat16
    for vector in (temporal["xy"]["bias"], temporal["conv_weight"], temporal["rg_lru"]["a_param"]):
        assert vector.dtype == jnp.float32


def test_a_type_that_is_not_supported_is_named(tensors: Tensors, tmp_path: Path) -> None:
    text = refusal(save(tensors, tmp_path, dtype=np.float64))
    assert re.search(r"model-00001-of-00001.safetensors: tensor model\.\S+ is of type F64, .* BF16", text)


def test_a_tied_output_is_tolerated(tensors: Tensors, tmp_path: Path) -> None:
    files = save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path)
    np.testing.assert_array_equal(load(files)["embedding"], tensors["model.embed_tokens.weight"])


def refusal(files: list[Path]) -> str:
    """Returns the error of opening these files."""
    with pytest.raises(CheckpointError) as error, open_checkpoint(files):
        pass
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["model.final_norm.weight", f"{R}.temporal_block.rg_lru.recurrent_gate_bias"])
def test_a_missing_tensor_is_named_with_its_shape(tensors: Tensors, tmp_path: Path, name: str) -> None:
    del tensors[name]
    text = refusal(save(tensors, tmp_path))
    assert name in text
    assert str(list(HF_TENSORS[name])) in text
    assert "missing" in text


def test_a_misshapen_tensor_is_named_with_both_shapes(tensors: Tensors, tmp_path: Path) -> None:
    name = f"{A}.temporal_block.k_proj.weight"
    tensors[name] = np.zeros((8, 8), np.float32)
    files = save(tensors, tmp_path, shards=2)
    holder = files[sorted(tensors).index(name) % 2]
    expected = f"{holder}: tensor {name} has shape [8, 8], but the config asks for [4, 8]; "
    assert refusal(files).startswith(expected)


def test_surplus_tensors_are_named_and_counted(tensors: Tensors, tmp_path: Path) -> None:
    surplus = {f"model.layers.2.{name}": np.zeros(3, np.float32) for name in ("b", "a")}
    text = refusal(save(tensors | surplus, tmp_path))
    assert "model-00001-of-00001.safetensors: tensor model.layers.2.a does not belong" in text
    assert "2 surplus" in text


def test_a_checkpoint_that_lacks_a_shard_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    assert "is missing" in refusal(save(tensors, tmp_path, shards=2)[:1])


@pytest.mark.parametrize("size", [0, 5, 300, -8])
def test_a_file_cut_short_is_named(tensors: Tensors, tmp_path: Path, size: int) -> None:
    """Files that are empty or truncated in the header's length, the header or the data."""
    (file,) = save(tensors, tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file}: is not a whole safetensors file" in refusal([file])


def test_random_parameters_depend_on_the_seed_alone() -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype("bfloat16"))
    first, again, other = (random_params(abstract, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    for params in (first, other):
        layers = [block["mlp"]["down"]["weight"] for block in params["blocks"].values()]
        assert (layers[0] != layers[1]).any(), "layers of one shape are drawn apart"
    assert (first["embedding"] != other["embedding"]).any()


def test_random_parameters_have_the_scale_that_is_promised() -> None:
    config = ModelConfig(512, 128, 256, 4, 512, ("recurrent",))
    params = random_params(abstract_model(config, jnp.dtype("float32"))[1], 0)
    temporal = params["blocks"][0]["temporal"]
    decay = np.exp(-8 * np.log1p(np.exp(np.asarray(temporal["rg_lru"]["a_param"], np.float64))))
    assert decay.min() >= 0.9 - 1e-6
    assert decay.max() <= 0.999 + 1e-6
    assert np.ptp(decay) > 0.09
    gates, xy, taps = temporal["rg_lru"]["gate_weight"], temporal["xy"]["weight"], temporal["conv_weight"]
    for weight, fan_in in ((gates, 128), (xy, 128), (taps, 4), (temporal["out"]["weight"], 512)):
        assert float(jnp.var(weight)) * fan_in == pytest.approx(1.0, rel=0.05)
    assert not np.asarray(temporal["xy"]["bias"]).any()


def test_gates_of_one_channel_are_no_convolution() -> None:
    """Gate weights of one channel are [N, 1, 1], similar to a convolution's [E, 1, K]."""
    spec = checkpoint_layout(ModelConfig(10, 8, 12, 2, 2, ("recurrent",)))[
        "blocks", 0, "temporal", "rg_lru", "gate_weight"
    ]
    gates = [np.full((2, 1, 1), value, np.float32) for value in (1, 2)]
    parameter = np.empty((2, 1, 2), np.float32)
    for view, gate in zip(spec.views(parameter), gates, strict=True):
        view[:] = gate
    np.testing.assert_array_equal(parameter, [[[1, 2]], [[1, 2]]])


def test_weights_are_drawn_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a piece does not change the numbers."""
    abstract = abstract_model(CONFIG, jnp.dtype("bfloat16"))[1]
    whole = random_params(abstract, 5)
    monkeypatch.setattr(weights_module, "_PIECE", 100)
    jax.tree.map(np.testing.assert_array_equal, random_params(abstract, 5), whole)
