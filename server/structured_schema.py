"""What clients may send to have an answer keep to something."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, Tag

from .grammar import MAX_CHOICES
from .schema_base import TEXT_OR_OBJECT, Body, Fields, Text


class JsonSchema(Fields):
    """`strict` changes nothing: an answer always keeps to its schema."""

    name: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool = False


class ResponseFormat(Fields):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


Choices = Annotated[list[str], FailFast(), Field(min_length=1, max_length=MAX_CHOICES)]
Schema = Annotated[
    Text | Annotated[dict[str, Any], Tag("<object>")],
    TEXT_OR_OBJECT,
]


class StructuredOutputs(Fields):
    """vLLM's way to ask for more than JSON; one of them. White space is never free here."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    json_object: bool = False
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = True


class StructuredFields(Body):
    """What an answer has to keep to; one of them. The last four are vLLM's older names."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
