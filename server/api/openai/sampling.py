"""Sampling parameters of chat completions, completions and `/generate`."""

from typing import Any, Final

from ....engine import SamplingParams
from ...errors import bad_value
from ...text.served_model import ServedModel
from ...text.tokenizer import TextUnavailableError
from ..common.sampling import sampling_params
from .schemas import MAX_BAD_WORD_CHARACTERS, ChatBody, CompletionBody, GenerateBody, GenerationBody

_DEFAULT_COMPLETION_TOKENS: Final = 16
"""Default of `max_tokens` in `/v1/completions` only; OpenAI's."""


def chat_params(body: ChatBody, model: ServedModel) -> list[SamplingParams]:
    """Returns the parameters of each of the `n` choices, which differ in their seeds.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_value("top_logprobs", "top_logprobs needs logprobs: true")
    max_tokens = body.max_completion_tokens or body.max_tokens or model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    _check_prompt_logprobs(body)
    return _params(body, model, max_tokens, logprobs, body.prompt_logprobs)


def completion_params(body: CompletionBody, model: ServedModel) -> list[SamplingParams]:
    """Returns the parameters of each candidate of a prompt; see `chat_params`."""
    if body.num_candidates < body.n:
        raise bad_value("best_of", f"best_of must be at least n, which is {body.n}")
    if body.num_candidates > body.n and body.stream:
        raise bad_value("best_of", "best_of larger than n cannot be streamed: which is best is known at the end")
    max_tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    compares_logprobs = body.num_candidates > body.n and body.logprobs is None
    _check_prompt_logprobs(body)
    counts = [body.prompt_logprobs, body.logprobs if body.echo else None]
    prompt_logprobs = max((count for count in counts if count is not None), default=None)
    return _params(body, model, max_tokens, 0 if compares_logprobs else body.logprobs, prompt_logprobs)


def generate_params(body: GenerateBody, model: ServedModel) -> list[SamplingParams]:
    """Returns the parameters of each choice; see `chat_params`."""
    max_tokens = model.defaults.max_tokens if body.max_tokens is None else body.max_tokens
    return _params(body, model, max_tokens, body.logprobs, body.prompt_logprobs)


def _params(
    body: GenerationBody,
    model: ServedModel,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> list[SamplingParams]:
    if body.truncate_prompt_tokens == 0:
        raise bad_value("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for no limit")
    if body.logprob_token_ids and logprobs is None:
        raise bad_value("logprob_token_ids", "logprob_token_ids needs logprobs")
    return sampling_params(
        body,
        model,
        max_tokens,
        body.num_candidates,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        bad_words=_bad_words(body, model),
        **_token_lists(body, model.tokenizer.vocab_size),
    )


def _check_prompt_logprobs(body: ChatBody | CompletionBody) -> None:
    if body.prompt_logprobs is not None and body.stream:
        raise bad_value("prompt_logprobs", "prompt_logprobs cannot be streamed, but for those of echo with logprobs")


def _token_lists(body: GenerationBody, vocab_size: int) -> dict[str, Any]:
    """Returns the fields of `SamplingParams` that hold ids of the request, all within the vocabulary."""
    logit_bias = _logit_bias(body)
    allowed = None if body.allowed_token_ids is None else tuple(body.allowed_token_ids)
    lists = {
        "stop_token_ids": tuple(body.stop_token_ids),
        "allowed_token_ids": allowed,
        "logprob_token_ids": tuple(body.logprob_token_ids),
    }
    for name, ids in (*lists.items(), ("logit_bias", [token_id for token_id, _ in logit_bias])):
        if len(ids or ()) > vocab_size:
            raise bad_value(name, f"{name} must hold at most {vocab_size} ids, as many as the vocabulary has")
        if (highest := max(ids or (), default=0)) >= vocab_size:
            raise bad_value(name, f"{name}: the id {highest} is outside the vocabulary of {vocab_size} tokens")
    return {**lists, "logit_bias": logit_bias}


def _logit_bias(body: GenerationBody) -> tuple[tuple[int, float], ...]:
    """Returns pairs of id and bias. Keys of a JSON object are strings."""
    for key in body.logit_bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise bad_value("logit_bias", f'logit_bias: the key {key[:60]!r} must be a token id, such as "42"')
    return tuple({int(key): bias for key, bias in body.logit_bias.items()}.items())


def _bad_words(body: GenerationBody, model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Returns tokens of each bad word at the start of a text and after a space, which its first token then holds."""
    if sum(map(len, body.bad_words)) > MAX_BAD_WORD_CHARACTERS:
        raise bad_value("bad_words", f"bad_words must be at most {MAX_BAD_WORD_CHARACTERS} characters in total")
    try:
        encoded = [model.tokenizer.encode(start + word) for word in body.bad_words for start in ("", " ")]
    except TextUnavailableError as error:
        raise bad_value("bad_words", str(error)) from None
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded if ids))
