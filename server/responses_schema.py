"""What clients may send to `/v1/responses`. Its other fields are for `fields.py`."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from .schema import TEXT_OR_LIST, Body, ChatMessage, Count, Fields, Text, TextPart, TopLogprobs

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
"""All but the first are of things that no answer here has."""


class ResponsePart(BaseModel):
    """A text, of either side."""

    model_config = ConfigDict(strict=True)

    type: Literal["input_text", "output_text"]
    text: str


class ResponseItem(Fields):
    """A message; an answer's own items may be sent back as they are."""

    type: Literal["message"] = "message"
    role: str
    content: Annotated[Text | Annotated[list[ResponsePart], Tag("<list>")], TEXT_OR_LIST]

    def as_chat(self) -> ChatMessage:
        if isinstance(self.content, str):
            return ChatMessage(role=self.role, content=self.content)
        return ChatMessage(role=self.role, content=[TextPart(type="text", text=part.text) for part in self.content])


class ResponseFormat(Fields):
    type: str


class ResponseText(Fields):
    format: ResponseFormat = ResponseFormat(type="text")


class ResponseStreamOptions(Fields):
    """Accepted, and nothing is obfuscated."""

    include_obfuscation: bool = False


class ResponseBody(Body):
    """`POST /v1/responses`. `seed` and what follows are ours, as in chat."""

    input: Annotated[
        Text | Annotated[list[ResponseItem], Field(min_length=1), Tag("<list>")],
        TEXT_OR_LIST,
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    background: bool = False
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    include: list[Includable] = Field(default_factory=list)
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: TopLogprobs | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    text: ResponseText = ResponseText()
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool = True
    seed: int | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """The input, as chat knows it."""
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        return [item.as_chat() for item in self.input]

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include
