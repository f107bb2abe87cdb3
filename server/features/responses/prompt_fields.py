"""Fields of `/v1/responses` that determine the prompt, and bodies that have them, too."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, field_validator, model_validator

from ...schemas.body import TEXT_OR_LIST, TEXT_OR_OBJECT, Body, Fields, Several, Text
from ...schemas.field_rules import FieldRules
from ...schemas.tools import MAX_TOOLS, OtherTool
from ...text.conversation import ToolOptions
from .field_rules import COUNT_RULES, TEXT_OPTIONS_RULES
from .input_items import CompactionItem, MessageItem, OtherItem, ResponseItem, is_own_compaction
from .tools import AnyResponseTool, ResponseAllowedTools, ResponseNamedTool, ResponseTool, ResponseToolChoice


class TextFormat(Fields):
    """Format of the text. The fields of the schema are next to the type."""

    type: Literal["text", "json_object", "json_schema"]
    """Kind of text; `json_object` is any JSON object."""

    name: str | None = None
    """Name of the schema, without effect."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON schema of the text, for the type `json_schema`."""

    description: str | None = None
    """Description of the schema, without effect."""

    strict: bool = False
    """Whether a keyword that cannot be enforced is a 400. Otherwise it is dropped and reported."""

    @model_validator(mode="after")
    def _is_whole(self) -> "TextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("the type json_schema needs schema")
        if self.type != "json_schema" and self.schema_ is not None:
            raise ValueError(f"the type {self.type} takes no schema: use the type json_schema")
        return self

    def described(self) -> dict[str, Any]:
        """Returns the format as a response shows it, with all fields of a schema."""
        sent = self.model_dump(by_alias=True, exclude_unset=True)
        return {"name": "", "description": None, "strict": False, **sent} if self.type == "json_schema" else sent


class ResponseText(Fields):
    """Options of the text. `verbosity` is ignored."""

    field_rules: ClassVar[FieldRules] = TEXT_OPTIONS_RULES

    format: TextFormat = TextFormat(type="text")
    """Format of the text."""


class ConversationReference(Fields):
    """A conversation."""

    id: str
    """Id of the conversation."""


class PromptFields(Body):
    """Fields that determine the prompt."""

    input: Annotated[Text | Annotated[Several[ResponseItem], Tag("<list>")], TEXT_OR_LIST] = Field(default_factory=list)
    """Text of the user, or items of the conversation, oldest first. It may be left out if `previous_response_id` or
    `conversation` has messages."""

    instructions: str | None = None
    """System text in front of the conversation. Later responses don't inherit it."""

    previous_response_id: str | None = None
    """Id of a stored response that this one continues. Not with `conversation`."""

    conversation: Annotated[Text | Annotated[ConversationReference, Tag("<object>")], TEXT_OR_OBJECT] | None = None
    """Conversation that the response continues, and to which its input and output are added: an id, or an object with
    the id."""

    from_state: str | None = None
    """Id of a saved state that the input continues; the input is only the text after the state. Not with
    `previous_response_id` or `conversation`."""

    truncation: Literal["auto", "disabled"] = "disabled"
    """Returned unchanged, without effect: a conversation cannot exceed the state, which has no maximum length."""

    text: ResponseText = ResponseText()
    """Options of the text, such as a JSON schema."""

    tools: list[AnyResponseTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    """Functions that the model may call. Tools of other types are left out and reported."""

    tool_choice: ResponseToolChoice = "auto"
    """Whether the model may or must call a function, or which one."""

    parallel_tool_calls: bool = True
    """Whether a response may hold several calls."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the checkpoint's chat template, as in vLLM. Gemma's own format has none."""

    @field_validator("input", mode="before")
    @classmethod
    def _has_one_compaction(cls, value: Any) -> Any:
        """Checks before anything is parsed: the messages in a compaction item count for as much as those of a body."""
        items = value if isinstance(value, list) else ()
        if sum(isinstance(item, dict) and is_own_compaction(item.get("encrypted_content")) for item in items) > 1:
            raise ValueError("several compaction items: send the newest, which holds the others' messages")
        return value

    @property
    def conversation_id(self) -> str | None:
        """Id of the conversation that the response continues; None without one."""
        return self.conversation.id if isinstance(self.conversation, ConversationReference) else self.conversation

    @property
    def functions(self) -> list[ResponseTool]:
        """The tools that the model may call. The server does not run tools itself."""
        return [tool for tool in self.tools if isinstance(tool, ResponseTool)]

    @property
    def tool_options(self) -> ToolOptions:
        """The tools and the tool choice, which must not be a tool of another type."""
        tools = [tool.as_tool() for tool in self.functions]
        choice, parallel = self.tool_choice, self.parallel_tool_calls
        match choice:
            case ResponseNamedTool():
                return ToolOptions(tools, "required", [choice.name], parallel=False)
            case ResponseAllowedTools():
                return ToolOptions(tools, choice.mode, choice.names, parallel)
            case OtherTool():
                raise ValueError(f"{choice.type} is no function")
        return ToolOptions(tools, choice, parallel=parallel)

    @property
    def items(self) -> Sequence[ResponseItem]:
        """Items of the input. A text is a message of the user."""
        return [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    @property
    def dropped(self) -> Iterator[str]:
        """Names of the tools and items that are left out, for warnings."""
        for index, tool in enumerate(self.tools):
            if isinstance(tool, OtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, item in enumerate(self.input if isinstance(self.input, list) else ()):
            is_foreign = isinstance(item, CompactionItem) and not item.is_own
            if is_foreign or (isinstance(item, OtherItem) and item.type != "reasoning"):
                yield f"input[{index}]: {item.type}"


class InputTokensBody(PromptFields):
    """Body of `POST /v1/responses/input_tokens`. Other fields of a response are ignored."""

    field_rules: ClassVar[FieldRules] = COUNT_RULES


class CompactBody(PromptFields):
    """Body of `POST /v1/responses/compact`. Other fields of a response are ignored."""

    field_rules: ClassVar[FieldRules] = COUNT_RULES

    model: str
    """Name of the served model; any other name is a 404."""
