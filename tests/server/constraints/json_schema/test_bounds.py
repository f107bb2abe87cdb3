"""Bounds of numbers, lengths and counts: those that llguidance cannot compile are widened and reported."""

from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from grammars import allows, matcher_of, named
from hypothesis import given
from hypothesis import strategies as st
from roost.server.constraints.schema_preparation import prepare
from sweeps import examples

WIDENED = [
    (
        "zod's int64",
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"maximum": 2**63 - 1},
        ["minimum"],
    ),
    ("zod's uint64", {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, {"minimum": 0}, ["maximum"]),
    ("zod's float32", {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38}, {}, ["minimum", "maximum"]),
    ("numbers of many digits", {"type": "number", "minimum": 1.5e17}, {"minimum": 10**17}, ["minimum"]),
    ("integers of many digits", {"type": "integer", "minimum": 10**19}, {"minimum": 10**18 - 128}, ["minimum"]),
    ("negative ones", {"type": "integer", "maximum": -(10**19)}, {"maximum": -(10**18) + 128}, ["maximum"]),
    ("no double", {"type": "integer", "maximum": 2**53 + 1}, {"maximum": 2**53 + 2}, ["maximum"]),
    ("no power of ten", {"type": "number", "maximum": 2**54}, {"maximum": 10**17}, ["maximum"]),
    ("a tiny minimum", {"type": "number", "minimum": 1e-100}, {"exclusiveMinimum": 0}, ["minimum"]),
    ("a tiny maximum", {"type": "number", "maximum": -1e-100}, {"exclusiveMaximum": 0}, ["maximum"]),
    (
        "a tiny minimum of draft 4",
        {"minimum": 1e-99, "exclusiveMinimum": True},
        {"exclusiveMinimum": 0},
        ["exclusiveMinimum"],
    ),
    ("beside another bound", {"minimum": 1e-99, "exclusiveMinimum": 5}, {"exclusiveMinimum": 5}, ["minimum"]),
    ("a long text", {"type": "string", "maxLength": 2**32}, {}, ["maxLength"]),
    ("a longer text", {"type": "string", "minLength": 2**32}, {"minLength": 2**32 - 1}, ["minLength"]),
    ("a long list", {"type": "array", "maxItems": 2**64}, {}, ["maxItems"]),
    ("a longer list", {"type": "array", "minItems": 1e30}, {"minItems": 2**63 - 1}, ["minItems"]),
    ("a large object", {"type": "object", "maxProperties": 1e30}, {}, ["maxProperties"]),
    ("multiples of a large number", {"type": "integer", "multipleOf": 2**40}, {"multipleOf": 2**16}, ["multipleOf"]),
    ("multiples of many digits", {"type": "number", "multipleOf": 0.12345}, {"multipleOf": 1e-05}, ["multipleOf"]),
    ("multiples of a tiny number", {"type": "number", "multipleOf": 1e-100}, {}, ["multipleOf"]),
    (
        "a range between integers",
        {"exclusiveMinimum": 1, "maximum": 1.5},
        {"exclusiveMinimum": 1, "maximum": 1.5},
        ["exclusiveMinimum"],
    ),
    ("integers with a point", {"type": "array", "minItems": 1.0, "maxItems": 2.0}, {"minItems": 1, "maxItems": 2}, []),
    ("lengths with a point", {"type": "string", "maxLength": 10.0}, {"maxLength": 10}, []),
    (
        "a double",
        {"type": "integer", "minimum": -(2**62), "maximum": 2**62},
        {"minimum": -(2**62), "maximum": 2**62},
        [],
    ),
]


@pytest.mark.parametrize(("schema", "bounds", "widened"), named(WIDENED))
def test_bound_is_widened_to_the_nearest_that_compiles(schema: Any, bounds: Any, widened: list[str]) -> None:
    prepared = prepare({"anyOf": [schema]})
    assert prepared.schema is not None
    (branch,) = prepared.schema["anyOf"]
    assert {key: value for key, value in branch.items() if key != "type"} == bounds
    assert (list(prepared.widened), prepared.dropped) == (widened, ())
    assert matcher_of(prepared.schema) is not None


@pytest.mark.parametrize("schema", [{"minimum": "1"}, {"maxLength": 1.5}, {"maxItems": -1}, {"multipleOf": 0}])
def test_malformed_bound_is_left_to_llguidance(schema: Any) -> None:
    prepared = prepare(schema)
    assert (prepared.schema, prepared.widened) == (schema, ())


def test_counts_with_a_point_are_enforced() -> None:
    prepared = prepare({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2.0})
    assert (allows(prepared.schema, {"a": 1, "b": 1}), allows(prepared.schema, {"a": 1})) == (True, False)


SMALL = [0, 1, -1, 0.5, -0.5, 1.5, 0.25, -2.75, 10, 12.5, 1e-100, -1e-100]
LARGE = [2**53, 2**53 + 1, 10**17, 10**18, 2**62, 2**63 - 1, 2**63, 2**64, 1e19, 3.4028234663852886e38]
ENDS = st.sampled_from([*SMALL, *LARGE, *(-end for end in LARGE)])
BOUNDS = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", "number"])},
    optional=dict.fromkeys(("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"), ENDS),
)
STEPS = [Decimal(step) for step in ("0", "1", "-1", "0.5", "-0.25", "0.001", "-1e-90")]


@examples(100, sweep=5000)
@given(schema=BOUNDS, end=ENDS, step=st.sampled_from(STEPS))
def test_number_outside_an_enforced_bound_is_refused(schema: Any, end: float, step: Decimal) -> None:
    prepared = prepare(schema)
    matcher = matcher_of(prepared.schema)
    value = Decimal(str(end)) + step
    text = format(value, "f").encode()
    if matcher is None or matcher.try_consume_tokens([*text]) < len(text) or not matcher.is_accepting():
        return
    exact = {key: Decimal(str(limit)) for key, limit in schema.items() if key not in ("type", *prepared.widened)}
    jsonschema.validate(value, exact, jsonschema.Draft202012Validator)
