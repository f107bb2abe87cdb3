"""The Python API has what HTTP has: a new field of a body or a setting is added here, or left out knowingly."""

from dataclasses import fields

from roost.server.llm.local_model import ModelSettings
from roost.server.llm.requests import ChatOptions
from roost.server.llm.sampling_params import SamplingParams, StructuredOutputsParams
from roost.server.schemas.generation_fields import ChatFields, CompletionFields, GenerationFields
from roost.server.schemas.output_formats import StructuredOutputs
from roost.server.settings import all_settings

LEFT_OUT = {
    "model": "there is only one",
    "return_token_ids": "outputs always hold them",
    "truncation_side": "vLLM's parameters have no such thing",
    "queue_timeout": "nobody else is in the queue",
    **dict.fromkeys(("response_format", "json_schema", "grammar", "regex", "ebnf"), "structured_outputs"),
}


def test_every_field_of_a_request_is_a_parameter() -> None:
    names = {each.name for each in fields(SamplingParams)} - {"output_kind"}
    assert names - CompletionFields.model_fields.keys() == set()
    assert GenerationFields.model_fields.keys() - names == LEFT_OUT.keys()


def test_every_constraint_is_one_of_https() -> None:
    aliases = {field.alias or name for name, field in StructuredOutputs.model_fields.items()}
    assert {each.name for each in fields(StructuredOutputsParams)} == aliases - {"disable_any_whitespace"}


def test_every_option_of_a_chat_is_a_field() -> None:
    assert ChatOptions.__annotations__.keys() <= ChatFields.model_fields.keys()


def test_every_setting_is_one_of_the_servers() -> None:
    assert ModelSettings.__annotations__.keys() <= all_settings().model_fields.keys()
    assert "coordinator" not in ModelSettings.__annotations__
