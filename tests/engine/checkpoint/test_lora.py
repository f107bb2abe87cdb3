"""Adapters are merged as PEFT merges them, in float32, before rounding; what is more than a sum is refused by name."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from roost.engine.checkpoint.conversion import convert
from roost.engine.checkpoint.format import Tensors
from roost.engine.checkpoint.lora import open_adapter
from roost.engine.checkpoint.source import ModelSource, model_identity, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint
from roost.engine.types.errors import CheckpointError
from roost.kernels.matrices.int8 import quantize_on_host
from safetensors.numpy import load_file, save_file
from small_models import TINY_A

HF = str(TINY_A / "hf")
UP, XY, Q = (
    f"model.layers.{layer}.{name}"
    for layer, name in ((0, "mlp_block.up_proj"), (1, "temporal_block.linear_x"), (2, "temporal_block.q_proj"))
)


def factors(source: ModelSource, ranks: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random factors of an adapter, with PEFT's names."""
    rng = np.random.default_rng(seed)
    found = {}
    with open_tensors(source.weights, source.config) as tensors:
        for module, rank in ranks.items():
            outputs, inputs = tensors[f"{module}.weight"].shape
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                found[f"base_model.model.{module}.lora_{side}.weight"] = rng.normal(size=shape).astype(np.float32)
    return found


def save(folder: Path, tensors: Mapping[str, np.ndarray], **fields: Any) -> Path:
    """Writes an adapter as PEFT does."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "google/hf",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "qalora_group_size": 16,
        "r": 4,
        "target_modules": ["up_proj", "linear_x", "q_proj"],
        "use_dora": False,
        **fields,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def with_adapters(*adapters: Path, scale: float = 1.0) -> ModelSource:
    return open_model(HF).with_adapters([open_adapter(path.name, path, scale) for path in adapters])


def tensors_of(source: ModelSource) -> dict[str, np.ndarray]:
    with open_tensors(source.weights, source.config, source.adapters) as tensors:
        return {name: tensor.whole() for name, tensor in tensors.items()}


def open_merged(source: ModelSource) -> AbstractContextManager[Tensors]:
    return open_tensors(source.weights, source.config, source.adapters)


def product(tensors: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return b.astype(np.float64) @ a.astype(np.float64)


def test_an_adapter_by_peft_is_merged_as_peft_merges_it(caplog: pytest.LogCaptureFixture) -> None:
    """See golden/lora/README.md."""
    golden = TINY_A.parent / "lora"
    found, before = tensors_of(with_adapters(golden)), tensors_of(open_model(HF))
    expected = load_file(golden / "merged_rows.safetensors")
    changed = {name for name, tensor in found.items() if not np.array_equal(tensor, before[name])}
    assert changed >= expected.keys()
    assert len(changed) == 4
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name][:16], rows, rtol=1e-6, atol=1e-7)
    assert caplog.messages == []


def test_matrices_become_their_sums_and_nothing_else_changes(tmp_path: Path) -> None:
    source = open_model(HF)
    lora = factors(source, dict.fromkeys((UP, XY, Q), 4))
    before, after = tensors_of(source), tensors_of(with_adapters(save(tmp_path / "a", lora)))
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module in (UP, XY, Q):
            expected = tensor.astype(np.float64) + 8 / 4 * product(lora, module)
            assert after[name].dtype == np.float32
            np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(after[name], tensor)


def test_adapters_are_added_in_order_with_their_scales(tmp_path: Path) -> None:
    source = open_model(HF)
    one, two = (factors(source, {UP: 4}, seed) for seed in (1, 2))
    both = with_adapters(save(tmp_path / "one", one), save(tmp_path / "two", two), scale=0.5)
    expected = tensors_of(source)[f"{UP}.weight"].astype(np.float64) + product(one, UP) + product(two, UP)
    np.testing.assert_allclose(tensors_of(both)[f"{UP}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_ranks_and_scales_follow_patterns(tmp_path: Path) -> None:
    lora = factors(open_model(HF), {UP: 2, XY: 9, Q: 4})
    adapter = save(
        tmp_path / "a",
        lora,
        use_rslora=True,
        rank_pattern={r"layers\.0\.mlp_block\.up_proj": 2, "linear_x": 9},
        alpha_pattern={"q_proj": 3, "roj": 99},
    )
    before, after = tensors_of(open_model(HF)), tensors_of(with_adapters(adapter))
    for module, scale in ((UP, 8 / 2**0.5), (XY, 8 / 3), (Q, 3 / 2)):
        change = after[f"{module}.weight"].astype(np.float64) - before[f"{module}.weight"].astype(np.float64)
        np.testing.assert_allclose(change, scale * product(lora, module), rtol=1e-4, atol=1e-4)


def test_what_is_converted_is_what_is_loaded(tmp_path: Path) -> None:
    """A sum is rounded once: to the checkpoint's dtype, or to int8."""
    merged = with_adapters(save(tmp_path / "a", factors(open_model(HF), {UP: 4})))
    convert(merged, tmp_path / "merged")
    convert(merged, tmp_path / "int8", quantize="int8")
    wide, kept = tensors_of(merged)[f"{UP}.weight"], tensors_of(open_model(str(tmp_path / "merged")))
    assert {tensor.dtype for tensor in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(kept[f"{UP}.weight"], wide.astype(ml_dtypes.bfloat16))
    int8 = tensors_of(open_model(str(tmp_path / "int8")))
    np.testing.assert_array_equal(int8[f"{UP}.weight"], quantize_on_host(wide).values)


def test_a_merged_adapter_makes_another_model(tmp_path: Path) -> None:
    one, two = (save(tmp_path / str(seed), factors(open_model(HF), {UP: 4}, seed)) for seed in (1, 2))
    sources = [open_model(HF), with_adapters(one), with_adapters(two), with_adapters(one, scale=0.5)]
    sources += [with_adapters(one, two), with_adapters(two, one)]
    assert len({model_identity(source, "bfloat16", None, 0) for source in sources}) == len(sources)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported"),
        ({"use_dora": True}, "use_dora is not supported; merge the adapter with PEFT"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is not supported"),
        ({"target_parameters": ["rg_lru.input_gate_weight"]}, "target_parameters is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
        ({"some_new_field": 1}, "some_new_field is not supported"),
        *(
            ({"init_lora_weights": init}, f"init_lora_weights '{init}' changes the base model")
            for init in ("pissa", "pissa_niter_4", "olora", "loftq", "corda")
        ),
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object with regular expressions"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern must be an object with regular expressions"),
        ({"r": 5}, r"lora_A.weight has shape \[4, 64\], but rank 5 and this model ask for \[5, 64\]"),
    ],
)
def test_configs_that_are_no_plain_sum_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    adapter = save(tmp_path / "a", factors(open_model(HF), {UP: 4}), **fields)
    with pytest.raises(CheckpointError, match=message), open_merged(with_adapters(adapter)):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"base_model.model.{UP}.lora_A.weight"), f"{UP} has no lora_A"),
        (
            lambda t: t.update({"lora_A.weight": np.ones((4, 4), np.float32)}),
            "tensor lora_A.weight is neither lora_A nor lora_B",
        ),
        (
            lambda t: t.update(
                {f"base_model.model.lm_head.lora_{side}.weight": np.ones((4, 4), np.float32) for side in "AB"}
            ),
            "lm_head is no matrix of this model that an adapter can change",
        ),
        (
            lambda t: t.update({f"base_model.model.{UP}.lora_B.weight": np.ones((5, 4), np.float32)}),
            r"lora_B.weight has shape \[5, 4\], but rank 4 and this model ask for \[192, 4\]; is the",
        ),
        (
            lambda t: t.update({f"base_model.model.{UP}.lora_B.weight": np.ones((192, 4), np.int8)}),
            "is stored in int8, not as numbers",
        ),
    ],
)
def test_factors_that_fit_no_matrix_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    lora = factors(open_model(HF), {UP: 4})
    change(lora)
    with pytest.raises(CheckpointError, match=message), open_merged(with_adapters(save(tmp_path / "a", lora))):
        pass


