"""Rules for fields that no schema names: some are refused, and some are ignored.

The names come from OpenAI, Anthropic, vLLM, SGLang, llama.cpp, TGI, Ollama and OpenRouter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors.validation_errors import ForeignName


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Rules for the fields that the schema of an object does not name.

    Attributes:
      names: Fields of other servers. A value with an effect is refused.
      ignores_all: Whether all fields are ignored, since their object is left out.
    """

    names: Mapping[str, ForeignName] = field(default_factory=dict)
    ignores_all: bool = False

    def has_effect(self, name: str, value: Any) -> bool:
        """Returns whether a field is unknown, or holds a refused value."""
        rule = self.names.get(name)
        return value is not None if rule is None else rule.has_effect(value)


def named(names: str, instead: str = "", neutral: tuple[Any, ...] = ()) -> dict[str, ForeignName]:
    """Returns the same rule for each of several names, which spaces separate."""
    return dict.fromkeys(names.split(), ForeignName(instead, neutral))


def ignored(names: str) -> dict[str, ForeignName]:
    """Returns the rule of names that have no effect here, which spaces separate."""
    return dict.fromkeys(names.split(), ForeignName(is_harmless=True))


_OFF: Final = (0, False)
_NONE: Final[tuple[Any, ...]] = ([], "")

_GENERATION_REFUSED: Final[Mapping[str, ForeignName]] = {
    **named(
        "dry_multiplier dynamic_temperature dynatemp_range early_stopping epsilon_cutoff eta_cutoff "
        "grammar_lazy mirostat mirostat_mode n_indent no_repeat_ngram_size penalty_alpha return_hidden_states "
        "smoothing_factor top_a use_beam_search xtc_probability",
        neutral=_OFF,
    ),
    **named("encoder_repetition_penalty guidance_scale length_penalty num_beams tfs tfs_z", neutral=(1,)),
    **named("adapter_id custom_logit_processor lora lora_path lora_request prompt_embeds samplers", neutral=_NONE),
    **named("echo return_tokens_as_token_ids", "use it in /v1/completions", _OFF),
    **named("grammar_triggers image_data images logits_processors plugins response_fields transforms", neutral=([],)),
    **named("guided_whitespace_pattern negative_prompt", neutral=("",)),
    **named("input previous_response_id", "use it in /v1/responses"),
    "background": ForeignName("use it in /v1/responses", _OFF),
    "instructions": ForeignName("use it in /v1/responses", ("",)),
    "token_ids": ForeignName("use it in /generate", ([],)),
    **named("max_completion_tokens max_length max_new_tokens max_output_tokens max_tokens_to_sample", "use max_tokens"),
    **named("min_length min_new_tokens", "use min_tokens", _OFF),
    **named("n_predict num_predict", "use max_tokens", (-1,)),
    **named("n_probs top_logprobs", "use logprobs", _OFF),
    **named("options sampling_params", "send its fields at the top of the body", ({},)),
    **named("output_config output_format", "use response_format", ({},)),
    "best_of": ForeignName("use it in /v1/completions", (1,)),
    "chat_template": ForeignName("put the template into the checkpoint's folder as chat_template.jinja", ("",)),
    "do_sample": ForeignName("set temperature: 0 for greedy decoding", (True,)),
    "documents": ForeignName("put them into a message", ([],)),
    "format": ForeignName("use response_format", ("",)),
    "function_call": ForeignName("use tool_choice", ("none", "auto")),
    "functions": ForeignName("use tools", ([],)),
    "guided_choice": ForeignName("use structured_outputs.choice", ([],)),
    "guided_grammar": ForeignName("use structured_outputs.grammar", ("",)),
    "guided_json": ForeignName("use structured_outputs.json", ("",)),
    "guided_regex": ForeignName("use structured_outputs.regex", ("",)),
    "messages": ForeignName("use it in /v1/chat/completions", ([],)),
    "min_keep": ForeignName(neutral=(0, 1)),
    "modalities": ForeignName(neutral=(["text"],)),
    "no_stop_trim": ForeignName("use include_stop_str_in_output", _OFF),
    "prompt": ForeignName("use it in /v1/completions", _NONE),
    "repeat_penalty": ForeignName("use repetition_penalty", (1,)),
    "return_tokens": ForeignName("use return_token_ids", _OFF),
    "session_params": ForeignName("use from_state", ({},)),
    "skip_special_tokens": ForeignName(neutral=(True,)),
    "state": ForeignName("use from_state"),
    "stop_regex": ForeignName("use stop", _NONE),
    "stop_sequences": ForeignName("use stop", ([],)),
    "structural_tag": ForeignName("use structured_outputs or tools", ("",)),
    "suffix": ForeignName("the model was not trained to fill in", ("",)),
    "system": ForeignName("send it as a message of the role system", _NONE),
    "t_max_predict_ms": ForeignName("use timeout", _OFF),
    "tool_choice": ForeignName("use it in /v1/chat/completions", ("none", "auto")),
    "tools": ForeignName("use them in /v1/chat/completions", ([],)),
    "top_n_sigma": ForeignName(neutral=(0, -1)),
    "typical": ForeignName("use typical_p", (1,)),
    "vllm_xargs": ForeignName(neutral=({},)),
    "web_search_options": ForeignName("the server calls no other servers"),
}
"""Fields of other servers' generations. A sampler is refused by the field that enables it."""

