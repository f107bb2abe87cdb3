"""Requests of the Python API, on the service of HTTP around an engine that counts."""

from collections.abc import Sequence

import pytest
from fake_engine import FakeEngine
from fake_server import make_service
from roost.server.llm import requests
from roost.server.llm.outputs import RequestOutput
from roost.server.llm.requests import ChatOptions
from roost.server.llm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from roost.server.text.served_model import ServedModel

QUESTION = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


async def answers(
    engine: FakeEngine,
    model: ServedModel,
    wanted: StructuredOutputsParams | None = None,
    options: ChatOptions = ChatOptions(),  # noqa: B008 - never changed
) -> Sequence[RequestOutput]:
    """Returns the outputs of a chat without `max_tokens`."""
    body = requests.chat_fields(QUESTION, SamplingParams(structured_outputs=wanted), options)
    generated = requests.outputs(make_service(engine, model), body, kind=RequestOutputKind.CUMULATIVE)
    return [output async for output in generated]


async def test_schema_without_additional_properties_ends(engine: FakeEngine, model: ServedModel) -> None:
    engine.says = model.tokenizer.encode('{"mood": "sad", "another key": 1}')
    schema = {"type": "object", "properties": {"mood": {"enum": ["glad", "sad"]}}}
    output = (await answers(engine, model, StructuredOutputsParams(json=schema)))[-1]
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ('{"mood": "sad"}', "stop")
    assert output.warnings == ()


async def test_constrained_output_without_max_tokens_has_a_limit(
    engine: FakeEngine, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = StructuredOutputsParams(regex="(?s:.*)")
    monkeypatch.setattr(requests, "MAX_CONSTRAINED_TOKENS", 3)
    *before, last = await answers(engine, model, endless)
    assert (len(last.outputs[0].token_ids), last.outputs[0].finish_reason) == (3, "length")
    assert last.warnings == ("max_tokens: the default of 3 ended the output",)
    assert {output.warnings for output in before} == {()}


async def test_limit_of_constrained_outputs_is_16384_tokens(engine: FakeEngine, model: ServedModel) -> None:
    engine.says = model.tokenizer.encode("yes")
    await answers(engine, model, StructuredOutputsParams(choice=["yes"]))
    await answers(engine, model, options=ChatOptions(tools=[TOOL]))
    await answers(engine, model)
    chosen, called, free = (request.params.max_tokens for request in engine.requests)
    assert chosen == called == 16_384
    assert free is not None
    assert free > 16_384
