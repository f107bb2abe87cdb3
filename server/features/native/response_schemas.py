"""Schemas of the responses of Roost's native endpoints, for `/openapi.json`."""

from typing import Literal, NotRequired, TypedDict

from ...generation.logprobs import IdLogprobs
from ...http.openapi import described
from ...openai.response_schemas import ChoiceEnd, ReportFields, Usage


class TokensChoice(ChoiceEnd):
    """A choice of `/generate`, or a part of one in a stream."""

    index: int
    logprobs: IdLogprobs | None
    prompt_logprobs: NotRequired[IdLogprobs]


class Tokens(ReportFields):
    """Response of `/generate`."""

    object: Literal["tokens"]
    choices: list[TokensChoice]
    usage: Usage


class TokensChunk(ReportFields):
    """Event of a streamed response of `/generate`."""

    object: Literal["tokens.chunk"]
    choices: list[TokensChoice]
    usage: NotRequired[Usage | None]


@described
class TokenizedPrompt(TypedDict):
    """Response of `/tokenize`. `max_model_len` is null since nothing limits the length."""

    tokens: list[int]
    """Token ids."""

    count: int
    """Number of token ids."""

    max_model_len: None
    """Always null, since nothing limits the length."""


@described
class DetokenizedPrompt(TypedDict):
    """Response of `/detokenize`."""

    prompt: str
    """Text of the token ids."""


@described
class TokenizerInfo(TypedDict):
    """Response of `/tokenizer_info`."""

    tokenizer_class: str | None
    """Class that Hugging Face's libraries use for this tokenizer; null if there is none."""

    vocab_size: int
    """Number of token ids."""

    bos_token: str | None
    """Text of the token in front of each prompt."""

    eos_token: str | None
    """Text of the token that ends an output."""

    chat_template: None
    """Always null: `/apply-template` renders prompts."""


@described
class RenderedPrompt(TypedDict):
    """A prompt as text and as token ids."""

    prompt: str
    """Text of the prompt."""

    token_ids: list[int]
    """Token ids of the prompt."""

    count: int
    """Number of token ids."""


@described
class AbortedRequests(TypedDict):
    """Number of choices that an abort has ended."""

    aborted: int
    """Number of choices that were still running."""
