"""Schemas of the fields that constrain the output."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag

from ...text.grammar import MAX_CHOICES
from ..common.schema_base import TEXT_OR_OBJECT, Body, Fields, Text

Choices = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
Schema = Annotated[
    Text | Annotated[dict[str, Any], Tag("<object>")],
    TEXT_OR_OBJECT,
]


class JsonSchema(Fields):
    """With `strict`, a keyword that cannot be enforced is an error; without, it is dropped and reported."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool = False


class ResponseFormat(Fields):
    """OpenAI's constraint to JSON. `schema` beside the type is llama.cpp's form, `value` TGI's."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    value: Schema | None = None


class StructuredOutputs(Fields):
    """vLLM's constraints, of which a request has exactly one. White space is never free here."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    json_object: bool = False
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    disable_any_whitespace: bool = True


class StructuredFields(Body):
    """Constraints on the output, of which a request has at most one.

    `guided_*` are vLLM's older names, `json_schema` and `grammar` are llama.cpp's, `regex` and `ebnf` are SGLang's.
    Empty texts of the latter four constrain nothing.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: Schema | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
