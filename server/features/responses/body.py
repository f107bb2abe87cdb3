"""Schemas of `/v1/responses`. Fields that no schema names are checked by `body_check`."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from ...schemas.body import CacheSalt, Fields, Several, TopLogprobs
from ...schemas.field_rules import FieldRules
from ...schemas.generation_fields import SamplingFields, with_numbers
from ...schemas.metadata import Metadata
from .field_rules import RESPONSES_RULES
from .prompt_fields import PromptFields

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""Parts of a response that a client may include. Only the first one exists here."""


class ResponseStreamOptions(Fields):
    """Options of a stream. They are accepted, and nothing is obfuscated."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


@with_numbers("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
class ResponseBody(PromptFields, SamplingFields):
    """Body of `POST /v1/responses`. Sampling fields but `temperature` and `top_p` are extensions, as in chat."""

    field_rules: ClassVar[FieldRules] = replace(RESPONSES_RULES, values={"include": frozenset(get_args(Includable))})

    store: bool = True
    """Whether the response is kept, to be fetched and continued."""

    background: bool = False
    """Whether the request returns immediately, and the response is fetched by its id later. It needs `store`."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: ResponseStreamOptions | None = None
    """Options of the stream."""

    include: Several[Includable | str] = Field(default_factory=list)
    """Further parts of the response: `message.output_text.logprobs`. Other values have no effect."""

    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Maximum number of tokens to generate. The default is the checkpoint's, or no limit."""

    max_tool_calls: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Returned unchanged, without effect: it limits calls of tools that a server runs, and this server runs none."""

    top_logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token. It needs `message.output_text.logprobs` in `include`."""

    metadata: Metadata = Field(default_factory=dict)
    """Up to 16 names and values, of at most 64 and 512 characters, that are stored with the response and returned."""

    user: str | None = None
    """Returned unchanged, without effect."""

    safety_identifier: str | None = None
    """Returned unchanged, without effect."""

    prompt_cache_key: str | None = None
    """Returned unchanged, without effect: every prefix is cached."""

    cache_salt: CacheSalt = ""
    """Name of a separate prefix cache: requests reuse states only of requests with the same salt."""

    @property
    def wants_logprobs(self) -> bool:
        """Whether the response includes log-probabilities."""
        return LOGPROBS in self.include
