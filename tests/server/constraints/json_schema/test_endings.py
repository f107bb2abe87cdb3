"""No grammar of a schema begins what cannot end."""

import json
import random
from typing import Any

import jsonschema
import pytest
from grammars import allows, named, random_text
from roost.server.constraints.schema_preparation import prepare

LEFT = {"type": "object", "properties": {"left": {"$ref": "#/$defs/left"}}, "required": ["left"]}
ITEMS = {"type": "array", "items": {"$ref": "#/$defs/items"}, "minItems": 2}
NEVER = {"allOf": [{"type": "string"}, {"type": "integer"}]}
ENDLESS = {"$defs": {"left": LEFT, "items": ITEMS, "never": NEVER}}
SIDES = {
    "type": "object",
    "patternProperties": {"^(north|south|east|west)$": {"type": "null"}},
    "additionalProperties": False,
    "required": ["west"],
}

ENDING = [
    ("a pattern whose only name is declared", {**SIDES, "patternProperties": {"^west$": {"type": "null"}}}),
    (
        "a pattern whose names are all declared",
        {
            "type": "object",
            "properties": {"a1": {"type": "null"}, "a2": {"type": "null"}},
            "patternProperties": {"^a[12]$": {}},
            "required": ["a1", "a2"],
        },
    ),
    (
        "a number of a pattern's names, some of which exclude each other",
        {
            **SIDES,
            "minProperties": 3,
            "allOf": [
                {"dependencies": {"east": {"anyOf": [{"required": ["north"]}, {"required": ["south"]}]}}},
                {"dependencies": {"north": {"not": {"required": ["east"]}}, "south": {"not": {"required": ["east"]}}}},
            ],
        },
    ),
    ("a property that needs one that is excluded", {**SIDES, "dependentRequired": {"north": ["up"]}}),
    ("a branch that contains itself", {"anyOf": [{"$ref": "#/$defs/left"}, {"type": "null"}], **ENDLESS}),
    ("a list that contains itself", {"anyOf": [{"$ref": "#/$defs/items"}, {"type": "null"}], **ENDLESS}),
    (
        "lists and objects that contain each other",
        {
            "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}],
            "$defs": {
                "a": {"type": "array", "prefixItems": [{"$ref": "#/$defs/b"}], "minItems": 1},
                "b": {"allOf": [{"properties": {"a": {"$ref": "#/$defs/a"}}}, {"type": "object", "required": ["a"]}]},
            },
        },
    ),
    (
        "an optional property that contains itself",
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"$ref": "#/$defs/left"}}, **ENDLESS},
    ),
    (
        "a reference to a contradiction",
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"$ref": "#/$defs/never"}}, **ENDLESS},
    ),
]


@pytest.mark.parametrize("schema", named(ENDING))
def test_every_walk_through_the_grammar_ends(schema: Any) -> None:
    prepared = prepare(schema)
    assert prepared.dropped == ()
    for seed in range(12):
        jsonschema.validate(json.loads(random_text(prepared.schema, random.Random(seed))), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/left", **ENDLESS},
        {"$ref": "#/$defs/items", **ENDLESS},
        {"anyOf": [{"$ref": "#/$defs/left"}, {"$ref": "#/$defs/items"}, {"$ref": "#/$defs/never"}], **ENDLESS},
        {"type": "object", "properties": {"a": NEVER}, "required": ["a"]},
        {"$ref": "#"},
        {"not": {}},
    ],
)
def test_schema_without_a_value_that_ends_is_recognised(schema: Any) -> None:
    assert prepare(schema).schema is None


def test_value_within_itself_is_allowed_where_it_may_end() -> None:
    tree = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"items": {"$ref": "#"}}}, "required": ["b"]}
    assert allows(prepare(tree).schema, {"a": {"b": []}, "b": [{"b": 1}]})
    part = {
        "allOf": [{"$ref": "#/$defs/n"}, {"required": ["n"]}],
        "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}},
    }
    assert allows(prepare(part).schema, {"n": {"n": {}}})


def test_deep_values_end() -> None:
    chain = {f"d{i}": {"properties": {"n": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["n"]} for i in range(50)}
    value: dict[str, Any] = {}
    for _ in range(50):
        value = {"n": value}
    assert allows(prepare({"$ref": "#/$defs/d0", "$defs": {**chain, "d50": {}}}).schema, value)
