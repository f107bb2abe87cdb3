"""From a request's fields and the checkpoint's defaults to the engine's parameters."""

import secrets
from typing import Any, Final

from ....engine import ParameterError, SamplingParams
from ...errors import bad_value
from ...text.served_model import ServedModel
from ...text.tokenizer import TextUnavailableError
from ..openai.schemas import MAX_BAD_WORD_CHARACTERS, ChatBody, CompletionBody, GenerateBody, GenerationBody
from .sampling_fields import requested_numbers

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
    _check_whole(body)
    return _params(body, model, max_tokens, logprobs, body.prompt_logprobs)


def completion_params(body: CompletionBody, model: ServedModel) -> list[SamplingParams]:
    """See `chat_params`."""
    if body.num_candidates < body.n:
        raise bad_value("best_of", f"best_of must be at least n, which is {body.n}")
    if body.num_candidates > body.n and body.stream:
        raise bad_value("best_of", "best_of larger than n cannot be streamed: which is best is known at the end")
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    is_choosy = body.num_candidates > body.n and body.logprobs is None
    _check_whole(body)
    of_prompt = [body.prompt_logprobs, body.logprobs if body.echo else None]
    prompt_logprobs = max((count for count in of_prompt if count is not None), default=None)
    return _params(body, model, max_tokens, 0 if is_choosy else body.logprobs, prompt_logprobs)


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
    if body.logprob_token_ids and logprobs is None:
        raise bad_value("logprob_token_ids", "logprob_token_ids needs logprobs")
    logit_bias, bad_words = _logit_bias(body), _bad_words(body, model)
    try:
        params = SamplingParams(
            max_tokens=max_tokens,
            **_numbers(body, model),
            logit_bias=logit_bias,
            allowed_token_ids=None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
            bad_words=bad_words,
            min_tokens=body.min_tokens,
            end_token_ids=() if body.ignore_eos else model.end_token_ids,
            stop_token_ids=tuple(body.stop_token_ids),
            logprobs=logprobs,
            logprob_token_ids=tuple(body.logprob_token_ids),
            prompt_logprobs=prompt_logprobs,
        )
    except ParameterError as error:  # of values that depend on each other, which the schema does not know
        raise bad_value(error.field, str(error)) from None
    return [params.with_seed(_seed(body, choice)) for choice in range(body.num_candidates)]


def _numbers(body: GenerationBody, model: ServedModel) -> dict[str, Any]:
    """Returns the request's numbers, with the checkpoint's for those that it leaves out."""
    numbers = {**model.defaults.sampling, **requested_numbers(body)}
    if numbers.get("top_p") == 0:  # clients mean the most likely token alone
        numbers |= {"temperature": 0.0, "top_p": 1.0}
    if numbers.get("top_k") == -1:  # vLLM's way to say off
        numbers["top_k"] = 0
    return numbers


def _seed(body: GenerationBody, choice: int) -> int:
    return secrets.randbits(64) if body.seed is None else (body.seed + choice) % 2**64


def _check_whole(body: ChatBody | CompletionBody) -> None:
    if body.prompt_logprobs is not None and body.stream:
        raise bad_value("prompt_logprobs", "prompt_logprobs cannot be streamed, but for those of echo with logprobs")


def _check(body: GenerationBody, model: ServedModel, max_tokens: int | None) -> None:
    if body.truncate_prompt_tokens == 0:
        raise bad_value("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for no limit")
    if body.ignore_eos and max_tokens is None:
        raise bad_value("ignore_eos", "ignore_eos needs a limit: set max_tokens")
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise bad_value("min_tokens", f"min_tokens must be at most max_tokens, which is {max_tokens}")
    vocab_size = model.tokenizer.vocab_size
    for name, ids in (
        ("stop_token_ids", body.stop_token_ids),
        ("allowed_token_ids", body.allowed_token_ids or ()),
        ("logprob_token_ids", body.logprob_token_ids),
        ("logit_bias", [token_id for token_id, _ in _logit_bias(body)]),
    ):
        if len(ids) > vocab_size:
            raise bad_value(name, f"{name} must hold at most {vocab_size} ids, as many as the vocabulary has")
        if (highest := max(ids, default=0)) >= vocab_size:
            raise bad_value(name, f"{name}: the id {highest} is outside the vocabulary of {vocab_size} tokens")


def _logit_bias(body: GenerationBody) -> tuple[tuple[int, float], ...]:
    """JSON has only strings for keys."""
    for key in body.logit_bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise bad_value("logit_bias", f'logit_bias: the key {key[:60]!r} must be a token id, such as "42"')
    return tuple({int(key): bias for key, bias in body.logit_bias.items()}.items())


def _bad_words(body: GenerationBody, model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """A word may begin a text, or stand behind a space, which belongs to its first token then."""
    if sum(map(len, body.bad_words)) > MAX_BAD_WORD_CHARACTERS:
        raise bad_value("bad_words", f"bad_words must be at most {MAX_BAD_WORD_CHARACTERS} characters in total")
    try:
        spelled = [model.tokenizer.encode(start + word) for word in body.bad_words for start in ("", " ")]
    except TextUnavailableError as error:
        raise bad_value("bad_words", str(error)) from None
    return tuple(dict.fromkeys(tuple(ids) for ids in spelled if ids))