def test_nan_in_a_factor_is_refused(tmp_path: Path) -> None:
    lora = factors(open_model(HF), {UP: 4})
    lora[f"base_model.model.{UP}.lora_A.weight"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: tensor .*lora_A.weight holds NaN"):
        tensors_of(with_adapters(save(tmp_path / "a", lora)))


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config.json: cannot be read \(No such file or directory\)"):
        open_adapter("a", tmp_path)
    adapter = save(tmp_path / "a", factors(open_model(HF), {UP: 4}))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: is missing"):
        open_adapter("a", adapter)


def test_a_matrix_that_the_checkpoint_lacks_is_left_to_the_loader(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(open_model(HF), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in weights.items() if name != f"{UP}.weight"}, folder / "model.safetensors")
    adapter = open_adapter("a", save(tmp_path / "a", factors(open_model(HF), {UP: 4})))
    source = open_model(str(folder)).with_adapters([adapter])
    with open_merged(source) as tensors, pytest.raises(CheckpointError, match=rf"tensor {UP}.weight .* is missing"):
        Checkpoint(source.config, tensors)


def test_models_that_cannot_take_an_adapter_say_so(tmp_path: Path) -> None:
    adapter = open_adapter("a", save(tmp_path / "a", factors(open_model(HF), {UP: 4})))
    with pytest.raises(CheckpointError, match="random weights take no adapter"):
        open_model("random:2b").with_adapters([adapter])
    convert(open_model(HF), tmp_path / "int8", quantize="int8")
    with pytest.raises(CheckpointError, match="is stored in int8; take the original weights for --lora"):
        tensors_of(open_model(str(tmp_path / "int8")).with_adapters([adapter]))
