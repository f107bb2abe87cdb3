"""Conversion is lossless, int8 on disk equals int8 at load, and failures leave nothing behind."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint.conversion import Converted, convert
from roost.engine.checkpoint.layout import tensor_specs
from roost.engine.checkpoint.safetensors_files import INDEX
from roost.engine.checkpoint.source import DEMO_DIRECTORY, ModelSource, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint, checkpoint_tensors, load_params, random_params
from roost.engine.devices.platform import CPU
from roost.engine.model.config import ModelConfig, Params, config_from_hf
from roost.engine.model.griffin import abstract_model
from roost.engine.types.errors import CheckpointError
from safetensors.numpy import load_file, save_file
from small_models import TINY_A

HF, ORBAX = (str(TINY_A / name) for name in ("hf", "orbax"))


def tensors_of(source: ModelSource) -> dict[str, np.ndarray]:
    with open_tensors(source.weights, source.config) as tensors:
        return {name: tensor.whole() for name, tensor in tensors.items()}


def params_of(source: ModelSource, dtype: str, matrices: str | None = None) -> Params:
    kind = None if matrices is None else jnp.dtype(matrices)
    _, abstract = abstract_model(source.config, jnp.dtype(dtype), CPU, matrix_dtype=kind)
    with open_tensors(source.weights, source.config) as tensors:
        return load_params(Checkpoint(source.config, tensors), abstract)


def assert_same(params: Params, others: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, params, others)


def test_the_config_and_all_tensors_are_kept(tmp_path: Path) -> None:
    convert(open_model(ORBAX), tmp_path / "it")
    source, again = open_model(HF), open_model(str(tmp_path / "it"))
    assert source.config == again.config
    before, after = tensors_of(source), tensors_of(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name])


def test_the_official_checkpoint_and_hugging_faces_have_one_fingerprint(tmp_path: Path) -> None:
    converted = [convert(open_model(model), tmp_path / str(i)) for i, model in enumerate((HF, ORBAX))]
    assert converted[0] == converted[1]
    assert converted[0].num_bytes == 2 * open_model(HF).config.num_parameters


def test_int8_on_disk_is_what_quantising_at_load_gives(tmp_path: Path) -> None:
    convert(open_model(ORBAX), tmp_path / "int8", quantize="int8")
    source = open_model(str(tmp_path / "int8"))
    assert_same(params_of(source, "bfloat16", "int8"), params_of(open_model(HF), "bfloat16", "int8"))
    with open_tensors(source.weights, source.config) as tensors:
        checkpoint = Checkpoint(source.config, tensors)
        assert (checkpoint.dtype, source.config.quantize) == ("bfloat16", "int8")
        scale = tensors["model.embed_tokens.weight_scale"]
        assert (scale.shape, scale.dtype) == ((320, 1), np.float32)
    with pytest.raises(CheckpointError, match="stored in int8 and can be loaded with quantize int8 only"):
        params_of(source, "bfloat16")


def test_int8_of_float32_is_not_rounded_twice(tmp_path: Path) -> None:
    convert(open_model("demo"), tmp_path / "float32", dtype="float32")
    convert(open_model(str(tmp_path / "float32")), tmp_path / "int8", quantize="int8", dtype="bfloat16")
    wide, small = (params_of(open_model(str(tmp_path / name)), "bfloat16", "int8") for name in ("float32", "int8"))
    assert_same(wide["blocks"][0]["mlp"]["down"]["weight"], small["blocks"][0]["mlp"]["down"]["weight"])
    assert open_model(str(tmp_path / "int8")).config.dtype == "bfloat16"


def test_the_type_is_changed_for_all_tensors(tmp_path: Path) -> None:
    convert(open_model(HF), tmp_path / "it", dtype="float32")
    source = open_model(str(tmp_path / "it"))
    assert source.config.dtype == "float32"
    assert {t.dtype.name for t in tensors_of(source).values()} == {"float32"}


def test_the_tokenizer_and_the_end_tokens_come_along(tmp_path: Path) -> None:
    convert(open_model("demo"), tmp_path / "it")
    for name in ("tokenizer.model", "generation_config.json"):
        assert (tmp_path / "it" / name).read_bytes() == (DEMO_DIRECTORY / name).read_bytes()
    end = json.loads((DEMO_DIRECTORY / "config.json").read_text())["eos_token_id"]
    assert json.loads((tmp_path / "it" / "config.json").read_text())["eos_token_id"] == end


def test_large_checkpoints_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.engine.checkpoint.safetensors_files._SHARD_BYTES", 200_000)
    monkeypatch.setattr("roost.engine.checkpoint.format._PIECE", 1000)
    convert(open_model(HF), tmp_path / "it", quantize="int8")
    files = sorted(p.name for p in (tmp_path / "it").glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / "it" / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for file in files for t in load_file(tmp_path / "it" / file).values()
    )
    assert_same(
        params_of(open_model(str(tmp_path / "it")), "float32", "int8"), params_of(open_model(HF), "float32", "int8")
    )


def test_progress_is_told_in_two_stages(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    convert(open_model(HF), tmp_path / "it", progress=lambda *what: seen.append(what))
    count = len(tensors_of(open_model(HF)))
    stages = [[(done, total) for _, done, total in some] for _, some in itertools.groupby(seen, key=lambda s: s[0])]
    assert stages == [[(i, count) for i in range(1, count + 1)]] * 2


def refusal(source: ModelSource, destination: Path, **options: Any) -> str:
    """Returns the error's message, after checking that nothing is left behind."""
    before = sorted(destination.parent.iterdir())
    with pytest.raises(CheckpointError) as error:
        convert(source, destination, **options)
    assert sorted(destination.parent.iterdir()) == before
    return str(error.value)


