"""Log-likelihoods of continuations."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from ..generation.generation import collect
from ..generation.service import Service
from ..text.tokenizer import TextUnavailableError, Tokenizer
from .errors import RequestError, python_errors
from .prompts import Prompt, prompt_content
from .requests import completion, prepare
from .sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of a continuation.

    Attributes:
      logprob: Natural log-probability of the whole continuation.
      is_greedy: Whether all of its tokens are the most likely ones at their positions.
      token_ids: Tokens of the continuation.
      token_logprobs: Log-probabilities of these tokens.
    """

    logprob: float
    is_greedy: bool
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]


async def score(service: Service, context: Prompt, continuation: Prompt) -> Score:
    """Returns the log-likelihood of a continuation; see `LLM.score`."""
    before, scored = _encode_pair(service.model.tokenizer, context, continuation)
    request = completion((*before, *scored), SamplingParams(max_tokens=0, prompt_logprobs=1), f"score-{uuid4().hex}")
    with python_errors():
        prepared = await asyncio.create_task(prepare(service, request))
        async with service.generation(request.id, prepared.choices) as generation:
            (delta,) = await collect(generation)
    entries = [entry for entry in (delta.prompt_logprobs or ())[len(before) :] if entry is not None]
    logprobs = tuple(entry.logprob for entry in entries)
    is_greedy = all(entry.logprob >= entry.top[0][1] for entry in entries)
    return Score(math.fsum(logprobs), is_greedy, tuple(scored), logprobs)


def _encode_pair(tokenizer: Tokenizer, context: Prompt, continuation: Prompt) -> tuple[list[int], list[int]]:
    """Returns the tokens of both, with BOS in front.

    Texts are encoded together, so that their tokens are the whole text's. White space at the context's end belongs
    to the continuation, whose first token would include it.

    Raises:
      RequestError: One of them has no tokens, or one is text and the other token ids.
    """
    first, second = prompt_content(context, "context", may_be_empty=True), prompt_content(continuation, "continuation")
    if isinstance(first, str) and isinstance(second, str):
        whole = _encode(tokenizer, first + second)
        first = _encode(tokenizer, first.rstrip())
        second = whole[len(first) :]
    if isinstance(first, str) or isinstance(second, str):
        raise RequestError("continuation must be text if context is, and token ids if context is", "continuation")
    before = [*_bos(tokenizer), *first]
    if not second:
        raise RequestError("continuation: the text has no tokens of its own", "continuation")
    if not before:
        raise RequestError("context must have a token: this model has no BOS", "context")
    return before, second


def _bos(tokenizer: Tokenizer) -> Sequence[int]:
    return () if tokenizer.bos_id is None else (tokenizer.bos_id,)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except TextUnavailableError as error:
        raise RequestError(str(error), "context") from None
