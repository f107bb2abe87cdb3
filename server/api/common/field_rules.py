"""Fields that no schema names: those that are refused, and those that change nothing.

Names are those of OpenAI, Anthropic, vLLM, SGLang, llama.cpp, TGI, Ollama and OpenRouter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that would change the response, and whose effect does not exist here.

    Attributes:
      neutral: Values that would change nothing; many clients send them.
      instead: What to do instead, as the end of a sentence; empty if there is nothing.
    """

    neutral: tuple[Any, ...] = ()
    instead: str = ""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Rules for the fields that the schema of a body does not name.

    Attributes:
      refused: Fields that are refused unless they hold a neutral value.
      ignored: Fields that change nothing here, whatever they hold.
    """

    refused: Mapping[str, Refusal]
    ignored: frozenset[str]


_OFF: Final = (0, False)
_NONE: Final[tuple[Any, ...]] = ([], "")

_SAMPLERS: Final[Mapping[str, Refusal]] = {
    "do_sample": Refusal((True,), "set temperature: 0 for greedy decoding"),
    "dry_multiplier": Refusal(_OFF),
    "dynamic_temperature": Refusal(_OFF),
    "dynatemp_range": Refusal(_OFF),
    "encoder_repetition_penalty": Refusal((1,)),
    "epsilon_cutoff": Refusal(_OFF),
    "eta_cutoff": Refusal(_OFF),
    "guidance_scale": Refusal((1,)),
    "min_keep": Refusal((0, 1)),
    "mirostat": Refusal(_OFF),
    "mirostat_mode": Refusal(_OFF),
    "no_repeat_ngram_size": Refusal(_OFF),
    "penalty_alpha": Refusal(_OFF),
    "repeat_penalty": Refusal((1,), "use repetition_penalty"),
    "samplers": Refusal(_NONE),
    "smoothing_factor": Refusal(_OFF),
    "tfs": Refusal((1,)),
    "tfs_z": Refusal((1,)),
    "top_a": Refusal(_OFF),
    "top_n_sigma": Refusal((0, -1)),
    "typical": Refusal((1,), "use typical_p"),
    "xtc_probability": Refusal(_OFF),
}
"""Samplers of other servers, by the field that enables each."""

_SAMPLER_DETAILS: Final = frozenset(
    {
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_high",
        "dynatemp_low",
        "mirostat_eta",
        "mirostat_tau",
        "repeat_last_n",
        "smoothing_curve",
        "temperature_last",
        "xtc_threshold",
    }
)
"""Parameters of those samplers, which mean nothing while the sampler is disabled."""

_GENERATION_REFUSED: Final[Mapping[str, Refusal]] = {
    **_SAMPLERS,
    "adapter_id": Refusal(_NONE),
    "best_of": Refusal((1,), "use it in /v1/completions"),
    "chat_template": Refusal(("",), "put the template beside the checkpoint as chat_template.jinja"),
    "custom_logit_processor": Refusal(_NONE),
    "documents": Refusal(([],), "put them into a message"),
    "early_stopping": Refusal(_OFF),
    "echo": Refusal(_OFF, "use it in /v1/completions"),
    "format": Refusal(("",), "use response_format"),
    "function_call": Refusal(("none", "auto"), "use tool_choice"),
    "functions": Refusal(([],), "use tools"),
    "grammar_lazy": Refusal(_OFF),
    "grammar_triggers": Refusal(([],)),
    "guided_whitespace_pattern": Refusal(("",)),
    "image_data": Refusal(([],)),
    "images": Refusal(([],)),
    "length_penalty": Refusal((1,)),
    "logits_processors": Refusal(([],)),
    "lora": Refusal(_NONE),
    "lora_path": Refusal(_NONE),
    "lora_request": Refusal(_NONE),
    "max_length": Refusal((), "use max_tokens"),
    "max_new_tokens": Refusal((), "use max_tokens"),
    "min_length": Refusal(_OFF, "use min_tokens"),
    "min_new_tokens": Refusal(_OFF, "use min_tokens"),
    "modalities": Refusal((["text"],)),
    "n_indent": Refusal(_OFF),
    "n_predict": Refusal((-1,), "use max_tokens"),
    "n_probs": Refusal(_OFF, "use logprobs"),
    "negative_prompt": Refusal(("",)),
    "no_stop_trim": Refusal(_OFF, "use include_stop_str_in_output"),
    "num_beams": Refusal((1,)),
    "num_predict": Refusal((-1,), "use max_tokens"),
    "options": Refusal(({},), "send its fields at the top of the body"),
    "plugins": Refusal(([],)),
    "prompt_embeds": Refusal(_NONE),
    "response_fields": Refusal(([],)),
    "return_hidden_states": Refusal(_OFF),
    "return_tokens": Refusal(_OFF, "use return_token_ids"),
    "return_tokens_as_token_ids": Refusal(_OFF, "use return_token_ids"),
    "sampling_params": Refusal(({},), "send its fields at the top of the body"),
    "session_params": Refusal(({},), "use from_state"),
    "skip_special_tokens": Refusal((True,)),
    "stop_regex": Refusal(_NONE, "use stop"),
    "structural_tag": Refusal(("",), "use tools or structured_outputs"),
    "suffix": Refusal(("",), "the model was not trained to fill in"),
    "t_max_predict_ms": Refusal(_OFF, "use timeout"),
    "tool_choice": Refusal(("none", "auto"), "use it in /v1/chat/completions"),
    "tools": Refusal(([],), "use them in /v1/chat/completions"),
    "transforms": Refusal(([],)),
    "use_beam_search": Refusal(_OFF),
    "vllm_xargs": Refusal(({},)),
    "web_search_options": Refusal((), "the server calls nobody"),
}

_GENERATION_IGNORED: Final = _SAMPLER_DETAILS | {
    "audio",
    "cache_prompt",
    "id_slot",
    "include_reasoning",
    "keep_alive",
    "kv_transfer_params",
    "media_io_kwargs",
    "metadata",
    "mm_processor_kwargs",
    "moderation",
    "n_discard",
    "n_keep",
    "parallel_tool_calls",
    "parse_tool_calls",
    "post_sampling_probs",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "provider",
    "reasoning",
    "reasoning_effort",
    "reasoning_format",
    "request_id",
    "safety_identifier",
    "separate_reasoning",
    "service_tier",
    "slot_id",
    "spaces_between_special_tokens",
    "store",
    "stream_reasoning",
    "thinking",
    "timings_per_token",
    "usage",
    "user",
    "verbosity",
}

_RESPONSES_REFUSED: Final[Mapping[str, Refusal]] = {
    "context_management": Refusal(([],)),
    "conversation": Refusal((), "use previous_response_id"),
    "prompt": Refusal((), "send the text as instructions and input"),
}

_RESPONSES_IGNORED: Final = frozenset(
    {
        "max_tool_calls",
        "moderation",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "service_tier",
    }
)

_MESSAGES_REFUSED: Final[Mapping[str, Refusal]] = {
    "container": Refusal(),
    "mcp_servers": Refusal(([],), "the server calls nobody"),
}

_MESSAGES_IGNORED: Final = frozenset(
    {"context_management", "inference_geo", "metadata", "service_tier", "speed", "thinking"}
)

NO_RULES: Final = FieldRules({}, frozenset())
"""Rules of bodies without fields of other servers: every name that the schema lacks is unknown."""

GENERATION_RULES: Final = FieldRules(_GENERATION_REFUSED, _GENERATION_IGNORED)
RESPONSES_RULES: Final = FieldRules({**_SAMPLERS, **_RESPONSES_REFUSED}, _SAMPLER_DETAILS | _RESPONSES_IGNORED)
MESSAGES_RULES: Final = FieldRules({**_SAMPLERS, **_MESSAGES_REFUSED}, _SAMPLER_DETAILS | _MESSAGES_IGNORED)
