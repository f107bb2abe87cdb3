"""Input items of responses: their schemas, rules for other fields, and the items of a stored response's input."""

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Final, Literal, get_args
from uuid import uuid4

from pydantic import Discriminator, Tag, TypeAdapter

from ...constraints.tool_calls import CallPiece
from ...errors.validation_errors import ForeignName
from ...generation.admission import admission
from ...generation.prompts import message_text
from ...http.responses import to_json
from ...schemas.body import TEXT_OR_LIST, Fields, JsonObject, Several, Text, type_of
from ...schemas.field_rules import (
    GENERATION_IGNORED,
    LEFT_OUT,
    LENGTH_FIELDS,
    MARKS,
    PART_RULES,
    SCHEMA_FIELDS,
    FieldRules,
    ignored,
    with_hints,
)
from ...schemas.generation_fields import RefusalPart, kind_of_part
from ...schemas.output_formats import LongFunctionName
from ...text.chat_format import ConversationMessage, FunctionCall
from .conversations import Item

STATE_ROLE: Final = "state"
"""Role of a history's first message if its content is the id of a saved state, which the other messages continue."""

_ADDED: Final = ("completed", "incomplete")
"""Statuses of responses whose output is added to their conversation."""


RESPONSES_REFUSED: Final[Mapping[str, ForeignName]] = {
    **with_hints(
        {
            LENGTH_FIELDS: "use max_output_tokens",
            f"{SCHEMA_FIELDS} output_config output_format": "use text.format",
            "logprobs n_probs": 'use include: ["message.output_text.logprobs"]',
            "messages": "use input",
            "system": "use instructions",
        }
    ),
    "max_tokens": ForeignName("use max_output_tokens"),
    "prompt": ForeignName("send the text as instructions and input"),
}

RESPONSES_IGNORED: Final = GENERATION_IGNORED | ignored("access_programs background_options context_management image")

RESPONSES_RULES: Final = FieldRules({**RESPONSES_IGNORED, **RESPONSES_REFUSED})
ITEM_RULES: Final = FieldRules(
    {
        **MARKS,
        **ignored("async caller created_by id name namespace parsed_arguments phase status"),
        "tool_calls": ForeignName("send items of the types function_call and function_call_output", ([],)),
    }
)


class ResponseTextPart(JsonObject):
    """A text of the user or of the assistant."""

    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["input_text", "output_text"]
    """Side that wrote the part."""

    text: str
    """Text of the part."""


ResponsePart = Annotated[
    Annotated[ResponseTextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(kind_of_part),
]

PartedText = Annotated[Text | Annotated[Several[ResponsePart], Tag("<list>")], TEXT_OR_LIST]


class InputItem(Fields):
    """Item of the input of a response, or of a conversation."""

    field_rules: ClassVar[FieldRules] = ITEM_RULES

    def as_messages(self) -> list[ConversationMessage]:
        """Returns the messages of the item, of which some items have none."""
        return []


class MessageItem(InputItem):
    """A message; items of responses may be sent back as they are."""

    type: Literal["message"] = "message"
    """Kind of item."""

    role: str
    """Role of the author: system, developer, user or assistant; or tool, as in a chat."""

    content: PartedText
    """Text, or parts of a text."""

    tool_call_id: str | None = None
    """Id of the call whose result the message is, for the role tool."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns the message."""
        return [ConversationMessage(self.role, _content(self.content), call_id=self.tool_call_id)]


class CallItem(InputItem):
    """A call of a function."""

    type: Literal["function_call"]
    """Kind of item."""

    call_id: str
    """Id of the call, which its result names."""

    name: LongFunctionName
    """Name of the function."""

    arguments: str
    """Arguments as JSON text."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns a message with the call."""
        return [ConversationMessage("assistant", calls=(FunctionCall(self.call_id, self.name, self.arguments),))]


class CallOutputItem(InputItem):
    """The result of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    """Kind of item."""

    call_id: str
    """Id of the call whose result this is."""

    output: PartedText
    """Result as text."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns a message with the result."""
        return [ConversationMessage("tool", _content(self.output), call_id=self.call_id)]


class CustomCallItem(InputItem):
    """A call of a tool that takes any text, made by another server."""

    type: Literal["custom_tool_call"]
    """Kind of item."""

    call_id: str
    """Id of the call, which its result names."""

    name: LongFunctionName
    """Name of the tool."""

    input: str
    """Text that the tool was given."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns a message with the call; its input is an argument."""
        arguments = json.dumps({"input": self.input}, ensure_ascii=False)
        return [ConversationMessage("assistant", calls=(FunctionCall(self.call_id, self.name, arguments),))]


class ItemReference(InputItem):
    """An item of a stored conversation or response, by its id."""

    type: Literal["item_reference"]
    """Kind of item."""

    id: str
    """Id of an item of a conversation, or of the input or output of a stored response, of the same API key."""


class OtherItem(InputItem):
    """An item that is left out: what another server's tools did, or how a model reasoned."""

    field_rules: ClassVar[FieldRules] = LEFT_OUT

    type: Literal[
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "reasoning",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    ]
    """Kind of item, which is left out and, unless it is reasoning, reported."""


_ITEM_TAGS: Final = {
    "function_call": "<function_call>",
    "function_call_output": "<function_call_output>",
    "custom_tool_call": "<custom_tool_call>",
    "custom_tool_call_output": "<function_call_output>",
    "compaction": "<compaction>",
    "item_reference": "<item_reference>",
    **dict.fromkeys(get_args(OtherItem.model_fields["type"].annotation), "<other>"),
}


def _kind_of_item(value: Any) -> str:
    return _ITEM_TAGS.get(type_of(value) or "", "<message>")


OwnItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")],
    Discriminator(_kind_of_item),
]
"""Items that this server makes of messages."""

