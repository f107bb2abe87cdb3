"""Parameters of a request of the Python API, under vLLM's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, Final, cast

from pydantic import Field

from ..schemas.generation_fields import CompletionFields
from .errors import RequestError, checked, shown, unknown_name, wrong_value

PARAMS: Final = "SamplingParams, such as SamplingParams(max_tokens=3)"
"""Description of parameters for errors."""


def _refuses_unknown_keywords[Params](kind: type[Params]) -> type[Params]:
    """Makes a class of parameters raise a `RequestError` for a keyword that it does not have."""
    untyped = cast(Any, kind)
    make, names = untyped.__init__, [each.name for each in fields(untyped)]

    @wraps(make)
    def checked_make(self: Params, *args: Any, **parameters: Any) -> None:
        if args:
            raise RequestError(f"{kind.__name__} takes names and values, such as {names[1]}=…, got {shown(args[0])}")
        for name in parameters:
            if name not in names:
                raise unknown_name(kind.__name__, name, names)
        make(self, **parameters)

    untyped.__init__ = checked_make
    return kind


class RequestOutputKind(StrEnum):
    """Content of the outputs that `AsyncLLM` yields for one request.

    Attributes:
      CUMULATIVE: Each output holds everything generated so far.
      DELTA: Each output holds only the new text and tokens.
      FINAL_ONLY: There is one output, at the end.
    """

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


@_refuses_unknown_keywords
@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Constraint of the output. Exactly one attribute must be set.

    Attributes:
      json: JSON schema, as an object or as text.
      regex: Regular expression that the whole output matches.
      choice: Strings of which the output is one.
      grammar: Grammar in Lark's notation or in GBNF.
      json_object: Whether the output is any JSON object.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        """
        Raises:
          RequestError: No attribute is set, or several.
        """
        given = [name for name, _ in _items(self)]
        if len(given) != 1:
            names = ", ".join(each.name for each in fields(self))
            found = " and ".join(given) or "none"
            message = f"structured_outputs must have exactly one of {names}, got {found}"
            raise RequestError(message, "structured_outputs")


class LLMCompletionFields(CompletionFields):
    """Fields of a completion that generates: as in vLLM, the Python API scores prompts by another method."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None


@_refuses_unknown_keywords
@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Parameters of a request. None, the default, is equivalent to omitting the field in an HTTP request.

    So the defaults of `temperature`, `top_k`, `top_p`, `min_p` and `typical_p` are taken from the checkpoint's
    `generation_config.json`, even if other values are set; vLLM takes its own defaults in that case. `max_tokens` is 16
    for `generate`, as in vLLM, but unlimited for `chat`, where vLLM's default is 16 too. A chat with tools or
    `structured_outputs` ends after 16,384 tokens, and the output has a warning. Types and ranges are checked when an
    object is made, and again when a request is.

    Attributes:
      n: Number of choices. The prompt is prefilled once.
      max_tokens: Maximum number of tokens to generate, at least 1. `LLM.score` scores prompts without generating.
      min_tokens: Number of tokens before which no end or stop token is chosen.
      temperature: Divisor of the logits; 0 always takes the most likely token.
      top_p: Probability mass to keep.
      top_k: Number of most likely tokens to keep; 0 and -1 keep all.
      min_p: Minimum probability of a token, relative to the most likely token. Less likely tokens are dropped.
      typical_p: Probability mass to keep by locally typical sampling.
      presence_penalty: Number to subtract once from the logit of each token that was generated.
      frequency_penalty: Number to subtract from a token's logit for each time it was generated.
      repetition_penalty: Divisor of positive and factor of negative logits of tokens in the prompt or the output.
      seed: Seed of all randomness; choice i of n has the seed plus i. Random by default.
      stop: String or strings at which the output ends.
      stop_token_ids: Token ids at which the output ends, in addition to the checkpoint's end tokens.
      bad_words: Strings whose tokens are never generated in sequence.
      include_stop_str_in_output: Whether the text keeps the stop string that ended it.
      ignore_eos: Whether generation continues past end tokens.
      logit_bias: Number to add to the logit of each token id, before penalties.
      allowed_token_ids: The only token ids that may be chosen.
      logprobs: Number of alternatives to report for each generated token; 0 reports only the token itself.
      logprob_token_ids: Token ids whose log-probabilities are reported with each token. It needs `logprobs`.
      prompt_logprobs: Number of alternatives to report for each prompt token.
      structured_outputs: Constraint of the output.
      truncate_prompt_tokens: Maximum number of prompt tokens to keep, from the end; -1 keeps all.
      priority: Rank among the waiting requests: the lowest number gets a slot first.
      timeout: Maximum seconds for the whole request. A request that takes longer raises an error.
      cache_salt: Name of a separate prefix cache.
      prediction: Text that the output is expected to begin with, as OpenAI's `{"type": "content", "content": "..."}`.
        With `speculative_config`, tokens are drafted from it.
      output_kind: Content of the outputs that `AsyncLLM` yields; no other method reads it.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    timeout: float | None = None
    cache_salt: str | None = None
    prediction: Mapping[str, Any] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        """
        Raises:
          RequestError: A parameter has the wrong type or is out of range.
        """
        if not isinstance(self.output_kind, RequestOutputKind):
            raise wrong_value("output_kind", "a RequestOutputKind, such as RequestOutputKind.DELTA", self.output_kind)
        checked(LLMCompletionFields, {**self.body_fields(), "prompt": ""})

    def body_fields(self) -> dict[str, Any]:
        """Returns the equivalent fields of an HTTP request, as JSON types, except fields that are None."""
        return {name: as_json(value) for name, value in _items(self) if name != "output_kind"}


def _items(params: Any) -> list[tuple[str, Any]]:
    named = [(each.name, getattr(params, each.name)) for each in fields(params)]
    return [(name, value) for name, value in named if value is not None]


def as_json(value: Any) -> Any:
    """Returns a value of JSON types, with other mappings and sequences as dicts and lists."""
    match value:
        case StructuredOutputsParams():
            return as_json(dict(_items(value)))
        case Mapping():
            return {str(key): as_json(each) for key, each in value.items()}
        case Sequence() if not isinstance(value, str):
            return [as_json(each) for each in value]
        case _:
            return value
