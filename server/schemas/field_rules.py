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


def _names(text: str) -> frozenset[str]:
    """Returns names that spaces separate."""
    return frozenset(text.split())


def _each(names: str, rule: Refusal) -> dict[str, Refusal]:
    """Returns the same rule for each of several names, which spaces separate."""
    return dict.fromkeys(names.split(), rule)


_GENERATION_REFUSED: Final[Mapping[str, Refusal]] = {
    **_each(
        "background dry_multiplier dynamic_temperature dynatemp_range early_stopping epsilon_cutoff eta_cutoff "
        "grammar_lazy mirostat mirostat_mode n_indent no_repeat_ngram_size penalty_alpha return_hidden_states "
        "smoothing_factor top_a use_beam_search xtc_probability",
        Refusal(_OFF),
    ),
    **_each("encoder_repetition_penalty guidance_scale length_penalty num_beams tfs tfs_z", Refusal((1,))),
    **_each("adapter_id custom_logit_processor lora lora_path lora_request prompt_embeds samplers", Refusal(_NONE)),
    **_each("echo return_tokens_as_token_ids", Refusal(_OFF, "use it in /v1/completions")),
    **_each(
        "grammar_triggers image_data images logits_processors plugins response_fields token_ids transforms",
        Refusal(([],)),
    ),
    **_each("guided_whitespace_pattern instructions negative_prompt", Refusal(("",))),
    **_each("input previous_response_id", Refusal()),
    **_each(
        "max_completion_tokens max_length max_new_tokens max_output_tokens max_tokens_to_sample",
        Refusal((), "use max_tokens"),
    ),
    **_each("min_length min_new_tokens", Refusal(_OFF, "use min_tokens")),
    **_each("n_predict num_predict", Refusal((-1,), "use max_tokens")),
    **_each("n_probs top_logprobs", Refusal(_OFF, "use logprobs")),
    **_each("options sampling_params", Refusal(({},), "send its fields at the top of the body")),
    **_each("output_config output_format", Refusal(({},), "use response_format")),
    "best_of": Refusal((1,), "use it in /v1/completions"),
    "chat_template": Refusal(("",), "put the template into the checkpoint's folder as chat_template.jinja"),
    "do_sample": Refusal((True,), "set temperature: 0 for greedy decoding"),
    "documents": Refusal(([],), "put them into a message"),
    "format": Refusal(("",), "use response_format"),
    "function_call": Refusal(("none", "auto"), "use tool_choice"),
    "functions": Refusal(([],), "use tools"),
    "guided_choice": Refusal(([],), "use structured_outputs.choice"),
    "guided_grammar": Refusal(("",), "use structured_outputs.grammar"),
    "guided_json": Refusal(("",), "use structured_outputs.json"),
    "guided_regex": Refusal(("",), "use structured_outputs.regex"),
    "messages": Refusal(([],), "use it in /v1/chat/completions"),
    "min_keep": Refusal((0, 1)),
    "modalities": Refusal((["text"],)),
    "no_stop_trim": Refusal(_OFF, "use include_stop_str_in_output"),
    "prompt": Refusal(_NONE, "use it in /v1/completions"),
    "repeat_penalty": Refusal((1,), "use repetition_penalty"),
    "return_tokens": Refusal(_OFF, "use return_token_ids"),
    "session_params": Refusal(({},), "use from_state"),
    "skip_special_tokens": Refusal((True,)),
    "state": Refusal((), "use from_state"),
    "stop_regex": Refusal(_NONE, "use stop"),
    "stop_sequences": Refusal(([],), "use stop"),
    "structural_tag": Refusal(("",), "use structured_outputs or tools"),
    "suffix": Refusal(("",), "the model was not trained to fill in"),
    "system": Refusal(_NONE, "send it as a message of the role system"),
    "t_max_predict_ms": Refusal(_OFF, "use timeout"),
    "tool_choice": Refusal(("none", "auto"), "use it in /v1/chat/completions"),
    "tools": Refusal(([],), "use them in /v1/chat/completions"),
    "top_n_sigma": Refusal((0, -1)),
    "typical": Refusal((1,), "use typical_p"),
    "vllm_xargs": Refusal(({},)),
    "web_search_options": Refusal((), "the server calls no other servers"),
}
"""Fields of other servers' generations. A sampler is refused by the field that enables it."""

_GENERATION_IGNORED: Final = _names(
    "audio cache_prompt dry_allowed_length dry_base dry_penalty_last_n dry_sequence_breakers dynatemp_exponent "
    "dynatemp_high dynatemp_low id_slot include_reasoning keep_alive kv_transfer_params media_io_kwargs metadata "
    "mirostat_eta mirostat_tau mm_processor_kwargs moderation n_discard n_keep parallel_tool_calls "
    "parse_tool_calls post_sampling_probs prediction prompt_cache_key prompt_cache_options prompt_cache_retention "
    "provider reasoning reasoning_effort reasoning_format repeat_last_n request_id safety_identifier "
    "separate_reasoning service_tier slot_id smoothing_curve spaces_between_special_tokens store stream_reasoning "
    "temperature_last thinking timings_per_token usage user verbosity xtc_threshold"
)
"""Fields without effect here, among them the parameters of samplers that are disabled."""

_CHAT_FIELDS: Final[Mapping[str, Refusal]] = {
    **_each("allowed_token_ids bad_words logprob_token_ids stop_token_ids", Refusal(([],))),
    **_each("chat_template_kwargs logit_bias structured_outputs", Refusal(({},))),
    **_each(
        "continue_final_message include_stop_str_in_output logprobs return_timings return_token_ids", Refusal(_OFF)
    ),
    **_each("ebnf grammar json_schema regex", Refusal(("",))),
    **_each("frequency_penalty presence_penalty", Refusal((0,))),
    **_each("n repetition_penalty typical_p", Refusal((1,))),
    "add_generation_prompt": Refusal((True,)),
    "prompt_logprobs": Refusal(),
    "response_format": Refusal(({"type": "text"},)),
    "stop": Refusal(_NONE),
    "truncate_prompt_tokens": Refusal((-1,)),
    "truncation_side": Refusal(("left",)),
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
