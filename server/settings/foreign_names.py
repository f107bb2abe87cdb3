"""Names of vLLM, llama.cpp and Ollama: settings on their command lines and in vLLM's Python API, and commands."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors.validation_errors import ForeignName
from .sources import flag_name

_NO_LIMIT: Final = "a state has the same size at any length: {max_prompt_tokens} and {max_tokens_limit} set limits"
_MESH: Final = "use {mesh}, such as data=1,model=2"
_TEMPLATE: Final = "put the template into the checkpoint's folder as chat_template.jinja"
_ALWAYS: Final = "leave it out: it is always so"
_NO_ADAPTERS: Final = "merge the adapter into the weights with {lora}"
_REVISION: Final = "append the revision to {model}: owner/name@revision"


VLLM_NAMES: Final[Mapping[str, ForeignName]] = {
    "allowed_origins": ForeignName("use {allow_origin}"),
    "block_size": ForeignName("leave it out: states have no blocks", is_harmless=True),
    "chat_template": ForeignName(_TEMPLATE),
    "cpu_offload_gb": ForeignName("leave it out: weights stay on the device", (0,)),
    "data_parallel_size": ForeignName("use {mesh}, such as data=2,model=1", (1,)),
    "disable_custom_all_reduce": ForeignName("leave it out", is_harmless=True),
    "disable_log_requests": ForeignName("use {access_log}", is_harmless=True),
    "disable_log_stats": ForeignName("leave it out: statistics are at /metrics", is_harmless=True),
    "download_dir": ForeignName("set the environment variable HF_HOME"),
    "enable_auto_tool_choice": ForeignName(_ALWAYS, (True,)),
    "enable_chunked_prefill": ForeignName("leave it out: {prefill_chunk} is the size of a chunk", (True,)),
    "enable_lora": ForeignName(_NO_ADAPTERS, (False,)),
    "enable_prefix_caching": ForeignName("use {state_cache_gib}, where 0 turns the prefix cache off", (True,)),
    "enforce_eager": ForeignName("leave it out: every program is compiled", is_harmless=True),
    "gpu_memory_utilization": ForeignName(
        "use {slots}, or the variable XLA_PYTHON_CLIENT_MEM_FRACTION", is_harmless=True
    ),
    "kv_cache_dtype": ForeignName("use {kv_dtype}", ("auto",)),
    "load_format": ForeignName("leave it out: the format is found", ("auto", "safetensors")),
    "lora_modules": ForeignName(_NO_ADAPTERS),
    "max_logprobs": ForeignName("leave it out: 20 is the limit", (20,)),
    "max_lora_rank": ForeignName(_NO_ADAPTERS),
    "max_loras": ForeignName(_NO_ADAPTERS),
    "max_model_len": ForeignName(_NO_LIMIT),
    "max_num_batched_tokens": ForeignName("use {prefill_chunk}"),
    "max_num_seqs": ForeignName("use {slots}"),
    "no_enable_prefix_caching": ForeignName("use {state_cache_gib} with 0"),
    "pipeline_parallel_size": ForeignName(_MESH, (1,)),
    "quantization": ForeignName("use {quantize}"),
    "reasoning_parser": ForeignName("leave it out: the model has no reasoning part"),
    "revision": ForeignName(_REVISION),
    "runner": ForeignName("leave it out: the server generates", ("auto", "generate")),
    "skip_tokenizer_init": ForeignName("leave it out: the tokenizer is needed", (False,)),
    "swap_space": ForeignName("use {state_cache_gib}", is_harmless=True),
    "task": ForeignName("leave it out: the server generates", ("auto", "generate")),
    "tensor_parallel_size": ForeignName(_MESH, (1,)),
    "tokenizer": ForeignName("leave it out: the tokenizer is the checkpoint's"),
    "tokenizer_mode": ForeignName("leave it out", ("auto", "slow")),
    "tokenizer_revision": ForeignName(_REVISION),
    "tool_call_parser": ForeignName("leave it out: tools always work"),
    "trust_remote_code": ForeignName("leave it out: no code of a checkpoint is run", (False,)),
    "uvicorn_log_level": ForeignName("use {log_level}"),
}
"""vLLM's names: its flags, with underscores. Alternatives have names of settings in braces."""

