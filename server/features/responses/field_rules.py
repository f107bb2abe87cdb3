"""Rules for fields of responses' bodies that their schemas don't name."""

from collections.abc import Mapping
from typing import Final

from ...schemas.field_rules import (
    GENERATION_RULES,
    LENGTH_FIELDS,
    MARKS,
    SCHEMA_FIELDS,
    FieldRules,
    Refusal,
    with_hints,
)

_RESPONSES_REFUSED: Final[Mapping[str, Refusal]] = {
    **with_hints(
        dict.fromkeys(LENGTH_FIELDS, "use max_output_tokens")
        | dict.fromkeys((*SCHEMA_FIELDS, "output_config", "output_format"), "use text.format")
        | dict.fromkeys(("logprobs", "n_probs"), 'use include: ["message.output_text.logprobs"]')
        | {"messages": "use input", "system": "use instructions"}
    ),
    "context_management": Refusal(([],)),
    "max_tokens": Refusal((), "use max_output_tokens"),
    "prompt": Refusal((), "send the text as instructions and input"),
}

_RESPONSES_IGNORED: Final = frozenset({"access_programs", "background_options", "image"})

RESPONSES_RULES: Final = FieldRules(_RESPONSES_REFUSED, GENERATION_RULES.ignored | _RESPONSES_IGNORED)
COUNT_RULES: Final = FieldRules(
    {name: _RESPONSES_REFUSED[name] for name in ("messages", "prompt", "system")},
    frozenset(
        {
            *("background", "cache_salt", "frequency_penalty", "ignore_eos", "include", "max_output_tokens"),
            *("max_tool_calls", "metadata", "min_p", "min_tokens", "presence_penalty", "priority", "prompt_cache_key"),
            *("queue_timeout", "reasoning", "repetition_penalty", "return_warnings", "safety_identifier", "seed"),
            *("service_tier", "store", "stream", "stream_options", "temperature", "timeout", "top_k", "top_logprobs"),
            *("top_p", "user"),
        }
    ),
)
"""Rules of the endpoint that counts input tokens, which accepts all fields of a response's request."""

ITEM_RULES: Final = FieldRules(
    ignored=MARKS | {"async", "caller", "created_by", "id", "name", "namespace", "parsed_arguments", "phase", "status"}
)
TEXT_OPTIONS_RULES: Final = FieldRules(ignored=frozenset({"verbosity"}))
