"""Bodies of `/v1/responses` and their conversion to a spec. Fields that no schema names are checked by `BodyCheck`."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from ....engine import Replay
from ...constraints.output_constraint import json_constraint, with_tools
from ...errors.request_errors import bad_value
from ...generation.prompts import Prompt
from ...generation.requests import sampling_params
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...generation.state_store import StoredState
from ...schemas.body import (
    TEXT_OR_LIST,
    TEXT_OR_OBJECT,
    Body,
    CacheSalt,
    Fields,
    Metadata,
    Several,
    Text,
    TopLogprobs,
    type_of,
    union,
)
from ...schemas.field_rules import LEFT_OUT, FieldRules, ignored
from ...schemas.generation_fields import SamplingFields, number
from ...schemas.output_formats import MAX_TOOLS, Function, LongFunctionName, OtherTool
from ...text.chat_format import ToolOptions
from .input_items import (
    RESPONSES_IGNORED,
    RESPONSES_REFUSED,
    RESPONSES_RULES,
    MessageItem,
    ResponseItem,
    left_out,
)

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


class ResponseTool(Function):
    """A function tool. The fields of the function are next to the type."""

    type: Literal["function"]
    """Kind of tool."""

    name: LongFunctionName
    """Name of the function."""


def _kind_of_tool(value: Any) -> str:
    return "<function>" if type_of(value) in (None, "function") else "<other>"


AnyResponseTool = Annotated[
    Annotated[ResponseTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")], Discriminator(_kind_of_tool)
]


class ResponseNamedTool(Fields):
    """The only function to call."""

    name: LongFunctionName
    """Name of the function."""

    type: Literal["function"]
    """Kind of tool."""


class ResponseAllowedTools(Fields):
    """The only tools that may be called."""

    type: Literal["allowed_tools"]
    """Kind of choice."""

    mode: Literal["auto", "required"] = "auto"
    """Whether one of the tools may or must be called."""

    tools: list[
        Annotated[
            Annotated[ResponseNamedTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")],
            Discriminator(_kind_of_tool),
        ]
    ] = Field(max_length=MAX_TOOLS)
    """Tools that may be called. Each must be in the request's `tools`."""


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if type_of(value) == "allowed_tools":
        return "<allowed>"
    return _kind_of_tool(value) if isinstance(value, dict | Fields) else None


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[ResponseNamedTool, Tag("<function>")]
    | Annotated[ResponseAllowedTools, Tag("<allowed>")]
    | Annotated[OtherTool, Tag("<other>")],
    union(_kind_of_choice, "must be a string or an object"),
]


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
    """Whether a keyword that cannot be enforced is a 400. Otherwise it is dropped and reported. A bound that cannot be
    compiled is widened and reported in both cases."""

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
    """Options of the text."""

    format: TextFormat = TextFormat(type="text")
    """Format of the text."""

    verbosity: str | None = None
    """Returned unchanged, without effect."""

    def described(self) -> dict[str, Any]:
        """Returns the options as a response shows them."""
        verbosity = {} if self.verbosity is None else {"verbosity": self.verbosity}
        return {"format": self.format.described(), **verbosity}


class ReasoningOptions(Fields):
    """How much a model is to reason. The model has no reasoning, so all fields are without effect."""

    field_rules: ClassVar[FieldRules] = LEFT_OUT

    effort: str | None = None
    """Returned unchanged, without effect."""


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
        """The tools and the tool choice.

        Raises:
          ApiError: The only tool to call is one that the server cannot run.
        """
        tools = [tool.as_tool() for tool in self.functions]
        choice, parallel = self.tool_choice, self.parallel_tool_calls
        match choice:
            case ResponseNamedTool():
                return ToolOptions(tools, "required", [choice.name], parallel=False)
            case ResponseAllowedTools():
                names = {tool.name for tool in choice.tools if isinstance(tool, ResponseNamedTool)}
                return ToolOptions(tools, choice.mode, sorted(names), parallel)
            case OtherTool():
                raise bad_value(
                    "tool_choice", f"tool_choice: this server runs no tools of the type {choice.type[:60]!r}"
                )
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
        yield from left_out("input", self.items)


class ResponseStreamOptions(Fields):
    """Options of a stream. They are accepted, and nothing is obfuscated."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


class ResponseBody(PromptFields, SamplingFields):
    """Body of `POST /v1/responses`. Sampling fields but `temperature` and `top_p` are extensions, as in chat."""

    field_rules: ClassVar[FieldRules] = RESPONSES_RULES

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
    """Number of alternatives to report for each token. Without `message.output_text.logprobs` in `include`, it is
    returned unchanged, without effect."""

    reasoning: ReasoningOptions = ReasoningOptions()
    """Its `effort` is returned unchanged; the model has no reasoning."""

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

    temperature: float | None = number("temperature")
    top_p: float | None = number("top_p")
    top_k: int | None = number("top_k")
    min_p: float | None = number("min_p")
    frequency_penalty: float = number("frequency_penalty")
    presence_penalty: float = number("presence_penalty")
    repetition_penalty: float = number("repetition_penalty")

    @property
    def dropped(self) -> Iterator[str]:
        """Names of the tools, items and inclusions that are left out, for warnings."""
        yield from super().dropped
        yield from (f"include.{name}" for name in self.include if name not in get_args(Includable))

    @property
    def wants_logprobs(self) -> bool:
        """Whether the response includes log-probabilities."""
        return LOGPROBS in self.include


_COUNT_RULES: Final = FieldRules(
    {
        **RESPONSES_IGNORED,
        **ignored(" ".join(ResponseBody.model_fields.keys() - PromptFields.model_fields.keys())),
        **{name: RESPONSES_REFUSED[name] for name in ("messages", "prompt", "system")},
    }
)
"""Rules of endpoints that use only the prompt of a response's body."""


class InputTokensBody(PromptFields):
    """Body of `POST /v1/responses/input_tokens`. Other fields of a response are ignored."""

    field_rules: ClassVar[FieldRules] = _COUNT_RULES


class CompactBody(PromptFields):
    """Body of `POST /v1/responses/compact`. Other fields of a response are ignored."""

    field_rules: ClassVar[FieldRules] = _COUNT_RULES

    model: str
    """Name of the served model; any other name is a 404."""


def generation_spec(
    body: ResponseBody,
    prompt: Prompt,
    service: Service,
    state: StoredState | None = None,
    earlier_ids: tuple[int, ...] = (),
    replay: Replay | None = None,
) -> GenerationSpec:
    """Returns the spec of a body.

    Args:
      state: Saved state that the prompt begins with; None prefills the whole prompt.
      earlier_ids, replay: See `GenerationSpec`.

    Raises:
      ApiError: The body requests something that the server cannot do.
    """
    max_tokens = body.max_output_tokens or service.model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    requested, constraint = body.text.format, None
    if requested.type != "text":
        constraint = json_constraint("text.format", requested.schema_, is_strict=requested.strict)
    return GenerationSpec(
        [prompt],
        sampling_params(body, service.model, max_tokens, logprobs=logprobs),
        with_tools(constraint, body.tool_options),
        ignore_eos=body.ignore_eos,
        may_call=bool(body.tool_options.introduced),
        state=state,
        cache_salt=body.cache_salt,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
        earlier_ids=earlier_ids,
        replay=replay,
    )
