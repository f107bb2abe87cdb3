"""Fields of responses' bodies that their schemas don't name."""

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
    "conversation": Refusal((), "use previous_response_id"),
    "max_tokens": Refusal((), "use max_output_tokens"),
    "prompt": Refusal((), "send the text as instructions and input"),
}

_RESPONSES_IGNORED: Final = frozenset({"access_programs", "background_options", "image", "max_tool_calls"})

RESPONSES_RULES: Final = FieldRules(_RESPONSES_REFUSED, GENERATION_RULES.ignored | _RESPONSES_IGNORED)
ITEM_RULES: Final = FieldRules(
    ignored=MARKS | {"async", "caller", "created_by", "id", "name", "namespace", "parsed_arguments", "phase", "status"}
)
TEXT_OPTIONS_RULES: Final = FieldRules(ignored=frozenset({"verbosity"}))
