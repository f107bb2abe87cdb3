"""Output of a model with tools: any text, or calls whose arguments match their schemas."""

import json
import random

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_spec import schema_text
from roost.server.constraints.tool_calls import CallReader, call_text, calls_spec, join_calls, text_or_calls_spec
from roost.server.text.chat_format import FunctionTool
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from sweeps import examples
from walk import spell, walk

PLACE = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Oslo", "Rome"]}},
}
TOOLS = [FunctionTool("get_weather", parameters=PLACE), FunctionTool("now")]
TOKENIZER = synthetic_tokenizer(1024)
OSLO = call_text("get_weather", '{"city": "Oslo"}')
NOW = call_text("now", "{}")


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """Compiles each grammar once."""
    return GrammarCompiler(TOKENIZER, TOKENIZER.end_token_ids)


@pytest.mark.parametrize(
    ("text", "auto", "forced", "single"),
    [
        (OSLO, True, True, True),
        (NOW, True, True, True),
        (OSLO + "\n" + NOW, True, True, False),
        (NOW + "\n", False, False, False),
        (NOW + " and so on", False, False, False),
        (call_text("get_weather", '{"city": "Paris"}'), False, False, False),
        (call_text("now", '{"city": "Oslo"}'), False, False, False),
        (call_text("other", "{}"), False, False, False),
        ("It rains.", True, False, False),
        ("", True, False, False),
        ("a " + NOW, True, False, False),
        ("<tool_cal", True, False, False),
        ("<tool_calm>", True, False, False),
        ("<tool_call>", False, False, False),
        ("<tool_call>x", False, False, False),
    ],
)
async def test_texts_that_fit(compiler: GrammarCompiler, text: str, auto: bool, forced: bool, single: bool) -> None:
    specs = {
        text_or_calls_spec(TOOLS, None, parallel=True): auto,
        calls_spec(TOOLS, parallel=True): forced,
        calls_spec(TOOLS, parallel=False): single,
    }
    for spec, fits in specs.items():
        assert spell((await compiler.compile(spec)).constraint(), TOKENIZER, text) is fits


async def test_the_text_may_have_a_schema(compiler: GrammarCompiler) -> None:
    spec = text_or_calls_spec(TOOLS, schema_text({"type": "integer"}), parallel=True)
    for text, fits in (("12", True), (NOW, True), ("twelve", False)):
        assert spell((await compiler.compile(spec)).constraint(), TOKENIZER, text) is fits


@examples(10, sweep=100)
@given(seed=st.integers(0, 2**32))
async def test_any_walk_ends_in_calls(compiler: GrammarCompiler, seed: int) -> None:
    grammar = await compiler.compile(calls_spec(TOOLS, parallel=True))
    text = walk(grammar.constraint(), TOKENIZER, TOKENIZER.end_token_ids, random.Random(seed), max_tokens=3000)
    reader = CallReader()
    shown, pieces = reader.read(text, is_last=True)
    assert (shown, reader.is_complete) == ("", True)
    schemas = {"get_weather": PLACE, "now": {"type": "object", "maxProperties": 0}}
    for call in join_calls(pieces):
        assert call.name is not None
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
