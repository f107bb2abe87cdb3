"""Fields of a request that its schema does not name: some change the answer and are refused, others are let pass."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import bad_value, not_supported
from .messages_schema import CountTokensBody
from .responses_schema import ResponseBody
from .schema import GenerationBody
from .schema_base import Fields

_logger = logging.getLogger(__name__)

_NOT_YET: Final[Mapping[str, tuple[Any, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "suffix": ("",),
    # vLLM's
    "chat_template": (),
    "documents": ([],),
    "best_of": (1,),
    "length_penalty": (1,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
}
"""Fields that would change the answer, and the values with which they would not."""

_TOLERATED: Final = frozenset(
    {
        "audio",
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
        "web_search_options",
    }
)

_RESPONSES_NOT_YET: Final[Mapping[str, tuple[Any, ...]]] = {
    "context_management": ([],),
    "conversation": (),
    "prompt": (),
}

_RESPONSES_TOLERATED: Final = frozenset(
    {
        "max_tool_calls",
        "moderation",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "service_tier",
    }
)


_MESSAGES_NOT_YET: Final[Mapping[str, tuple[Any, ...]]] = {
    "container": (),
    "context_management": ({},),
    "mcp_servers": ([],),
    "output_config": ({},),
    "output_format": (),
    "thinking": ({"type": "disabled"},),
}

_MESSAGES_TOLERATED: Final = frozenset({"cache_control", "inference_geo", "metadata", "service_tier", "speed"})


@dataclass(frozen=True, slots=True)
class _Rules:
    """
    Attributes:
      not_yet: fields that would change the answer, and the values with which they would not.
      tolerated: fields that are known to change nothing.
    """

    not_yet: Mapping[str, tuple[Any, ...]]
    tolerated: frozenset[str]


_NO_RULES: Final = _Rules({}, frozenset())
_RULES: Final[Mapping[type[Fields], _Rules]] = {
    GenerationBody: _Rules(_NOT_YET, _TOLERATED),
    ResponseBody: _Rules(_RESPONSES_NOT_YET, _RESPONSES_TOLERATED),
    CountTokensBody: _Rules(_MESSAGES_NOT_YET, _MESSAGES_TOLERATED),
}
"""By the kind of body, which stands for its subclasses too."""

_MAX_NAMES: Final = 100
"""A client that makes up names fills neither the log nor the memory."""


class FieldCheck:
    """Refuses what cannot be done, and logs each name that nobody knows once.

    Args:
      strict: refuse those too.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def __call__(self, body: Fields) -> None:
        """
        Raises:
          ApiError: a field asks for something that would change the answer and is not there yet, or is unknown.
        """
        rules = next((rules for kind, rules in _RULES.items() if isinstance(body, kind)), _NO_RULES)
        for name, value in (body.model_extra or {}).items():
            if name in rules.not_yet:
                if value not in rules.not_yet[name]:
                    raise not_supported(name)
            elif name not in rules.tolerated:
                self._refuse_or_log(name)

    def _refuse_or_log(self, name: str) -> None:
        if self._strict:
            raise bad_value(name, f"the field {name!r} is unknown")
        if name not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(name)
            _logger.warning("the unknown field %.60r was ignored; this is logged once", name)
