"""What clients may send to Anthropic's `/v1/messages`. Its other fields are for `fields.py`."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from .schema import MAX_STOP_STRINGS, TEXT_OR_LIST, Body, ChatMessage, Count, Fields, StopString, Text, TextPart


class TextBlock(Fields):
    """`cache_control` and `citations` are let pass."""

    type: Literal["text"]
    text: str


Content = Annotated[Text | Annotated[list[TextBlock], Tag("<list>")], TEXT_OR_LIST]


class AnthropicMessage(Fields):
    role: Literal["user", "assistant"]
    content: Content


class CountTokensBody(Body):
    """`POST /v1/messages/count_tokens`."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: Content | None = None

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """All of it, as chat knows it."""
        system = [] if self.system is None else [_chat_message("system", self.system)]
        return [*system, *(_chat_message(message.role, message.content) for message in self.messages)]

    @property
    def is_begun(self) -> bool:
        """Whether the client has put the first words into the assistant's mouth."""
        return self.messages[-1].role == "assistant"


class MessagesBody(CountTokensBody):
    """`POST /v1/messages`. `seed` and what follows are ours, as in chat."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stream: bool = False
    stop_sequences: list[StopString] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0


def _chat_message(role: str, content: str | list[TextBlock]) -> ChatMessage:
    if isinstance(content, str):
        return ChatMessage(role=role, content=content)
    return ChatMessage(role=role, content=[TextPart(type="text", text=block.text) for block in content])
