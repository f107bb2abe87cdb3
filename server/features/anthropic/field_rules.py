"""Rules for fields of messages' bodies that their schemas don't name."""

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

_MESSAGES_REFUSED: Final[Mapping[str, Refusal]] = {
    **with_hints(
        dict.fromkeys(LENGTH_FIELDS, "use max_tokens")
        | dict.fromkeys(SCHEMA_FIELDS, "use output_config.format")
        | dict.fromkeys(("input", "prompt"), "use messages")
        | {"instructions": "use system", "stop": "use stop_sequences"}
        | {"top_logprobs": "use it in /v1/chat/completions"}
    ),
    "compaction": Refusal((), "send the whole conversation"),
    "container": Refusal(),
    "mcp_servers": Refusal(([],), "the server calls no other servers"),
    "parallel_tool_calls": Refusal((True,), "use tool_choice.disable_parallel_tool_use"),
    "thread": Refusal((), "send the whole conversation, and give thread: false to a tool runner of Anthropic's SDKs"),
}

_MESSAGES_IGNORED: Final = frozenset(
    {
        "billing_policy",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "speed",
        "stream_options",
        "user_profile_id",
        "workspace_id",
    }
)

MESSAGES_RULES: Final = FieldRules(
    _MESSAGES_REFUSED, (GENERATION_RULES.ignored | _MESSAGES_IGNORED) - {"parallel_tool_calls"}
)

COUNT_TOKENS_RULES: Final = FieldRules(
    {name: _MESSAGES_REFUSED[name] for name in ("container", "mcp_servers")},
    MESSAGES_RULES.ignored
    | {"max_tokens", "output_config", "output_format", "stop_sequences", "stream", "temperature", "top_k", "top_p"},
)
"""Rules of bodies whose tokens are counted, which may contain all fields of a message's body."""

RESULT_RULES: Final = FieldRules(ignored=MARKS | {"is_error", "toolset_name"})
OUTPUT_OPTIONS_RULES: Final = FieldRules(ignored=frozenset({"effort", "task_budget"}))
