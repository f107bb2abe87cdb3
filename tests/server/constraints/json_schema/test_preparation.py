"""Rewritten JSON schemas: dropping keywords only widens the language, and objects are closed as a whole."""

import re
from typing import Any

import jsonschema
import pytest
from grammars import allows, named, opened
from hypothesis import given
from hypothesis import strategies as st
from roost.server.constraints.grammar_spec import GrammarError
from roost.server.constraints.schema_objects import few
from roost.server.constraints.schema_preparation import prepare
from sweeps import examples

NAMES_AND_NUMBERS = {
    "type": "object",
    "propertyNames": {"enum": ["a", "b"]},
    "additionalProperties": {"type": "integer"},
}
COLORS = {"$defs": {"Color": {"enum": ["red", "blue"], "type": "string"}}}

DROPPED = [
    (
        "a set of pydantic's",
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        [1, 1],
        ["uniqueItems"],
    ),
    (
        "contains",
        {"type": "array", "contains": {"type": "integer"}, "minContains": 2},
        ["a"],
        ["contains", "minContains"],
    ),
    ("not", {"type": "object", "properties": {"a": {"not": {"pattern": "b"}}}}, {"a": "b"}, ["not"]),
    ("if", {"if": {"pattern": "b"}, "then": {"minLength": 5}, "else": {}}, "b", ["if", "then", "else"]),
    ("look-ahead", {"type": "string", "pattern": "^(?=a)b"}, "x", ["pattern"]),
    ("a word's border", {"type": "string", "pattern": r"\bfoo\b"}, "x", ["pattern"]),
    ("a back reference", {"type": "string", "pattern": r"(a)\1"}, "x", ["pattern"]),
    (
        "a number of properties with patterns",
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}, "minProperties": 1},
        {},
        ["minProperties"],
    ),
    (
        "many dependencies",
        {"type": "object", "dependentRequired": {name: ["z"] for name in "abcdefgh"}},
        {"a": 1},
        ["dependentRequired"],
    ),
    ("not within a union", {"anyOf": [{"type": "integer", "not": {"multipleOf": 5}}, {"type": "null"}]}, 5, ["not"]),
    ("branches that overlap", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, 5, ["oneOf"]),
    (
        "names by a list and a pattern",
        {"propertyNames": {"enum": ["a", "b"], "pattern": "a"}},
        {"c": 1},
        ["propertyNames"],
    ),
    ("dynamic references", {"type": "array", "items": {"$dynamicRef": "#node"}}, [1], ["$dynamicRef"]),
]


@pytest.mark.parametrize(("schema", "value", "dropped"), named(DROPPED))
def test_unenforceable_keyword_is_dropped_and_reported(schema: Any, value: Any, dropped: list[str]) -> None:
    prepared = prepare(opened(schema))
    assert list(prepared.dropped) == dropped
    assert allows(prepared.schema, value)


ENFORCED = [
    ("dict[Literal, int]", NAMES_AND_NUMBERS, [{"a": 1}, {"a": 1, "b": 2}], [{"c": 1}, {"a": "x"}]),
    (
        "dict[Color, int]",
        {
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/Color"},
            "additionalProperties": {"type": "integer"},
            **COLORS,
        },
        [{"red": 1}],
        [{"green": 1}],
    ),
    (
        "zod's strict objects",
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"not": {}}},
        [{"a": 1}],
        [{"a": 1, "b": 2}],
    ),
    ("a date", {"type": "string", "format": "date"}, ["2024-01-31"], ["yesterday"]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), named(ENFORCED))
def test_enforceable_keyword_is_enforced(schema: Any, good: list[Any], bad: list[Any]) -> None:
    prepared = prepare(opened(schema))
    assert prepared.dropped == ()
    assert all(allows(prepared.schema, value) for value in good)
    assert not any(allows(prepared.schema, value) for value in bad)