GENERATION_IGNORED: Final = ignored(
    "audio cache_prompt client_metadata "
    "dry_allowed_length dry_base dry_penalty_last_n dry_sequence_breakers dynatemp_exponent "
    "dynatemp_high dynatemp_low id_slot include_reasoning keep_alive kv_transfer_params media_io_kwargs metadata "
    "mirostat_eta mirostat_tau mm_processor_kwargs moderation n_discard n_keep parallel_tool_calls "
    "parse_tool_calls post_sampling_probs prediction prompt_cache_key prompt_cache_options prompt_cache_retention "
    "provider reasoning reasoning_effort reasoning_format repeat_last_n request_id safety_identifier "
    "separate_reasoning service_tier slot_id smoothing_curve spaces_between_special_tokens store stream_reasoning "
    "temperature_last thinking timings_per_token usage user verbosity xtc_threshold"
)
"""Fields without effect here, among them the parameters of samplers that are disabled."""

_CHAT_FIELDS: Final[Mapping[str, ForeignName]] = {
    **named("allowed_token_ids bad_words logprob_token_ids stop_token_ids", neutral=([],)),
    **named("chat_template_kwargs logit_bias structured_outputs", neutral=({},)),
    **named("continue_final_message include_stop_str_in_output logprobs return_token_ids", neutral=_OFF),
    **named("ebnf grammar json_schema regex", neutral=("",)),
    **named("frequency_penalty presence_penalty", neutral=(0,)),
    **named("n repetition_penalty typical_p", neutral=(1,)),
    "add_generation_prompt": ForeignName(neutral=(True,)),
    "prompt_logprobs": ForeignName(),
    "response_format": ForeignName(neutral=({"type": "text"},)),
    "stop": ForeignName(neutral=_NONE),
    "truncate_prompt_tokens": ForeignName(neutral=(-1,)),
    "truncation_side": ForeignName(neutral=("left",)),
}
"""Fields of chat completions that responses and messages lack."""


def with_hints(hints: Mapping[str, str]) -> Mapping[str, ForeignName]:
    """Returns the rules of an endpoint that has fewer fields than chat completions.

    Args:
      hints: What to do instead, for fields that the endpoint has under another name. Spaces separate several fields.
    """
    own = {name: hint for names, hint in hints.items() for name in names.split()}
    chat = {name: ForeignName("use it in /v1/chat/completions", rule.neutral) for name, rule in _CHAT_FIELDS.items()}
    rules = {**_GENERATION_REFUSED, **chat}
    return {name: ForeignName(own.get(name, rule.instead), rule.neutral) for name, rule in rules.items()}


LENGTH_FIELDS: Final = (
    "max_completion_tokens max_length max_new_tokens max_output_tokens max_tokens_to_sample n_predict num_predict"
)
"""Names of the maximum number of tokens."""

SCHEMA_FIELDS: Final = "format guided_json json_schema response_format structured_outputs"
"""Names of the schema of an output."""

NO_RULES: Final = FieldRules()
"""Rules of objects without fields of other servers: every name that the schema lacks is unknown."""

GENERATION_RULES: Final = FieldRules({**GENERATION_IGNORED, **_GENERATION_REFUSED})

LEFT_OUT: Final = FieldRules(ignores_all=True)
"""Rules of objects that are left out of the prompt as a whole."""

MARKS: Final = ignored("cache_control provider_specific_fields")
"""Fields that clients add to any part of a conversation."""

MESSAGE_RULES: Final = FieldRules(
    {
        **MARKS,
        **ignored("annotations name parsed reasoning reasoning_content reasoning_details thinking_blocks"),
        "audio": ForeignName("the model reads text"),
        "function_call": ForeignName("use tool_calls"),
        "images": ForeignName("the model reads text", ([],)),
    }
)
PART_RULES: Final = FieldRules(MARKS | ignored("annotations citations logprobs parsed prompt_cache_breakpoint"))
CALL_RULES: Final = FieldRules(MARKS | ignored("caller extra_content index parsed_arguments toolset_name"))
TOOL_RULES: Final = FieldRules(MARKS | ignored("allowed_callers defer_loading eager_input_streaming input_examples"))