LLAMA_CPP_NAMES: Final[Mapping[str, ForeignName]] = {
    "alias": ForeignName("use {served_model_name}"),
    "batch_size": ForeignName("use {prefill_chunk}"),
    "cache_type_k": ForeignName("use {kv_dtype}"),
    "cache_type_v": ForeignName("use {kv_dtype}"),
    "chat_template_file": ForeignName(_TEMPLATE),
    "cont_batching": ForeignName(_ALWAYS),
    "ctx_size": ForeignName(_NO_LIMIT),
    "flash_attn": ForeignName("leave it out: the attention window always has its own kernels"),
    "gpu_layers": ForeignName("leave it out: the whole model runs on the accelerator"),
    "hf_repo": ForeignName("give {model} as owner/name"),
    "jinja": ForeignName(_ALWAYS),
    "metrics": ForeignName("leave it out: /metrics is always there"),
    "mlock": ForeignName("leave it out: weights are copied into memory"),
    "model": ForeignName("give {model} as the first argument, without a flag"),
    "model_draft": ForeignName("use {speculative_config}: drafts come from a request's own text, not from a model"),
    "n_gpu_layers": ForeignName("leave it out: the whole model runs on the accelerator"),
    "n_predict": ForeignName("use {max_tokens_limit}"),
    "no_mmap": ForeignName("leave it out: weights are copied into memory"),
    "parallel": ForeignName("use {slots}"),
    "slot_save_path": ForeignName("leave it out: clients save states over HTTP"),
    "ssl_cert_file": ForeignName("use {ssl_certfile}"),
    "ssl_key_file": ForeignName("use {ssl_keyfile}"),
    "threads": ForeignName("leave it out: all cores are used; taskset limits them"),
    "threads_http": ForeignName("leave it out: one thread serves all connections"),
    "timeout": ForeignName("use {request_timeout}"),
    "ubatch_size": ForeignName("use {prefill_chunk}"),
    "verbose": ForeignName("use {log_level}"),
}
"""llama.cpp's flags, with underscores."""

SHORT_FLAGS: Final[Mapping[str, str]] = {
    "-a": "alias",
    "-b": "batch_size",
    "-c": "ctx_size",
    "-cb": "cont_batching",
    "-ctk": "cache_type_k",
    "-ctv": "cache_type_v",
    "-dp": "data_parallel_size",
    "-fa": "flash_attn",
    "-hf": "hf_repo",
    "-m": "model",
    "-md": "model_draft",
    "-n": "n_predict",
    "-ngl": "n_gpu_layers",
    "-np": "parallel",
    "-pp": "pipeline_parallel_size",
    "-q": "quantization",
    "-t": "threads",
    "-to": "timeout",
    "-tp": "tensor_parallel_size",
    "-ub": "ubatch_size",
    "-v": "verbose",
}
"""Short flags of both, and their long names."""

FOREIGN_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "complete": ("vLLM", "use roost generate --raw"),
    "list": ("Ollama", "GET /v1/models of a server lists what it serves"),
    "ps": ("Ollama", "GET /health and /metrics of a server say what it does"),
    "pull": ("Ollama", "leave it out: the first serve, chat or generate of a model downloads it"),
    "rm": ("Ollama", "delete the model's folder in Hugging Face's cache"),
    "run": ("Ollama", "use roost chat MODEL in the terminal, or roost serve MODEL for a server"),
    "run-batch": ("vLLM", "use roost batch"),
    "show": ("Ollama", "use roost plan MODEL"),
    "stop": ("Ollama", "end roost serve with Ctrl-C or SIGTERM"),
}
"""Commands of other servers: whose they are, and what to use instead."""


def foreign_command_hint(command: str) -> str | None:
    """Returns what to use instead of a command of Ollama or vLLM; None for any other word."""
    if command not in FOREIGN_COMMANDS:
        return None
    owner, instead = FOREIGN_COMMANDS[command]
    return f"{command} is {owner}'s command: {instead}"


def foreign_flag_hint(flag: str) -> str | None:
    """Returns what to use instead of a flag of vLLM or llama.cpp; None for any other flag."""
    return _hint(flag, SHORT_FLAGS.get(flag, flag.removeprefix("--").replace("-", "_")), flag_name)


def foreign_name_hint(name: str) -> str | None:
    """Returns what to use instead of a keyword of vLLM's `LLM`; None for any other name."""
    return _hint(name, name, str) if name in VLLM_NAMES else None


def is_neutral(name: str, value: Any) -> bool:
    """Returns whether a keyword of vLLM's `LLM` has a value that has no effect here. None is like omitting it."""
    return name in VLLM_NAMES and not VLLM_NAMES[name].has_effect(value)


def _hint(written: str, name: str, label: Callable[[str], str]) -> str | None:
    """Returns the alternative to a name, with each setting named by `label`."""
    owner, found = ("vLLM", VLLM_NAMES.get(name)) if name in VLLM_NAMES else ("llama.cpp", LLAMA_CPP_NAMES.get(name))
    if found is None:
        return None
    noun = "flag" if written.startswith("-") else "name"
    instead = re.sub(r"\{(\w+)\}", lambda setting: label(setting[1]), found.instead)
    return f"{written} is {owner}'s {noun}: {instead}"
