"""From a request's fields and the checkpoint's defaults to the engine's parameters."""

import secrets
from typing import Final

from ..engine import SamplingParams
from .errors import bad_value
from .schema import ChatBody, CompletionBody, GenerateBody, GenerationBody
from .served_model import ServedModel

DEFAULT_COMPLETION_TOKENS: Final = 16
"""OpenAI's, for `/v1/completions` only."""


def chat_params(body: ChatBody, model: ServedModel) -> list[SamplingParams]:
    """The parameters of each of the `n` choices, which differ in their seeds.

    Raises:
      ApiError: fields contradict each other or don't fit the model.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_value("top_logprobs", "top_logprobs needs logprobs: true")
    max_tokens = body.max_completion_tokens or body.max_tokens or model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _params(body, model, max_tokens, logprobs, prompt_logprobs=None)


def completion_params(body: CompletionBody, model: ServedModel) -> list[SamplingParams]:
    """See `chat_params`."""
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    return _params(body, model, max_tokens, body.logprobs, body.logprobs if body.echo else None)


def generate_params(body: GenerateBody, model: ServedModel) -> list[SamplingParams]:
    """See `chat_params`."""
    max_tokens = model.defaults.max_tokens if body.max_tokens is None else body.max_tokens
    return _params(body, model, max_tokens, body.logprobs, body.prompt_logprobs)


def _params(
    body: GenerationBody,
    model: ServedModel,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> list[SamplingParams]:
    max_tokens = model.capped(max_tokens)
    _check(body, model, max_tokens)
    defaults = model.defaults
    top_k = defaults.top_k if body.top_k is None else body.top_k
    try:
        return [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=defaults.temperature if body.temperature is None else body.temperature,
                top_k=max(top_k, 0),  # -1 is vLLM's way to say off
                top_p=defaults.top_p if body.top_p is None else body.top_p,
                min_p=defaults.min_p if body.min_p is None else body.min_p,
                seed=secrets.randbits(64) if body.seed is None else (body.seed + choice) % 2**64,
                min_tokens=body.min_tokens,
                end_token_ids=() if body.ignore_eos else model.end_token_ids,
                stop_token_ids=tuple(body.stop_token_ids),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
            )
            for choice in range(body.n)
        ]
    except ValueError as error:  # of all limits, the schema knows all but the number of stop ids
        raise bad_value("stop_token_ids", str(error)) from None


def _check(body: GenerationBody, model: ServedModel, max_tokens: int | None) -> None:
    if body.stream_options is not None and not body.stream:
        raise bad_value("stream_options", "stream_options needs stream: true")
    if body.truncate_prompt_tokens == 0:
        raise bad_value("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for no limit")
    if body.ignore_eos and max_tokens is None:
        raise bad_value("ignore_eos", "ignore_eos needs a limit: set max_tokens")
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise bad_value("min_tokens", f"min_tokens must be at most max_tokens, which is {max_tokens}")
    if any(token_id >= model.tokenizer.vocab_size for token_id in body.stop_token_ids):
        raise bad_value("stop_token_ids", f"an id is outside the vocabulary of {model.tokenizer.vocab_size} tokens")