_OWN_ITEMS: Final = TypeAdapter(list[OwnItem])
_COMPACTED: Final = "roost1."
"""How the content of this server's compaction items begins."""


class CompactionItem(InputItem):
    """The messages that `/v1/responses/compact` was given. Another server's is left out and reported."""

    type: Literal["compaction"]
    """Kind of item."""

    encrypted_content: str
    """Content as `/v1/responses/compact` returned it."""

    @property
    def is_own(self) -> bool:
        """Whether this server made the item."""
        return self.encrypted_content.startswith(_COMPACTED)

    def unpacked(self) -> list[Any]:
        """Returns the items that were compacted, which are not validated yet.

        Raises:
          ValueError: The content is damaged.
        """
        content = base64.b64decode(self.encrypted_content.removeprefix(_COMPACTED), validate=True)
        items = admission.get().parse_now(content)
        if not isinstance(items, list):
            raise ValueError("the content is not a list")
        return items


def compaction_of(messages: Sequence[ConversationMessage]) -> dict[str, Any]:
    """Returns the item that stands for messages.

    It holds them as they are: a state has the same size after any number of tokens, so no summary is needed.
    """
    items = [item for message in messages for item in items_of_message(message)]
    content = _COMPACTED + base64.b64encode(to_json(items)).decode()
    return {"id": f"cmp_{uuid4().hex}", "type": "compaction", "encrypted_content": content}


ResponseItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CompactionItem, Tag("<compaction>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_kind_of_item),
]


def left_out(param: str, items: Sequence[Any]) -> Iterator[str]:
    """Yields the names of the items of a field that are left out, for warnings."""
    for index, item in enumerate(items):
        is_foreign = isinstance(item, CompactionItem) and not item.is_own
        if is_foreign or (isinstance(item, OtherItem) and item.type != "reasoning"):
            yield f"{param}[{index}]: {item.type}"


def own_messages(items: Sequence[Any]) -> list[ConversationMessage]:
    """Returns the messages of items that this server has made, one for each.

    Raises:
      ValueError: An item is damaged.
    """
    return [message for item in _OWN_ITEMS.validate_python(items) for message in item.as_messages()]


def items_with_ids(
    response_id: str, messages: Sequence[ConversationMessage], *, is_input: bool
) -> list[dict[str, Any]]:
    """Returns the items of a response's input or output with their ids, which are always the same.

    Args:
      messages: All messages before the response's own, or the response's own.
    """
    name = response_id.removeprefix("resp_")
    items = [item for message in messages if message.role != STATE_ROLE for item in items_of_message(message)]
    if is_input:
        return [{**item, "id": f"{item['id']}_{name}_{place}"} for place, item in enumerate(items)]
    calls = itertools.count()
    return [
        {**item, "id": f"fc_{name}_c{next(calls)}" if item["type"] == "function_call" else f"{item['id']}_{name}"}
        for item in items
    ]


def items_of_message(message: ConversationMessage) -> Iterator[dict[str, Any]]:
    """Yields the items of a message, one per call. Their ids are only prefixes."""
    if message.role == "tool":
        result = {"type": "function_call_output", "call_id": message.call_id, "output": message_text(message)}
        yield {"id": "fco", **result, "status": "completed"}
        return
    if message_text(message) or not message.calls:
        yield message_item("msg", message.role, _shown_content(message))
    for call in message.calls:
        yield call_item("fc", call)


def message_item(
    item_id: str, role: str, content: Sequence[Mapping[str, Any]], status: str = "completed"
) -> dict[str, Any]:
    """Returns the item of a message."""
    return {"id": item_id, "type": "message", "role": role, "content": content, "status": status}


def call_item(item_id: str, call: FunctionCall | CallPiece, status: str = "completed") -> dict[str, Any]:
    """Returns the item of a call."""
    function = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": item_id, "type": "function_call", **function, "status": status}


def _shown_content(message: ConversationMessage) -> list[dict[str, Any]]:
    texts = [message.content] if isinstance(message.content, str) else message.content or ()
    if message.role == "assistant":
        return [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return [{"type": "input_text", "text": text} for text in texts]


def _content(content: str | list[ResponseTextPart | RefusalPart]) -> str | tuple[str, ...]:
    return content if isinstance(content, str) else tuple(part.text for part in content)


def before_turn(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the items that a response continues; if its work has run before, only the items before its own turn."""
    own = admission.get()
    if not own.is_repeated:
        return items
    turn = own.new_id("item 0"), own.new_id("response")
    return list(takewhile(lambda item: not any(each in item["id"] for each in turn), items))


def new_items(messages: Sequence[ConversationMessage]) -> list[Item]:
    """Returns the items of messages, with new ids."""
    own, items = admission.get(), (item for message in messages for item in items_of_message(message))
    return [_item({**item, "id": f"{item['id']}_{own.new_id(f'item {place}')}"}) for place, item in enumerate(items)]


def output_items(response: Mapping[str, Any]) -> list[Item]:
    """Returns the items that an ended response adds to its conversation; none if it failed or has no conversation."""
    if "conversation" not in response or response["status"] not in _ADDED:
        return []
    return [_item(item) for item in response["output"]]


def _item(fields: Mapping[str, Any]) -> Item:
    return Item(str(fields["id"]), to_json(fields))
