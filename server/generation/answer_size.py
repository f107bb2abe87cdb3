"""The most that an answer may hold in memory, computed before any of it is generated.

All sizes are of everything that one token needs on its way: the engine's output, what a writer makes of it, and JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from ...engine import SamplingParams
from ..api.openai.schemas import ChatBody, CompletionBody, GenerationBody
from ..errors import ApiError, answer_too_large
from ..text.tokenizer import Tokenizer
from .prompts import Prompt

MAX_ANSWER_BYTES: Final = 256 * 2**20
"""About 750,000 tokens, or 20,000 with 20 alternatives each."""

_TOKEN_BYTES: Final = 360
"""A generated token: mostly the objects that bring it."""

_ALTERNATIVE_BYTES: Final = 640
"""A log-probability with the name of its token, of 16 bytes."""

_NAME_BYTES: Final = 24
"""A byte of a token's name, in all its forms."""

_TEXT_BYTES: Final = 8
"""A byte of a prompt's text that is sent back: wide characters take 4 each, and JSON may spell them out."""

_ID_BYTES: Final = 12
"""A token id that is sent back, as JSON."""


class _Part(NamedTuple):
    """
    Attributes:
      param: the field that asks for it.
      fix: how to ask for less.
    """

    num_bytes: int
    param: str
    fix: str


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """
    Attributes:
      prompt_bytes: what the answer repeats of its prompts.
      params: of each choice of a prompt, with the limit that the answer has room for, if it is not streamed.
    """

    prompt_bytes: int
    params: list[SamplingParams]


def answer_size(
    body: GenerationBody, prompts: Sequence[Prompt], params: Sequence[SamplingParams], tokenizer: Tokenizer
) -> AnswerSize:
    """
    Raises:
      ApiError: 400, the answer could hold more than `MAX_ANSWER_BYTES`.
    """
    of_prompts = _prompt_parts(body, prompts, len(params), tokenizer)
    prompt_bytes = sum(part.num_bytes for part in of_prompts)
    if prompt_bytes > MAX_ANSWER_BYTES:
        raise _too_large(max(of_prompts), prompt_bytes)
    if body.stream:
        return AnswerSize(prompt_bytes, list(params))
    per_token = _TOKEN_BYTES + _logprob_bytes(params[0].logprobs, body, tokenizer)
    num_choices, limit = len(prompts) * len(params), params[0].max_tokens
    room = (MAX_ANSWER_BYTES - prompt_bytes) // (num_choices * per_token)
    is_plain = params[0].logprobs is None  # many clients send a huge limit and mean none
    asked = body.min_tokens if is_plain or limit is None or _limit_field(body) is None else limit
    if asked > room:
        raise _too_large(
            _generated(body, params[0], is_min=asked == body.min_tokens), prompt_bytes + asked * num_choices * per_token
        )
    if limit is None or limit > room:
        return AnswerSize(prompt_bytes, [replace(each, max_tokens=max(room, 1)) for each in params])
    return AnswerSize(prompt_bytes, list(params))


def _prompt_parts(
    body: GenerationBody, prompts: Sequence[Prompt], num_candidates: int, tokenizer: Tokenizer
) -> list[_Part]:
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    parts = [_Part(0, "prompt", "send fewer or shorter prompts")]
    if body.prompt_logprobs is not None:
        each = num_tokens * _entry_bytes(body.prompt_logprobs, tokenizer)
        parts.append(_Part(each * num_candidates, "prompt_logprobs", _FIX.format("prompt_logprobs")))
    if body.return_token_ids:
        copies = 1 if isinstance(body, ChatBody) else num_candidates
        parts.append(_Part(num_tokens * copies * _ID_BYTES, "return_token_ids", _FIX.format("return_token_ids")))
    if isinstance(body, CompletionBody) and body.echo:
        each = sum(prompt.num_text_bytes(tokenizer) for prompt in prompts) * _TEXT_BYTES
        if body.logprobs is not None:
            each += num_tokens * _entry_bytes(body.logprobs, tokenizer)
        parts.append(_Part(each * num_candidates, "echo", _FIX.format("echo")))
    return parts


_FIX: Final = "leave {} out, or send a lower n, fewer or shorter prompts"


def _generated(body: GenerationBody, params: SamplingParams, *, is_min: bool) -> _Part:
    param = "min_tokens" if is_min else _limit_field(body) or "max_tokens"
    fewer = " or logprobs" if params.logprobs is not None else ""
    return _Part(0, param, f"send a lower {param}, n{fewer}, or stream: true")


def _limit_field(body: GenerationBody) -> str | None:
    """The field that names a limit of tokens, if one does."""
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return "max_completion_tokens"
    return None if body.max_tokens is None else "max_tokens"


def _logprob_bytes(num_top: int | None, body: GenerationBody, tokenizer: Tokenizer) -> int:
    return 0 if num_top is None else _entry_bytes(num_top + len(body.logprob_token_ids), tokenizer)


def _entry_bytes(num_alternatives: int, tokenizer: Tokenizer) -> int:
    """Of one token's own log-probability, and of its alternatives. Clients may choose a prompt of the longest names."""
    return _ALTERNATIVE_BYTES * (num_alternatives + 1) + _NAME_BYTES * tokenizer.max_token_bytes


def _too_large(part: _Part, num_bytes: int) -> ApiError:
    return answer_too_large(part.param, num_bytes, MAX_ANSWER_BYTES, part.fix)


def text_answer_bytes(token_ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Returns the most that an answer with the text of these ids, and the ids themselves, holds.

    Raises:
      ApiError: 400, it is more than `MAX_ANSWER_BYTES`.
    """
    num_bytes = len(token_ids) * (_ID_BYTES + 3 * tokenizer.max_token_bytes)
    if num_bytes > MAX_ANSWER_BYTES:
        raise answer_too_large("tokens", num_bytes, MAX_ANSWER_BYTES, "send fewer tokens at a time")
    return num_bytes
