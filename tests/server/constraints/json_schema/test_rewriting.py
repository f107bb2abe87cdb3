"""Keywords that llguidance lacks become unions, which exactly the values of the schema fit."""

from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from grammars import accepts, allows, named, opened
from hypothesis import given
from hypothesis import strategies as st
from roost.server.constraints.grammar_spec import GrammarError
from roost.server.constraints.schema_preparation import prepare
from sweeps import examples

AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
KIND = {"type": "object", "properties": {"kind": {"enum": ["x", "y", "z"]}, "size": {"type": "integer"}}}
CIRCLE, SQUARE = (
    {"type": "object", "properties": {"kind": {"const": kind}, size: {"type": "integer"}}, "required": ["kind", size]}
    for kind, size in (("circle", "radius"), ("square", "side"))
)
SHAPES = {"$defs": {"circle": CIRCLE, "square": SQUARE}}

CASES = [
    (
        "one of two required properties",
        {**AB, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    (
        "one of several definitions",
        {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}], **SHAPES},
        [{"kind": "circle", "radius": 1}, {"kind": "square", "side": 1}],
        [{"kind": "circle", "side": 1}, {"kind": "x"}],
    ),
    ("one of several titles", {"type": "integer", "oneOf": [{"const": 1}, {"const": 2}]}, [1, 2], [3, "x"]),
    (
        "one of texts, lists and trees",
        {
            "oneOf": [{"type": "string"}, {"$ref": "#/$defs/t"}, {"type": "array", "items": {"$ref": "#/$defs/t"}}],
            "$defs": {"t": {"type": "object", "properties": {"t": {"$ref": "#"}}, "required": ["t"]}},
        },
        ["x", {"t": "x"}, [{"t": {"t": "x"}}]],
        [1, {}, [1]],
    ),
    (
        "one of two combinations",
        {"oneOf": [{"required": ["a", "b"]}, {"type": "object"}]},
        [1, {}, {"a": 1}],
        [{"a": 1, "b": 1}],
    ),
    ("not a property", {**AB, "not": {"required": ["b"]}}, [{}, {"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
    (
        "none of two properties",
        {**AB, "not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}},
        [{}],
        [{"a": 1}, {"b": 1}],
    ),
    ("not both", {**AB, "not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    (
        "a property that needs another",
        {**AB, "dependentRequired": {"a": ["b"]}},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    (
        "draft 4's dependencies",
        {**AB, "dependencies": {"a": ["b"], "b": {"properties": {"b": {"minimum": 5}}}}},
        [{}, {"b": 5}, {"a": 1, "b": 5}],
        [{"a": 1}, {"b": 1}],
    ),
    (
        "a required property that needs another type",
        {"required": ["a"], "dependentSchemas": {"a": {"type": "integer"}}},
        [1, "x", []],
        [{}, {"a": 1}],
    ),
    (
        "at least one property",
        {**AB, "additionalProperties": False, "minProperties": 1},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    (
        "two properties, one of which is required",
        {**AB, "additionalProperties": False, "minProperties": 2, "required": ["a"]},
        [{"a": 1, "b": 1}],
        [{"a": 1}, {"b": 1}],
    ),
    ("a list without a limit of repetitions", {"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    ("zod's names of records", {"type": "object", "propertyNames": {"type": "string"}}, [{}, {"a": 1}], [1]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), named(CASES))
def test_keyword_is_enforced_exactly(schema: Any, good: list[Any], bad: list[Any]) -> None:
    prepared = prepare(opened(schema))
    assert prepared.dropped == ()
    validator = jsonschema.Draft202012Validator(schema)
    draft4 = jsonschema.Draft4Validator(schema)
    for value, is_good in (*((each, True) for each in good), *((each, False) for each in bad)):
        assert (draft4 if "dependencies" in schema else validator).is_valid(value) == is_good, value
        assert allows(prepared.schema, value) == is_good, value


def test_union_of_closed_objects_keeps_each_closed() -> None:
    shapes = {"oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]}
    prepared = prepare(shapes)
    assert all(allows(prepared.schema, value) for value in ({"a": 1}, {"b": 1}))
    assert not any(allows(prepared.schema, value) for value in ({}, {"a": 1, "b": 1}, {"a": 1, "z": 1}))


def test_union_keeps_the_order_of_properties() -> None:
    """llguidance requires the order of the schema, which models were shown."""
    branches = [{"properties": {"b": {"const": value}}, "required": ["b"]} for value in (1, 2)]
    schema = {"type": "object", "oneOf": branches, "properties": {"a": {"type": "integer"}}}
    source = {**prepare(schema).schema}
    assert accepts(source, {"b": 1, "a": 1})
    assert not accepts(source, {"a": 1, "b": 1})


def test_branches_that_all_apply_are_dropped() -> None:
    """Models that write schemas require the properties of all branches."""
    prepared = prepare({**AB, "required": ["a", "b"], "oneOf": [{"required": ["a"]}, {"required": ["b"]}]})
    assert prepared.dropped == ("oneOf",)
    assert allows(prepared.schema, {"a": 1, "b": 1})


def test_closed_definitions_exclude_each_other() -> None:
    a, b = ({"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab")
    prepared = prepare({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": a, "b": b}})
    assert prepared.dropped == ()
    assert all(allows(prepared.schema, value) for value in ({"a": 1}, {"b": 1}))
    assert not allows(prepared.schema, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("many", "dropped"),
    [
        (
            {"oneOf": [{"required": [f"p{index}"], "minProperties": index} for index in range(3000)]},
            ["oneOf"],
        ),
        ({"oneOf": [{"enum": [*range(start, start + 500)]} for start in range(200)]}, ["oneOf"]),
        ({"oneOf": [{"required": ["a", "b"]}] * 7}, ["oneOf"]),
        ({"not": {"required": [*map(str, range(49))]}}, ["not"]),
        ({"dependentRequired": {f"p{index}": ["z"] for index in range(6)}}, ["dependentRequired"]),
        (
            {
                "properties": {f"p{index}": {} for index in range(20)},
                "additionalProperties": False,
                "minProperties": 10,
                "type": "object",
            },
            ["minProperties"],
        ),
    ],
)
def test_work_for_a_hostile_union_is_bounded(many: Any, dropped: list[str]) -> None:
    assert list(prepare(opened(many)).dropped) == dropped


def doubled(depth: int) -> dict[str, Any]:
    """Returns a schema whose definitions each include the next one twice."""
    chain = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "anyOf": [{}, {}]} for i in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": {**chain, f"d{depth}": {"type": "object"}}}


@pytest.mark.parametrize(
    "schema",
    [
        doubled(100),
        {"allOf": [{"type": "object"}] * 3000, "anyOf": [{"type": "object"}] * 3000},
        {"allOf": [{"additionalProperties": True}] * 3000, "type": "object", "required": [*map(str, range(9000))]},
        {"type": "object", "anyOf": [{"enum": [*range(3000)]}] * 3000},
        {"patternProperties": {f"^({'a?' * 63}){{{n}}}$": {} for n in range(300)}},
    ],
)
def test_work_to_find_endless_values_is_bounded(schema: Any) -> None:
    assert isinstance(prepare(schema).schema, dict)


KEYWORDS = [
    *("oneOf", "not", "if", "then", "dependencies", "contains", "type", "enum", "required", "properties"),
    *("$ref", "$id", "minProperties", "maxItems", "uniqueItems", "items", "minimum", "minLength", "allOf"),
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.sampled_from(["a", "#", "#/x", "object", 1.5])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=5)),
    max_leaves=12,
)


@examples(80, sweep=20_000)
@given(schema=st.dictionaries(st.sampled_from(["oneOf", "not", "if", "then", "properties", "allOf"]), JSON))
def test_malformed_schemas_end_in_no_error_of_the_server(schema: Any) -> None:
    with suppress(GrammarError):
        prepare(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": None, "minProperties": None},
        {"properties": "a", "allOf": [{"properties": {"b": {}}}]},
        {"oneOf": [{"allOf": None}]},
        {"oneOf": None, "not": None, "if": None, "dependencies": None},
    ],
)
def test_wrong_values_of_keywords_are_left_to_llguidance(schema: Any) -> None:
    assert isinstance(prepare(schema).schema, dict)


def test_complement_of_no_schema_is_dropped() -> None:
    assert prepare(opened({"not": None})).dropped == ("not",)


NAMES = st.sampled_from("ab")
VALUES = st.recursive(
    st.one_of(st.integers(0, 3), st.sampled_from(["", "a", "b", "ab"]), st.sampled_from([1.5, None, True])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=4,
)
SCALARS = st.sampled_from([0, 1, 2, 1.5, "a", "b", "ab", "", True, None])
REQUIRED = st.builds(lambda names: {"required": names}, st.lists(NAMES, min_size=1, max_size=2, unique=True))
CONDITIONS = st.recursive(
    st.one_of(
        REQUIRED,
        st.builds(lambda kind: {"type": kind}, st.sampled_from(["integer", "string", "object", "array", "null"])),
        st.builds(lambda value: {"const": value}, SCALARS),
        st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=3)),
        st.builds(lambda limit: {"minimum": limit}, st.integers(0, 3)),
        st.builds(lambda limit: {"type": "string", "maxLength": limit}, st.integers(0, 2)),
        st.builds(lambda limit: {"type": "array", "minItems": limit}, st.integers(0, 2)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda named: {"properties": named}, st.dictionaries(NAMES, inner, min_size=1, max_size=2)),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(lambda one, two: {"allOf": [one, two]}, inner, inner),
    ),
    max_leaves=3,
)
NAMING = st.recursive(
    st.one_of(REQUIRED, st.just({"type": "object"})),
    lambda inner: st.builds(
        lambda key, some: {key: some}, st.sampled_from(["anyOf", "allOf"]), st.lists(inner, max_size=2)
    ),
    max_leaves=3,
)
OBJECTS = st.builds(
    lambda named, more: {"type": "object", "properties": named, **more},
    st.dictionaries(NAMES, CONDITIONS, max_size=2),
    st.sampled_from([{}, {"additionalProperties": False}, {"required": ["a"]}]),
)
BASES = st.one_of(OBJECTS, CONDITIONS, st.just({}))
REWRITTEN = st.one_of(
    st.builds(
        lambda base, some: {**base, "oneOf": some},
        BASES,
        st.one_of(st.lists(each, min_size=1, max_size=3) for each in (CONDITIONS, NAMING)),
    ),
    st.builds(lambda base, one: {**base, "not": one}, BASES, st.one_of(CONDITIONS, NAMING)),
    st.builds(
        lambda base, rules: {**base, "dependentRequired": rules},
        BASES,
        st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=2),
    ),
    st.builds(lambda base, rules: {**base, "dependentSchemas": rules}, BASES, st.dictionaries(NAMES, CONDITIONS)),
    st.builds(lambda base, low: {**base, "minProperties": low}, OBJECTS, st.integers(0, 3)),
)


@examples(50, sweep=3000)
@given(schema=REWRITTEN, values=st.lists(VALUES, min_size=8, max_size=8))
def test_rewritten_schema_takes_exactly_the_valid_values(schema: Any, values: list[Any]) -> None:
    prepared = prepare(opened(schema))
    validator = jsonschema.Draft202012Validator(schema)
    for value in values:
        if validator.is_valid(value):
            assert allows(prepared.schema, value), (prepared.schema, value)
        elif not prepared.dropped:
            assert not allows(prepared.schema, value), (prepared.schema, value)


@examples(30, sweep=2000)
@given(schema=REWRITTEN, values=st.lists(VALUES, min_size=8, max_size=8))
def test_closed_rewritten_schema_takes_only_valid_values(schema: Any, values: list[Any]) -> None:
    prepared = prepare(schema)
    if not prepared.dropped:
        validator = jsonschema.Draft202012Validator(schema)
        for value in values:
            assert validator.is_valid(value) or not allows(prepared.schema, value), (prepared.schema, value)
