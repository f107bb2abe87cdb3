"""Schemas of the responses of Roost's own endpoints, for `/openapi.json`."""

from typing import Literal, NotRequired, TypedDict

from ..common.logprobs import IdLogprobs
from ..common.response_builder import ChoiceEnd, Usage
from ..openai.response_schemas import ReportFields


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


class TokenizedPrompt(TypedDict):
    """Response of `/tokenize`. `max_model_len` is null since nothing limits the length."""

    tokens: list[int]
    count: int
    max_model_len: None


class DetokenizedPrompt(TypedDict):
    """Response of `/detokenize`."""

    prompt: str


class TokenizerInfo(TypedDict):
    """Response of `/tokenizer_info`."""

    tokenizer_class: str | None
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    chat_template: None


class RenderedPrompt(TypedDict):
    """A prompt as text and as token ids."""

    prompt: str
    token_ids: list[int]
    count: int


class AbortedRequests(TypedDict):
    """Number of choices that an abort has ended."""

    aborted: int


class StateObject(TypedDict):
    """A saved state. Its first `read_tokens` tokens have been prefilled."""

    id: str
    object: Literal["state"]
    created: int
    tokens: int
    read_tokens: int
    bytes: int


class StateList(TypedDict):
    """One page of the saved states."""

    object: Literal["list"]
    data: list[StateObject]
    first_id: str
    last_id: str
    has_more: bool


class Status(TypedDict):
    """Response of health checks."""

    status: str


class Version(TypedDict):
    """Response of `/version`."""

    version: str


class Load(TypedDict):
    """Response of `/load`. `server_load` is vLLM's name for the number of unfinished requests."""

    server_load: int
    running: int
    waiting: int
    slots: int
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    state_cache_bytes: int


class ServerInfo(TypedDict):
    """Response of `/server_info`. `slots` is 0 before the model is loaded."""

    version: str
    model: str
    fingerprint: str
    vocab_size: int
    has_text: bool
    ready: bool
    slots: int
    max_choices: int
    max_model_len: None
    state_cache_bytes: int
