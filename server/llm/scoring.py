"""Log-likelihoods of continuations."""

import math
from collections.abc import Sequence
from uuid import uuid4

from ..generation.service import Service
from ..text.tokenizer import TextUnavailableError, Tokenizer
from .errors import RequestError
from .outputs import Score
from .requests import Prompt, completion, final_output, prompt_content
from .sampling_params import SamplingParams


async def score(service: Service, context: Prompt, continuation: Prompt) -> Score:
    """Returns the log-likelihood of a continuation; see `LLM.score`."""
    before, scored = _encode_pair(service.model.tokenizer, context, continuation)
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    output = await final_output(service, completion((*before, *scored), params, f"score-{uuid4().hex}"))
    entries = [entry for entry in (output.prompt_logprobs or ())[len(before) :] if entry is not None]
    own = tuple(entry[token_id].logprob for token_id, entry in zip(scored, entries, strict=True))
    is_greedy = all(
        logprob >= max(each.logprob for each in entry.values()) for logprob, entry in zip(own, entries, strict=True)
    )
    return Score(math.fsum(own), is_greedy, tuple(scored), own)


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