@pytest.mark.parametrize("name", ["path", "base64", "int32"])
def test_unknown_format_is_an_annotation(name: str) -> None:
    prepared = prepare({"type": "string", "format": name, "contentEncoding": "base64"})
    assert prepared.dropped == ()
    assert allows(prepared.schema, "x")


FEW = {
    "^a$": ["a"],
    "^$": [""],
    "^[a-c]$": ["a", "b", "c"],
    "^line[12](?:left|right)$": None,
    "^name:(?:en|nl|)$": ["name:en", "name:nl", "name:"],
    "^contacts:([0-2]{1}):mail$": ["contacts:0:mail", "contacts:1:mail", "contacts:2:mail"],
    **dict.fromkeys(["a", "^a|b$", "^a*$", "^a.$", "^[^a]$", r"^\d$", "^(a|b*)$", "^(?i:a)$", "^[z-a]$", "^[]$"]),
    f"^({'a|' * 99})$": None,
}


@pytest.mark.parametrize(("pattern", "names"), FEW.items())
def test_few_names_of_a_pattern(pattern: str, names: list[str] | None) -> None:
    assert few(pattern) == names
    assert all(re.search(pattern, name) for name in names or ())


A, B = ({"type": "object", "properties": {name: {"type": "integer"}}} for name in "ab")
DRAFT_4 = {"$schema": "http://json-schema.org/draft-04/schema#"}
TREE = {
    "type": "object",
    "properties": {"kind": {"type": "string"}, "child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
}

CLOSED = [
    ("an object", A, [{"a": 1}, {}], [{"a": 1, "z": 1}]),
    ("no properties at all", {"type": "object", "properties": {}}, [{}], [{"z": 1}]),
    ("within another", {"type": "object", "properties": {"x": A}}, [{"x": {"a": 1}}], [{"x": {"z": 1}}]),
    ("in a list", {"type": "array", "items": A}, [[{"a": 1}]], [[{"z": 1}]]),
    ("one of several", {"anyOf": [A, B]}, [{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}, {"z": 1}]),
    ("put together", {"allOf": [A, B]}, [{"a": 1, "b": 1}, {"a": 1}], [{"a": 1, "z": 1}]),
    (
        "put together by references",
        {"allOf": [{"$ref": "#/$defs/A"}, B], "$defs": {"A": A}},
        [{"a": 1, "b": 1}],
        [{"a": 1, "z": 1}],
    ),
    (
        "a definition that is a part here, and whole there",
        {
            "type": "object",
            "properties": {"part": {"allOf": [{"$ref": "#/$defs/A"}, B]}, "whole": {"$ref": "#/$defs/A"}},
            "$defs": {"A": A},
        },
        [{"part": {"a": 1, "b": 1}, "whole": {"a": 1}}],
        [{"whole": {"a": 1, "b": 1}}, {"part": {"z": 1}}],
    ),
    (
        "pydantic's way to describe a reference",
        {
            "type": "object",
            "properties": {"x": {"allOf": [{"$ref": "#/$defs/A"}], "description": "d"}},
            "$defs": {"A": A},
        },
        [{"x": {"a": 1}}],
        [{"x": {"z": 1}}],
    ),
    ("a tree", TREE, [{"kind": "a", "child": {"kind": "b", "child": None}}], [{"child": {"z": 1}}]),
    (
        "properties beside a union",
        {"type": "object", "properties": {"kind": {"type": "string"}}, "anyOf": [A, B]},
        [{"kind": "x", "a": 1}, {"kind": "x", "b": 1}],
        [{"kind": "x", "z": 1}],
    ),
    (
        "a condition",
        {**A, "if": {"properties": {"a": {"const": 1}}}, "then": {"properties": {"c": {"type": "integer"}}}},
        [{"a": 1, "c": 2}],
        [{"a": 1, "z": 2}],
    ),
    (
        "a tree in pydantic's way",
        {
            "type": "object",
            "properties": {"a": {}, "b": {"allOf": [{"$ref": "#"}, {"title": "B"}], "description": "d"}},
        },
        [{"a": 1, "b": {"b": {"a": 1}}}],
        [{"b": {"z": 1}}, {"z": 1}],
    ),
    (
        "a tree whose reference has other keywords",
        {"type": "object", "properties": {"a": {}, "b": {"$ref": "#", "nullable": True, "readOnly": True}}},
        [{"a": 1, "b": {"b": {"a": 1}}}],
        [{"b": {"z": 1}}],
    ),
    (
        "a tree of branches with a type",
        {
            "type": "object",
            "anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/T"}],
            "$defs": {"A": A, "T": {"type": "object", "properties": {"t": {"$ref": "#"}}, "required": ["t"]}},
        },
        [{"a": 1}, {"t": {"t": {"a": 1}}}],
        [{"z": 1}, {"t": {"z": 1}}, {"t": {"a": 1}, "a": 1}],
    ),
    (
        "a definition with an anchor",
        {"$ref": "#a", "$defs": {"A": {"$anchor": "a", **A}}},
        [{"a": 1}],
        [{"a": 1, "z": 1}],
    ),
    (
        "draft 4's anchors",
        {**DRAFT_4, "allOf": [{"$ref": "#a"}, B], "definitions": {"A": {"id": "#a", **A}}},
        [{"a": 1, "b": 1}],
        [{"a": 1, "z": 1}],
    ),
    (
        "definitions with URIs",
        {
            "$id": "https://example.com/x/all",
            "allOf": [{"$ref": "a"}, {"$ref": "https://example.com/x/all#/$defs/B"}, {"$ref": "a#c"}],
            "$defs": {"A": {"$id": "a", **A, "$defs": {"c": {"$anchor": "c", "properties": {"c": {}}}}}, "B": B},
        },
        [{"a": 1, "b": 1, "c": "x"}],
        [{"a": 1, "b": 1, "z": 1}],
    ),
    (
        "a branch that is closed beside one that is not",
        {**A, "anyOf": [{**A, "additionalProperties": False}, B]},
        [{"a": 1}, {"a": 1, "b": 1}],
        [{"a": 1, "b": 1, "z": 1}],
    ),
    ("unevaluated properties", {**A, "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "z": 1}]),
    ("names of properties", {**A, "propertyNames": {"pattern": "^[a-z]+$"}}, [{"a": 1}], [{"a": 1, "z": 1}]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), named(CLOSED))
def test_objects_are_closed_as_a_whole(schema: Any, good: list[Any], bad: list[Any]) -> None:
    closed = prepare(schema).schema
    assert all(allows(closed, value) for value in good)
    assert not any(allows(closed, value) for value in bad)
    assert all(allows(prepare(opened(schema)).schema, value) for value in (*good, *bad))


OPEN = [
    ("any object", {"type": "object"}, {"z": 1}),
    ("as it is written", {**A, "additionalProperties": True}, {"a": 1, "z": 1}),
    ("values of a type", {**A, "additionalProperties": {"type": "integer"}}, {"z": 1}),
    ("a part that is open", {"allOf": [{**A, "additionalProperties": True}, B]}, {"a": 1, "z": 1}),
]


@pytest.mark.parametrize(("schema", "value"), named(OPEN))
def test_explicitly_open_object_stays_open(schema: Any, value: Any) -> None:
    assert allows(prepare(schema).schema, value)


UNDECLARED = [
    ("a required property", {**A, "required": ["a", "b"]}, [{"a": 1, "b": "x"}], [{"a": 1}, {"b": 1}]),
    ("a part's required property", {"allOf": [A, {"required": ["b"]}]}, [{"a": 1, "b": "x"}, {"b": []}], [{"a": 1}]),
    (
        "a branch's required property",
        {**A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}],
        [{}],
    ),
    (
        "one of two required properties",
        {**A, "oneOf": [{"required": ["b"]}, {"required": ["c"]}]},
        [{"b": "x"}, {"a": 1, "c": "x"}],
        [{}, {"a": 1}, {"b": 1, "c": 1}],
    ),
    (
        "a property that another requires",
        {**A, "dependentRequired": {"a": ["b"]}},
        [{}, {"b": "x"}, {"a": 1, "b": "x"}],
        [{"a": 1}],
    ),
    (
        "a required property of a pattern",
        {**A, "patternProperties": {"^x-": {"type": "integer"}}, "required": ["x-b"]},
        [{"a": 1, "x-b": 2}, {"x-b": 2}],
        [{"a": 1}, {"x-b": "x"}],
    ),
    (
        "an object that closes itself, and its branches",
        {**A, "additionalProperties": False, "anyOf": [{"required": ["a"]}, B]},
        [{"a": 1}],
        [{"b": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), named(UNDECLARED))
def test_a_closed_object_allows_just_what_is_declared_or_required(schema: Any, good: list[Any], bad: list[Any]) -> None:
    prepared = prepare(schema)
    assert prepared.dropped == ()
    assert all(allows(prepared.schema, value) for value in good)
    assert not any(allows(prepared.schema, value) for value in (*bad, *({**value, "z": 1} for value in good)))


LIST = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
NAMED_PART = {"properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}

IDENTIFIED = [
    ("of the whole", {"$id": "https://example.com/a", **LIST}, {"next": {"next": {}}}, {"next": 1}),
    ("in draft 4", {**DRAFT_4, "id": "https://example.com/a", **LIST}, {"next": {"next": {}}}, {"next": 1}),
    (
        "of a part with definitions",
        {"properties": {"a": {"$id": "part", **NAMED_PART}}},
        {"a": {"n": 1}},
        {"a": {"n": "x"}},
    ),
    (
        "of a part with references to the whole",
        {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$id": "/a", "items": {"$ref": "#/$defs/n"}}}},
        {"a": [1]},
        {"a": ["x"]},
    ),
    (
        "of a property with that name",
        {"type": "object", "properties": {"$id": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}},
        {"$id": 1},
        {"$id": "x"},
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), named(IDENTIFIED))
def test_references_hold_beside_an_identifier(schema: Any, good: Any, bad: Any) -> None:
    prepared = prepare(schema).schema
    assert allows(prepared, good)
    assert not allows(prepared, bad)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        *(({"$ref": name}, "has no target") for name in ("#/$defs/none", "#none", "other", "other#/a", "http://[")),
        ({"$ref": "#/enum", "enum": [1]}, "does not lead to a schema"),
    ],
)
def test_error_names_the_problem(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        prepare(schema)


def test_long_chain_of_definitions_is_accepted() -> None:
    chain = {f"d{i}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(2000)}
    prepared = prepare({"$ref": "#/$defs/d0", "$defs": {**chain, "d2000": {"type": "null"}}})
    assert len(prepared.schema["$defs"]) == 2001


def test_unbounded_nesting_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="nested too deeply"):
        prepare(schema)


VALUES = st.recursive(
    st.one_of(st.integers(0, 3), st.sampled_from(["a", "b", "ab"]), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)),
    max_leaves=4,
)
LEAVES = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "string", "format": "path"},
        {"type": "null"},
        {"not": {"type": "string"}},
        {"type": "string", "pattern": "^(?!b)"},
        {"type": ["integer", "null"], "minimum": 1},
    ]
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    return st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "uniqueItems": True}, inner),
        st.builds(lambda items: {"type": "array", "contains": items}, inner),
        st.builds(lambda named: {"type": "object", "properties": named, "minProperties": 1}, properties),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"oneOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"allOf": [one], "not": two}, inner, inner),
        st.builds(
            lambda one: {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": one}, inner
        ),
    )


@examples(60, sweep=2000)
@given(schema=st.recursive(LEAVES, containers, max_leaves=4), value=VALUES)
def test_dropping_never_forbids_what_the_schema_allows(schema: Any, value: Any) -> None:
    if jsonschema.Draft202012Validator(schema).is_valid(value):
        assert allows(prepare(opened(schema)).schema, value)
