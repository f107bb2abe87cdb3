"""Checkpoints in int4: what is written, what quantising at load gives, files of other tools, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint.conversion import convert
from roost.engine.checkpoint.lora import open_adapter
from roost.engine.checkpoint.source import open_model
from roost.engine.checkpoint.weights import checkpoint_tensors, random_params
from roost.engine.devices.platform import CPU
from roost.engine.model.config import ModelConfig, config_from_hf, config_to_hf, cycle
from roost.engine.model.griffin import abstract_model
from roost.engine.types.errors import CheckpointError, ConfigError
from roost.kernels.matrices import Int4Matrix, Int8Matrix
from safetensors.numpy import load_file, save_file
from sweeps import full
from test_conversion import HF, ORBAX, assert_same, params_of, refusal

EMBEDDING = "model.embed_tokens.weight"
DOWN = "model.layers.0.mlp_block.down_proj.weight"

WIDE = ModelConfig(96, 128, 256, 2, 128, cycle(("recurrent", "attention"), 2), window=16)


def saved(tmp_path: Path, config: ModelConfig) -> Path:
    """Saves a model with random weights."""
    params = random_params(abstract_model(config, jnp.dtype("float32"))[1], 0)
    folder = tmp_path / "float32"
    folder.mkdir()
    save_file(checkpoint_tensors(params, config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    return folder


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    convert(open_model(HF), tmp_path / "int4", quantize="int4")
    return tmp_path / "int4"


@pytest.mark.parametrize("model", [HF, ORBAX, "demo"])
def test_int4_on_disk_is_what_quantising_at_load_gives(tmp_path: Path, model: str) -> None:
    convert(open_model(model), tmp_path / "int4", quantize="int4")
    source = open_model(str(tmp_path / "int4"))
    assert (source.config.quantize, source.config.dtype) == ("int4", open_model(model).config.dtype)
    assert_same(params_of(source, "bfloat16", "int4"), params_of(open_model(model), "bfloat16", "int4"))


def test_the_bytes_are_those_of_the_formats_layout(int4: Path) -> None:
    """Words hold unsigned values, the first in the lowest bits: 8 of 4 bits with 8 added, or 4 bytes with 128 added."""
    stored, params = load_file(int4 / "model.safetensors"), params_of(open_model(HF), "float32", "int4")
    matrix = params["blocks"][0]["mlp"]["down"]["weight"]
    halves = np.asarray(matrix.values, np.uint32)
    values = np.stack([halves & 15, halves >> 4], axis=-1).reshape(*matrix.scale.shape, -1).astype(int) - 8
    assert_words(stored, DOWN, values.reshape(matrix.shape), 4)
    np.testing.assert_array_equal(stored[f"{DOWN}_scale"], matrix.scale)
    table = params["embedding"]
    assert_words(stored, EMBEDDING, np.asarray(table.values, int), 8)
    np.testing.assert_array_equal(stored[f"{EMBEDDING}_scale"], np.asarray(table.scale)[:, None])
    assert {stored[f"{name}_scale"].dtype.name for name in (DOWN, EMBEDDING)} == {"float16", "float32"}


def assert_words(stored: Mapping[str, np.ndarray], name: str, values: np.ndarray, bits: int) -> None:
    unsigned = (values + 2 ** (bits - 1)).reshape(len(values), -1, 32 // bits)
    words = (unsigned * 2 ** (bits * np.arange(32 // bits))).sum(axis=-1).astype(np.uint32)
    packed = stored[f"{name}_packed"]
    assert packed.dtype == np.int32
    np.testing.assert_array_equal(packed.view(np.uint32), words)
    shape = stored[f"{name}_shape"]
    assert (shape.dtype, shape.tolist()) == (np.int64, list(values.shape))


def test_the_config_has_a_group_for_each_size_and_one_for_the_embedding(int4: Path) -> None:
    fields = json.loads((int4 / "config.json").read_text())["quantization_config"]
    assert (fields["quant_method"], fields["format"]) == ("compressed-tensors", "pack-quantized")
    layers, embedding = fields["config_groups"].values()
    assert layers["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "dynamic": False,
    }  # fmt: skip
    assert (embedding["targets"], embedding["weights"]["num_bits"]) == (["Embedding"], 8)
    assert all(group["input_activations"] is None for group in (layers, embedding))


def test_widths_that_64_does_not_divide_have_a_group_of_their_own(tmp_path: Path) -> None:
    config = ModelConfig(96, 96, 192, 2, 64, cycle(("recurrent", "attention"), 2), window=16)
    folder = saved(tmp_path, config)
    convert(open_model(str(folder)), tmp_path / "int4", quantize="int4")
    source = open_model(str(tmp_path / "int4"))
    assert_same(params_of(source, "float32", "int4"), params_of(open_model(str(folder)), "float32", "int4"))
    groups = json.loads((tmp_path / "int4" / "config.json").read_text())["quantization_config"]["config_groups"]
    modules = {group["weights"]["group_size"]: group["targets"] for group in groups.values()}
    assert modules[64] == ["re:.*[.]linear_out$", "re:.*[.]down_proj$"]
    assert "re:.*[.]gate_proj$" in modules[32]


def as_other_tools_write(folder: Path, destination: Path, size: int, scale_dtype: Any) -> dict[str, np.ndarray]:
    """Writes a model as llm-compressor does for `W4A16` and a group size, without the embedding.

    Returns:
      The scales, by the names of the matrices.
    """
    tensors, scales = load_file(folder / "model.safetensors"), {}
    for name in [name for name, x in tensors.items() if x.ndim == 2 and name.endswith(".weight") and name != EMBEDDING]:
        matrix = tensors.pop(name)
        groups = matrix.reshape(len(matrix), -1, size)
        scale = (np.abs(groups).max(axis=-1) / 7.5).astype(scale_dtype)
        values = np.clip(np.rint(groups / scale.astype(np.float32)[..., None]), -8, 7).astype(np.int64) + 8
        words = (values.reshape(len(matrix), -1, 8) << (4 * np.arange(8))).sum(axis=-1).astype(np.uint32)
        tensors |= {f"{name}_packed": words.view(np.int32), f"{name}_scale": scale}
        tensors[f"{name}_shape"] = np.array(matrix.shape, np.int64)
        scales[name] = scale
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "group_size": size, "strategy": "group",
        "block_structure": None, "dynamic": False, "actorder": "static", "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": "pack-quantized"}
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {},
        "global_compression_ratio": None, "transform_config": {}, "version": "0.13.0",
    }  # fmt: skip
    destination.mkdir()
    save_file(tensors, destination / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (destination / "config.json").write_text(json.dumps(fields | {"quantization_config": quantization}))
    return scales


@pytest.mark.parametrize(
    ("size", "scale_dtype"),
    [
        *((32, jnp.bfloat16), (64, np.float32), (128, jnp.bfloat16)),
        *full((32, np.float32), (64, jnp.bfloat16), (128, np.float32)),
    ],
)
def test_files_of_other_tools_are_read(tmp_path: Path, size: int, scale_dtype: Any) -> None:
    folder = saved(tmp_path, WIDE)
    scales = as_other_tools_write(folder, tmp_path / "other", size, scale_dtype)
    source, plain = open_model(str(tmp_path / "other")), params_of(open_model(str(folder)), "float32")
    params = params_of(source, "float32", "int4")
    matrix = params["blocks"][0]["mlp"]["down"]["weight"]
    assert isinstance(matrix, Int4Matrix)
    np.testing.assert_array_equal(matrix.scale, scales[DOWN].astype(np.float16))
    wide = np.asarray(jax.jit(lambda matrix: matrix.rows(jnp.arange(128)))(matrix))
    step = np.repeat(np.asarray(matrix.scale, np.float32), size, axis=1)
    assert (np.abs(wide - plain["blocks"][0]["mlp"]["down"]["weight"]) <= 0.55 * step).all()
    assert_same(params["embedding"], Int8Matrix.quantize(np.asarray(plain["embedding"])))


def test_a_copy_of_another_tools_file_has_the_embedding_in_8_bits(tmp_path: Path) -> None:
    as_other_tools_write(saved(tmp_path, WIDE), tmp_path / "other", 32, jnp.bfloat16)
    convert(open_model(str(tmp_path / "other")), tmp_path / "copy")
    one, other = (open_model(str(tmp_path / name)) for name in ("other", "copy"))
    assert f"{EMBEDDING}_packed" in load_file(tmp_path / "copy" / "model.safetensors")
    assert_same(params_of(one, "float32", "int4"), params_of(other, "float32", "int4"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"symmetric": False}, r"group_0\.weights\.symmetric False is not supported, only True"),
        ({"actorder": "group"}, r"group_0\.weights\.actorder 'group' is not supported"),
        ({"num_bits": 3}, r"group_0\.weights\.num_bits 3 is not supported, only 4"),
        ({"num_bits": 8, "strategy": "channel"}, r"num_bits 8 is not supported, only 4 for matrices"),
        ({"group_size": 16}, r"group_0\.weights\.group_size 16 is not supported, only 32 or 64 or 128"),
        ({"strategy": "channel"}, r"group_0\.weights\.strategy 'channel' is not supported, only group"),
        ({"type": "float"}, r"group_0\.weights\.type 'float' is not supported, only int"),
        ({"dynamic": True}, r"group_0\.weights\.dynamic True is not supported"),
    ],
)
def test_other_kinds_of_four_bits_are_refused_by_the_name_of_the_field(
    int4: Path, change: dict[str, Any], named: str
) -> None:
    fields = json.loads((int4 / "config.json").read_text())
    group = fields["quantization_config"]["config_groups"]["group_0"]
    group["weights"] |= change
    del fields["quantization_config"]["config_groups"]["group_1"]
    with pytest.raises(CheckpointError, match=rf"\Aquantization_config: .*{named}.*\Z"):
        config_from_hf(fields)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("group", "input_activations", {"num_bits": 8}),
        ("group", "output_activations", {"num_bits": 8}),
        ("group", "format", "nvfp4-pack-quantized"),
        ("group", "weights", None),
        ("whole", "kv_cache_scheme", {"num_bits": 8}),
        ("whole", "sparsity_config", {"format": "sparse-24-bitmask"}),
        ("whole", "transform_config", {"config_groups": {"u": {}}}),
        ("whole", "config_groups", {}),
        ("whole", "quant_method", "awq"),
    ],
)
def test_what_would_change_products_is_refused_by_the_name_of_the_field(
    int4: Path, where: str, name: str, value: Any
) -> None:
    fields = json.loads((int4 / "config.json").read_text())
    quantization = fields["quantization_config"]
    (quantization if where == "whole" else quantization["config_groups"]["group_0"])[name] = value
    with pytest.raises(CheckpointError, match=rf"\Aquantization_config: .*{name} .* is not supported.*\Z"):
        config_from_hf(fields)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (f"{DOWN}_g_idx", np.zeros(192, np.int32), "does not belong to this model"),
        (f"{DOWN}_zero_point", np.zeros((8, 3), np.int32), "does not belong to this model"),
        (f"{DOWN}_scale", np.zeros((64, 1), np.float16), "has shape [64, 1], but the config asks for [64, 3]"),
        (f"{DOWN}_packed", np.zeros((64, 24), np.int8), "is stored as int8, but the config asks for int32"),
        (f"{DOWN}_packed", None, "[64, 24] is missing"),
        (f"{EMBEDDING}_scale", None, "[320, 1] is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    int4: Path, tmp_path: Path, name: str, value: np.ndarray | None, problem: str
) -> None:
    file = int4 / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if value is None else {**tensors, name: value}, file)
    text = refusal(open_model(str(int4)), tmp_path / "new")
    assert text.startswith(f"{file}: tensor {name} {problem}")


def test_a_scale_that_float16_cannot_hold_is_named(int4: Path) -> None:
    file = int4 / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{DOWN}_scale"] = np.full((64, 3), 1e5, np.float32)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"{DOWN}_scale holds 100000, but scales in int4 must be at most 65504"):
        params_of(open_model(str(int4)), "float32", "int4")


def test_int4_is_where_it_ends(int4: Path, tmp_path: Path) -> None:
    small = open_model(str(int4))
    for options in ({"dtype": "float32"}, {"quantize": "int8"}, {"quantize": "int4"}):
        assert "is stored in int4 already" in refusal(small, tmp_path / "it", **options)
    for matrices in (None, "int8"):
        with pytest.raises(CheckpointError, match="stored in int4 and can be loaded with quantize int4 only"):
            params_of(small, "bfloat16", matrices)
    again = convert(small, tmp_path / "copy")
    assert again == convert(open_model(HF), tmp_path / "direct", quantize="int4")


def test_an_adapter_is_refused(int4: Path, tmp_path: Path) -> None:
    module = "model.layers.0.mlp_block.down_proj"
    factors = {
        f"base_model.model.{module}.lora_A.weight": np.ones((2, 192), np.float32),
        f"base_model.model.{module}.lora_B.weight": np.ones((64, 2), np.float32),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    source = open_model(str(int4)).with_adapters([open_adapter("it", tmp_path)])
    assert "is stored in int4; take the original weights for --lora" in refusal(source, tmp_path / "new")


def test_widths_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ModelConfig(96, 48, 96, 2, 96, ("recurrent",), window=16))
    with pytest.raises(ConfigError, match="int4 takes widths that are multiples of 32, and the model has 48"):
        convert(open_model(str(folder)), tmp_path / "new", quantize="int4")
    assert not (tmp_path / "new").exists()


def test_random_weights_of_a_config_in_int4_are_quantised_in_roosts_groups(tmp_path: Path) -> None:
    as_other_tools_write(saved(tmp_path, WIDE), tmp_path / "other", 128, np.float32)
    source = open_model(f"random:{tmp_path / 'other' / 'config.json'}")
    _, abstract = abstract_model(source.config, jnp.dtype("float32"), CPU, matrix_dtype=jnp.dtype("int4"))
    shapes = jax.tree.map(lambda x: x.shape, abstract)
    assert jax.tree.map(lambda x: x.shape, random_params(abstract, 0)) == shapes
