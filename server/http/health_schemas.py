"""Schemas of the responses about the server itself, for `/openapi.json`."""

from typing import NotRequired, TypedDict

from .openapi import described


@described
class Status(TypedDict):
    """Response of health checks."""

    status: str
    """`ok`."""


@described
class Readiness(TypedDict):
    """Response of `/health/ready`."""

    status: str
    """`ready`, or `degraded` while a database is unavailable and requests that need it get 503."""

    store_unavailable: NotRequired[list[str]]
    """Features whose database is unavailable."""


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
    """Changes with everything that may change outputs; the same as `system_fingerprint` in responses."""

    vocab_size: int
    """Number of token ids."""

    has_text: bool
    """Whether the checkpoint has a tokenizer. Without one, prompts and outputs are only token ids."""

    ready: bool
    """Whether the model is loaded and compiled."""

    slots: int
    """Maximum number of requests that run at the same time; 0 before the model is loaded."""

    max_choices: int
    """Maximum number of choices of one request."""

    max_model_len: None
    """Always null, since nothing limits the length."""

    max_tokens_limit: int | None
    """Maximum number of tokens that a request may generate, set by `--max-tokens-limit`; null without a limit."""

    state_cache_bytes: int
    """Budget of the prefix cache in bytes of host memory."""

    store: NotRequired[str]
    """Address of the store of responses, without a password."""

    simulated: str | None
    """Device that is simulated instead of running the model, set by `--simulate`; null if the model runs."""