def test_a_source_that_is_broken_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(HF, tmp_path / "broken"))
    file = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    max(tensors.values(), key=np.size)[-1, -1] = np.inf
    save_file(tensors, file)
    for options in ({}, {"quantize": "int8"}):
        assert f"{file}: tensor model." in refusal(open_model(str(folder)), tmp_path / "new", **options)


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    assert "is there already" in refusal(open_model(HF), tmp_path / "it")
    assert not list((tmp_path / "it").iterdir())


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, tensors: Any, report: Any) -> None:
        wrong = {}
        for name, tensor in tensors.items():
            wrong[name] = tensor.whole()
            report()
        wrong["model.final_norm.weight"][7] += 1
        save_file(wrong, folder / "model.safetensors")

    monkeypatch.setattr("roost.engine.checkpoint.conversion.write_files", write)
    assert "what was written is not what is read again" in refusal(open_model(HF), tmp_path / "it")


def test_several_key_heads_are_kept(tmp_path: Path) -> None:
    convert(open_model(str(TINY_A.parent / "key-heads" / "grouped")), tmp_path / "int8", quantize="int8")
    assert open_model(str(tmp_path / "int8")).config.num_key_heads == 2


def test_int8_is_where_it_ends(tmp_path: Path) -> None:
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    small = open_model(str(tmp_path / "int8"))
    for options in ({"dtype": "float32"}, {"quantize": "int8"}):
        assert "is stored in int8 already" in refusal(small, tmp_path / "it", **options)
    copy: Converted = convert(small, tmp_path / "copy")
    assert copy.num_bytes == sum(t.nbytes for t in tensors_of(small).values())


def test_random_weights_are_no_checkpoint(tmp_path: Path) -> None:
    assert "random weights" in refusal(open_model("random:2b"), tmp_path / "it")


def test_other_quantisations_are_refused(tmp_path: Path) -> None:
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    fields = json.loads((tmp_path / "int8" / "config.json").read_text())
    mine = fields["quantization_config"]
    by_tensor = json.loads(json.dumps(mine).replace('"channel"', '"tensor"'))
    others = (
        {"quant_method": "gptq", "bits": 4},
        mine | {"format": "pack-quantized"},
        mine | {"format": []},
        by_tensor,
        3,
    )
    for other in others:
        with pytest.raises(
            CheckpointError, match=r"quantization_config: .* is not supported.*; take the original weights"
        ):
            config_from_hf(fields | {"quantization_config": other})


@pytest.mark.parametrize("name", ["model.embed_tokens.weight_scale", "model.layers.2.temporal_block.k_proj.weight"])
def test_a_scale_or_a_matrix_that_is_missing_in_int8_is_named(tmp_path: Path, name: str) -> None:
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    file = tmp_path / "int8" / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    assert f"{file}: tensor {name} " in refusal(open_model(str(tmp_path / "int8")), tmp_path / "it")


def test_int8_that_is_half_done_is_named(tmp_path: Path) -> None:
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    file, name = tmp_path / "int8" / "model.safetensors", "model.layers.1.mlp_block.up_proj.weight"
    tensors = load_file(file)
    tensors[name] = tensors[name].astype(np.float32)
    save_file(tensors, file)
    text = refusal(open_model(str(tmp_path / "int8")), tmp_path / "it")
    assert f"{file}: tensor {name} is stored as float32, but the config asks for int8" in text


def test_int8_without_a_config_that_says_so_is_named(tmp_path: Path) -> None:
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    shutil.copy(TINY_A / "hf" / "config.json", tmp_path / "int8")
    text = refusal(open_model(str(tmp_path / "int8")), tmp_path / "it")
    assert "is stored as int8, but the config asks for a floating-point type; use the config that belongs" in text


CONFIG = ModelConfig(
    vocab_size=11,
    width=8,
    mlp_width=12,
    num_heads=2,
    lru_width=10,
    block_types=("recurrent", "attention"),
    window=4,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_again(tmp_path: Path, dtype: str) -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype(dtype), CPU)
    # Biases and scales too: zeros would hide a mix-up.
    params = jax.tree.map(
        lambda p: np.asarray(p) + np.arange(p.size).reshape(p.shape).astype(p.dtype), random_params(abstract, 1)
    )
    save_file(checkpoint_tensors(params, CONFIG), tmp_path / "model.safetensors")
    with open_tensors([tmp_path / "model.safetensors"], CONFIG) as tensors:
        again = load_params(Checkpoint(CONFIG, tensors), abstract)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_tensors_have_the_names_and_shapes_of_the_layout() -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype("float32"))
    tensors = checkpoint_tensors(random_params(abstract, 1), CONFIG)
    wanted = {t.name: t.shape for t in tensor_specs(CONFIG)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
