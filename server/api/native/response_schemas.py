"""Schemas of the responses of Roost's own endpoints, for `/openapi.json`."""

from typing import Literal, NotRequired, TypedDict

from ..common.logprobs import IdLogprobs
from ..common.openapi import described
from ..common.response_parts import ChoiceEnd, Usage
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
    """Number of choices that still ran."""


@described
class StateObject(TypedDict):
    """A saved state. Its first `read_tokens` tokens have been prefilled."""

    id: str
    """Id for `from_state` and for the paths below `/v1/states`."""

    object: Literal["state"]
    """Kind of object."""

    created: int
    """Time at which the state was saved, in seconds since 1970."""

    tokens: int
    """Number of tokens of the whole history."""

    read_tokens: int
    """Number of leading tokens that have been prefilled; the rest is prefilled when a request continues."""

    bytes: int
    """Bytes of memory that the state takes."""


@described
class StateList(TypedDict):
    """One page of the saved states."""

    object: Literal["list"]
    """Kind of object."""

    data: list[StateObject]
    """States of the page."""

    first_id: str
    """Id of the page's first state; empty if there is none."""

    last_id: str
    """Id of the page's last state, which `after` takes for the next page."""

    has_more: bool
    """Whether more states follow."""


@described
class Status(TypedDict):
    """Response of health checks."""

    status: str
    """`ok` or `ready`."""


@described
class Version(TypedDict):
    """Response of `/version`."""

    version: str
    """Version of Roost."""


@described
class Load(TypedDict):
    """Response of `/load`. `server_load` is vLLM's name for the number of unfinished requests."""

    server_load: int
    """Number of unfinished requests, running and waiting; vLLM's name."""

    running: int
    """Number of requests that have a slot."""

    waiting: int
    """Number of requests without a slot."""

    slots: int
    """Maximum number of requests that run at the same time."""

    prompt_tokens: int
    """Prompt tokens processed since the start, without those served from the prefix cache."""

    generated_tokens: int
    """Tokens generated since the start."""

    cached_tokens: int
    """Prompt tokens served from the prefix cache since the start."""

    state_cache_bytes: int
    """Bytes of host memory that the prefix cache takes."""


@described
class ServerInfo(TypedDict):
    """Response of `/server_info`. `slots` is 0 before the model is loaded."""

    version: str
    """Version of Roost."""

    model: str
    """Id of the served model."""

    fingerprint: str
    """Changes with all that may change outputs; the same as `system_fingerprint` in responses."""

    vocab_size: int
    """Number of token ids."""

    has_text: bool
    """Whether the checkpoint has a tokenizer. Without one, only `/generate` works."""

    ready: bool
    """Whether the model is loaded and compiled."""

    slots: int
    """Maximum number of requests that run at the same time; 0 before the model is loaded."""

    max_choices: int
    """Maximum number of choices of one request."""

    max_model_len: None
    """Always null, since nothing limits the length."""

    state_cache_bytes: int
    """Budget of the prefix cache in bytes of host memory."""

    store: str
    """Address of the store of responses, without a password."""

    simulated: str | None
    """Device that is simulated instead of running the model, as `--simulate` says; null if the model runs."""
