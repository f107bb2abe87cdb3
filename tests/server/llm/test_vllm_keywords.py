"""vLLM's keywords of a model: those that change nothing here are taken, and others name ours."""

from dataclasses import asdict
from typing import Any

import pytest
from roost import ConfigError, EngineArgs
from roost.server.llm.local_model import load_model_settings

NEUTRAL: dict[str, Any] = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_prefix_caching": True,
    "enable_chunked_prefill": True,
    "trust_remote_code": False,
    "enforce_eager": True,
    "disable_log_stats": True,
    "disable_custom_all_reduce": True,
    "gpu_memory_utilization": 0.4,
    "swap_space": 4,
    "block_size": 16,
    "kv_cache_dtype": "auto",
    "load_format": "auto",
    "tokenizer_mode": "auto",
    "quantization": None,
    "max_model_len": None,
    "tokenizer": None,
    "revision": None,
    "speculative_config": None,
    "enable_lora": False,
    "task": "generate",
    "runner": "generate",
}


def test_keywords_that_change_nothing_are_taken() -> None:
    plain = load_model_settings("demo", {"slots": 2}, {})
    assert load_model_settings("demo", {"slots": 2, **NEUTRAL}, {}) == plain
    assert asdict(EngineArgs("demo", slots=2, **NEUTRAL)) == asdict(EngineArgs("demo", slots=2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_num_seqs", 4, "max_num_seqs is vLLM's name: use slots"),
        ("tensor_parallel_size", 2, "tensor_parallel_size is vLLM's name: use mesh, such as data=1,model=2"),
        ("enable_prefix_caching", False, "enable_prefix_caching is vLLM's name: use state_cache_gib, where 0 turns "),
        ("trust_remote_code", True, "trust_remote_code is vLLM's name: leave it out: no code of a checkpoint is run"),
        ("enable_lora", True, "enable_lora is vLLM's name: merge the adapter into the weights with lora"),
        ("ctx_size", 4, "there is no setting 'ctx_size'"),
        ("slot", 4, "there is no setting 'slot'; did you mean slots?"),
    ],
)
def test_other_values_and_names_say_what_to_use(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_settings("demo", {name: value}, {})
    assert str(caught.value).startswith(message)


def test_engine_args_are_settings_of_an_llm() -> None:
    args = EngineArgs(
        model="demo",
        max_num_seqs=4,
        max_num_batched_tokens=128,
        tensor_parallel_size=2,
        quantization="int8",
        kv_cache_dtype="int8",
        max_model_len=512,
        seed=7,
        gpu_memory_utilization=0.8,
    )
    given = {name: value for name, value in asdict(args).items() if value is not None}
    assert given == {
        "model": "demo",
        "slots": 4,
        "prefill_chunk": 128,
        "mesh": "data=1,model=2",
        "quantize": "int8",
        "kv_dtype": "int8",
        "max_prompt_tokens": 512,
        "max_tokens_limit": 512,
        "seed": 7,
    }
    settings = load_model_settings(given.pop("model"), given, {})
    assert (settings.slots, settings.mesh, settings.quantize) == (4, "data=1,model=2", "int8")
    with pytest.raises(ConfigError, match="enable_lora is vLLM's name"):
        EngineArgs("demo", enable_lora=True)
    with pytest.raises(ConfigError, match="dtype must be "):
        load_model_settings("demo", {"dtype": "half"}, {})
