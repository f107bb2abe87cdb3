"""Fields of a request that the schema does not name: some change the answer and are refused, the others let pass."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from .errors import not_supported
from .schema import GenerationBody

_logger = logging.getLogger(__name__)

_NOT_YET: Final[Mapping[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    # vLLM's
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
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

_MAX_NAMES: Final = 100
"""A client that makes up names fills neither the log nor the memory."""


class FieldCheck:
    """Refuses what cannot be done, and logs each name that nobody knows once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __call__(self, body: GenerationBody) -> None:
        """
        Raises:
          ApiError: a field asks for something that would change the answer and is not there yet.
        """
        for name, value in (body.model_extra or {}).items():
            if name == "best_of":
                if value != body.n:
                    raise not_supported(name, "best_of other than n")
            elif name in _NOT_YET:
                if value not in _NOT_YET[name]:
                    raise not_supported(name)
            elif name not in _TOLERATED:
                self._log_once(name)

    def _log_once(self, name: str) -> None:
        if name not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(name)
            _logger.warning("the unknown field %.60r was ignored; this is logged once", name)
