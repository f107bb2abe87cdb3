"""Random walks through random schemas: every output matches its grammar."""

import asyncio
import functools
import json
import random
from typing import Any

import jsonschema
from hypothesis import assume, given
from hypothesis import strategies as st
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_spec import json_spec
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import Tokenizer
from sweeps import examples
from walk import TooLongError, walk

NAMES = st.text('abcé"\\ {', min_size=1, max_size=4)
TOKENIZER = synthetic_tokenizer(1024)

LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.just({"type": "number", "minimum": -3, "exclusiveMaximum": 8.5}),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 8)),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "string", "format": "date"}]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(NAMES, st.integers(0, 9), st.none()), min_size=1, max_size=3),
    ),
    st.builds(lambda value: {"const": value}, NAMES),
)


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(array, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(tuple_of, st.lists(inner, min_size=1, max_size=3)),
        st.builds(record, st.dictionaries(NAMES, inner, max_size=3), st.randoms(use_true_random=False)),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
        st.builds(lambda one: {"$defs": {}, "type": "object", "additionalProperties": one, "maxProperties": 1}, inner),
    )


def array(items: dict[str, Any], least: int, more: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


def tuple_of(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}


def record(properties: dict[str, Any], choose: random.Random) -> dict[str, Any]:
    required = [name for name in properties if choose.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = st.recursive(LEAVES, containers, max_leaves=6)


@functools.cache
def compiler_for(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.end_token_ids)


def walked(schema: dict[str, Any], tokenizer: Tokenizer, choose: random.Random) -> str:
    async def compile_and_walk() -> str:
        grammar = await compiler_for(tokenizer).compile(json_spec(schema))
        return walk(grammar.constraint(), tokenizer, tokenizer.end_token_ids, choose)

    return asyncio.run(compile_and_walk())


@examples(40, sweep=1000)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_any_walk_ends_in_json_of_the_schema(schema: dict[str, Any], seed: int) -> None:
    try:
        text = walked(schema, TOKENIZER, random.Random(seed))
    except TooLongError:
        assume(False)
    value = json.loads(text)
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)
    assert "\n" not in text


@examples(5, sweep=100)
@given(seed=st.integers(0, 2**32))
def test_any_walk_ends_in_an_object(seed: int) -> None:
    try:
        text = walked({"type": "object"}, TOKENIZER, random.Random(seed))
    except TooLongError:
        assume(False)
    assert isinstance(json.loads(text), dict)


REF = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["name", "next"],
            "additionalProperties": False,
        }
    },
}


@examples(5, sweep=100)
@given(seed=st.integers(0, 2**32))
def test_schema_may_contain_itself(demo_tokenizer: Tokenizer, seed: int) -> None:
    try:
        text = walked(REF, demo_tokenizer, random.Random(seed))
    except TooLongError:
        assume(False)
    jsonschema.validate(json.loads(text), REF, jsonschema.Draft202012Validator)
