"""Schemas of the fields that constrain the output."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field, Tag, model_validator

from ..constraints.grammar import MAX_CHOICES
from .body import TEXT_OR_OBJECT, Body, Fields, Text
from .field_rules import FieldRules, Refusal

Choices = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
Schema = Annotated[
    Text | Annotated[dict[str, Any], Tag("<object>")],
    TEXT_OR_OBJECT,
]


class JsonSchema(Fields):
    """With `strict`, a keyword that cannot be enforced is an error; without, it is dropped and reported."""

    name: str | None = None
    """Name of the schema, without effect."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON schema of the output. Any object by default."""

    description: str | None = None
    """Description of the schema, without effect: put it into a message."""

    strict: bool = False
    """Whether a keyword that cannot be enforced is a 400. Otherwise it is dropped and reported."""


class ResponseFormat(Fields):
    """OpenAI's constraint to JSON. `schema` next to the type is llama.cpp's form."""

    field_rules: ClassVar[FieldRules] = FieldRules({"value": Refusal(instead="use schema")})

    type: Literal["text", "json_object", "json_schema"]
    """Kind of constraint. `json_object` is any JSON object, unless there is a schema."""

    json_schema: JsonSchema | None = None
    """Schema for the type `json_schema`, in OpenAI's envelope."""

    schema_: Schema | None = Field(default=None, alias="schema")
    """Schema without an envelope, as llama.cpp takes it."""

    @model_validator(mode="after")
    def _takes_its_schema(self) -> "ResponseFormat":
        has_schema = self.json_schema is not None or self.schema_ is not None
        if self.type == "text" and has_schema:
            raise ValueError("the type text takes no schema: use the type json_schema")
        if self.type == "json_schema" and not has_schema:
            raise ValueError("the type json_schema needs the field json_schema")
        return self

    @property
    def spelling(self) -> "Spelling | None":
        """The constraint; None for text."""
        if self.type == "text":
            return None
        named = self.json_schema or JsonSchema()
        return schema_spelling(
            "response_format", self.schema_ if named.schema_ is None else named.schema_, named.strict
        )


class StructuredOutputs(Fields):
    """vLLM's constraints, of which a request has exactly one. White space is always fixed here."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    """JSON schema, as an object or as text."""

    json_object: bool = False
    """Whether the output is any JSON object."""

    regex: str | None = None
    """Regular expression that the whole output matches."""

    choice: Choices | None = None
    """Strings of which the output is one."""

    grammar: str | None = None
    """Grammar in Lark's notation or in GBNF."""

    disable_any_whitespace: bool = True
    """Accepted without effect: whitespace in JSON is always fixed."""


class Spelling(NamedTuple):
    """An output constraint, in the words of `structured_outputs`.

    Attributes:
      param: Field that requests it, which errors name.
      is_strict: Whether a keyword of its schema that cannot be enforced is an error.
    """

    param: str
    outputs: StructuredOutputs
    is_strict: bool = False


def schema_spelling(param: str, schema: str | dict[str, Any] | None, is_strict: bool = False) -> Spelling:
    """Returns the constraint to JSON of a schema, or to any object without one."""
    outputs = StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json=schema)
    return Spelling(param, outputs, is_strict)


class StructuredFields(Body):
    """Constraints on the output, of which a request has at most one.

    `json_schema` and `grammar` are llama.cpp's, `regex` and `ebnf` are SGLang's; empty texts of these four constrain
    nothing.
    """

    response_format: ResponseFormat | None = None
    """OpenAI's constraint of the output to JSON; text by default."""

    structured_outputs: StructuredOutputs | None = None
    """vLLM's constraint of the output: one of JSON, a regular expression, a choice or a grammar."""

    json_schema: Schema | None = None
    """JSON schema of the output, as an object or as text; llama.cpp's name."""

    grammar: str | None = None
    """Grammar of the output in Lark's notation or in GBNF; llama.cpp's name. An empty text constrains nothing."""

    regex: str | None = None
    """Regular expression that the whole output matches; SGLang's name. An empty text constrains nothing."""

    ebnf: str | None = None
    """Grammar of the output in Lark's notation or in GBNF; SGLang's name. An empty text constrains nothing."""
