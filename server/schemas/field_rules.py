"""Rules for fields that no schema names: some are refused, and some are ignored.

The names come from OpenAI, Anthropic, vLLM, SGLang, llama.cpp, TGI, Ollama and OpenRouter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that would change the response, but whose effect is not supported.

    Attributes:
      neutral: Values without effect, which many clients send.
      instead: Alternative for the client, as the end of a sentence; empty if there is none. A field that it names and
        the body lacks is one of chat completions.
    """

    neutral: tuple[Any, ...] = ()
    instead: str = ""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Rules for the fields that the schema of an object does not name.

    Attributes:
      refused: Fields that are refused unless they hold a neutral value.
      ignored: Fields that have no effect here with any value.
      ignores_all: Whether all fields are ignored, since their object is left out.
      values: Known entries of fields that are lists of names. Other entries are unknown, as fields are.
    """

    refused: Mapping[str, Refusal] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    ignores_all: bool = False
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def has_effect(self, name: str, value: Any) -> bool:
        """Returns whether a field is unknown, or holds a refused value."""
        if value is None or name in self.ignored:
            return False
        refusal = self.refused.get(name)
        return refusal is None or value not in refusal.neutral


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
"""Parameters of the samplers above, which have no effect while the sampler is disabled."""

_GENERATION_REFUSED: Final[Mapping[str, Refusal]] = {
    **_SAMPLERS,
    "adapter_id": Refusal(_NONE),
    "background": Refusal(_OFF),
    "best_of": Refusal((1,), "use it in /v1/completions"),
    "chat_template": Refusal(("",), "put the template into the checkpoint's folder as chat_template.jinja"),
    "custom_logit_processor": Refusal(_NONE),
    "documents": Refusal(([],), "put them into a message"),
    "early_stopping": Refusal(_OFF),
    "echo": Refusal(_OFF, "use it in /v1/completions"),
    "format": Refusal(("",), "use response_format"),
    "function_call": Refusal(("none", "auto"), "use tool_choice"),
    "functions": Refusal(([],), "use tools"),
    "grammar_lazy": Refusal(_OFF),
    "grammar_triggers": Refusal(([],)),
    "guided_choice": Refusal(([],), "use structured_outputs.choice"),
    "guided_grammar": Refusal(("",), "use structured_outputs.grammar"),
    "guided_json": Refusal(("",), "use structured_outputs.json"),
    "guided_regex": Refusal(("",), "use structured_outputs.regex"),
    "guided_whitespace_pattern": Refusal(("",)),
    "image_data": Refusal(([],)),
    "images": Refusal(([],)),
    "input": Refusal(),
    "instructions": Refusal(("",)),
    "length_penalty": Refusal((1,)),
    "logits_processors": Refusal(([],)),
    "lora": Refusal(_NONE),
    "lora_path": Refusal(_NONE),
    "lora_request": Refusal(_NONE),
    "max_completion_tokens": Refusal((), "use max_tokens"),
    "max_length": Refusal((), "use max_tokens"),
    "max_new_tokens": Refusal((), "use max_tokens"),
    "max_output_tokens": Refusal((), "use max_tokens"),
    "max_tokens_to_sample": Refusal((), "use max_tokens"),
    "messages": Refusal(([],), "use it in /v1/chat/completions"),
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
    "output_config": Refusal(({},), "use response_format"),
    "output_format": Refusal(({},), "use response_format"),
    "plugins": Refusal(([],)),
    "previous_response_id": Refusal(),
    "prompt": Refusal(_NONE, "use it in /v1/completions"),
    "prompt_embeds": Refusal(_NONE),
    "response_fields": Refusal(([],)),
    "return_hidden_states": Refusal(_OFF),
    "return_tokens": Refusal(_OFF, "use return_token_ids"),
    "return_tokens_as_token_ids": Refusal(_OFF, "use it in /v1/completions"),
    "sampling_params": Refusal(({},), "send its fields at the top of the body"),
    "session_params": Refusal(({},), "use from_state"),
    "skip_special_tokens": Refusal((True,)),
    "state": Refusal((), "use from_state"),
    "stop_regex": Refusal(_NONE, "use stop"),
    "stop_sequences": Refusal(([],), "use stop"),
    "structural_tag": Refusal(("",), "use structured_outputs or tools"),
    "suffix": Refusal(("",), "the model was not trained to fill in"),
    "system": Refusal(_NONE, "send it as a message of the role system"),
    "t_max_predict_ms": Refusal(_OFF, "use timeout"),
    "token_ids": Refusal(([],)),
    "tool_choice": Refusal(("none", "auto"), "use it in /v1/chat/completions"),
    "tools": Refusal(([],), "use them in /v1/chat/completions"),
    "top_logprobs": Refusal(_OFF, "use logprobs"),
    "transforms": Refusal(([],)),
    "use_beam_search": Refusal(_OFF),
    "vllm_xargs": Refusal(({},)),
    "web_search_options": Refusal((), "the server calls no other servers"),
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

_CHAT_FIELDS: Final[Mapping[str, Refusal]] = {
    "add_generation_prompt": Refusal((True,)),
    "allowed_token_ids": Refusal(([],)),
    "bad_words": Refusal(([],)),
    "chat_template_kwargs": Refusal(({},)),
    "continue_final_message": Refusal(_OFF),
    "ebnf": Refusal(("",)),
    "frequency_penalty": Refusal((0,)),
    "grammar": Refusal(("",)),
    "include_stop_str_in_output": Refusal(_OFF),
    "json_schema": Refusal(("",)),
    "logit_bias": Refusal(({},)),
    "logprob_token_ids": Refusal(([],)),
    "logprobs": Refusal(_OFF),
    "n": Refusal((1,)),
    "presence_penalty": Refusal((0,)),
    "prompt_logprobs": Refusal(()),
    "regex": Refusal(("",)),
    "repetition_penalty": Refusal((1,)),
    "response_format": Refusal(({"type": "text"},)),
    "return_timings": Refusal(_OFF),
    "return_token_ids": Refusal(_OFF),
    "stop": Refusal(_NONE),
    "stop_token_ids": Refusal(([],)),
    "structured_outputs": Refusal(({},)),
    "truncate_prompt_tokens": Refusal((-1,)),
    "truncation_side": Refusal(("left",)),
    "typical_p": Refusal((1,)),
}
"""Fields of chat completions that responses and messages lack."""


def with_hints(hints: Mapping[str, str]) -> Mapping[str, Refusal]:
    """Returns the rules of an endpoint that has fewer fields than chat completions.

    Args:
      hints: What to do instead, for fields that the endpoint has under another name.
    """
    chat = {name: Refusal(rule.neutral, "use it in /v1/chat/completions") for name, rule in _CHAT_FIELDS.items()}
    rules = {**_GENERATION_REFUSED, **chat}
    return {name: Refusal(rule.neutral, hints.get(name, rule.instead)) for name, rule in rules.items()}


LENGTH_FIELDS: Final = (
    "max_completion_tokens",
    "max_length",
    "max_new_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "n_predict",
    "num_predict",
)
"""Names of the maximum number of tokens."""

SCHEMA_FIELDS: Final = ("format", "guided_json", "json_schema", "response_format", "structured_outputs")
"""Names of the schema of an output."""

NO_RULES: Final = FieldRules()
"""Rules of objects without fields of other servers: every name that the schema lacks is unknown."""

GENERATION_RULES: Final = FieldRules(_GENERATION_REFUSED, _GENERATION_IGNORED)

LEFT_OUT: Final = FieldRules(ignores_all=True)
"""Rules of objects that are left out of the prompt as a whole."""

MARKS: Final = frozenset({"cache_control", "provider_specific_fields"})
"""Fields that clients add to any part of a conversation."""

MESSAGE_RULES: Final = FieldRules(
    {
        "audio": Refusal((), "the model reads text"),
        "function_call": Refusal((), "use tool_calls"),
        "images": Refusal(([],), "the model reads text"),
    },
    MARKS | {"annotations", "name", "parsed", "reasoning", "reasoning_content", "reasoning_details", "thinking_blocks"},
)
PART_RULES: Final = FieldRules(
    ignored=MARKS | {"annotations", "citations", "logprobs", "parsed", "prompt_cache_breakpoint"}
)
CALL_RULES: Final = FieldRules(ignored=MARKS | {"caller", "extra_content", "index", "parsed_arguments", "toolset_name"})
TOOL_RULES: Final = FieldRules(ignored=MARKS | {"allowed_callers", "defer_loading", "eager_input_streaming"})
