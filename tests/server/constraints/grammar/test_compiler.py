"""Grammars of all kinds: accepted texts, and errors of grammars that cannot be compiled."""

import asyncio
import random
import weakref
from typing import Any

import pytest
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_process import Grammar, GrammarFailedError
from roost.server.constraints.grammar_spec import (
    GrammarError,
    GrammarSpec,
    choice_spec,
    json_spec,
    lark_spec,
    regex_spec,
)
from roost.server.constraints.grammar_worker.protocol import GrammarLimits
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import TokenIdsOnly, Tokenizer
from walk import allowed_ids, spell

SUM = 'start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/\n'
GBNF_SUM = """root   ::= term ("+" term)*  # of numbers and sums
term   ::= number | "(" root ")"
number ::= [0-9]{1,9}
"""
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("spec", "text", "fits"),
    [
        (json_spec(POINT), '{"x": 1, "y": -20}', True),
        (json_spec(POINT), '{"x":1,"y":2}', False),
        (json_spec(POINT), '{"y": 1, "x": 2}', False),
        (json_spec(POINT), '{"x": 1}', False),
        (json_spec({"type": "string"}), '"é \\n ☃"', True),
        (json_spec({"oneOf": [{"type": "integer"}, {"type": "string"}]}), '"a"', True),
        (json_spec({"type": "object", "x-guidance": {"lenient": True, "key_separator": ":"}}), '{"a":1}', False),
        (regex_spec("[ab]+c?"), "abac", True),
        (regex_spec("^[ab]+c?$"), "abac", True),
        (regex_spec("[ab]+c?"), "abacc", False),
        (regex_spec("a/b\\d"), "a/b5", True),
        (regex_spec(""), "", True),
        (choice_spec(["yes", "no", 'it "depends"\n']), 'it "depends"\n', True),
        (choice_spec(["yes", "no"]), "ye", False),
        (choice_spec([f"label {number}" for number in range(4000)]), "label 3999", True),
        (lark_spec(SUM), "1+22+3", True),
        (lark_spec(SUM), "1+", False),
        (lark_spec(GBNF_SUM), "1+(22+3)", True),
        (lark_spec(GBNF_SUM), "1+(22+3", False),
    ],
)
async def test_grammar_accepts_its_texts_only(
    compiler: GrammarCompiler, demo_tokenizer: Tokenizer, spec: GrammarSpec, text: str, fits: bool
) -> None:
    constraint = (await compiler.compile(spec)).constraint()
    assert spell(constraint, demo_tokenizer, text) is fits


@pytest.mark.parametrize("spec", [json_spec(POINT), choice_spec(["yes, of course", "no"]), lark_spec(GBNF_SUM)])
@pytest.mark.parametrize("num_ends", [1, 2])
async def test_looking_ahead_changes_no_mask(demo_tokenizer: Tokenizer, spec: GrammarSpec, num_ends: int) -> None:
    ends = demo_tokenizer.end_token_ids[:num_ends]
    grammars = [
        await GrammarCompiler(demo_tokenizer, ends, limits=GrammarLimits(max_forced=most)).compile(spec)
        for most in (0, 1, 4)
    ]
    for seed in range(5):
        constraints = [grammar.constraint() for grammar in grammars]
        choose, num_forced = random.Random(seed), [0, 0, 0]
        for _ in range(60):
            masks = [allowed_ids(each, demo_tokenizer.vocab_size) for each in constraints]
            assert masks[0] == masks[1] == masks[2]
            num_forced = [max(n, len(each.forced().token_ids)) for n, each in zip(num_forced, constraints, strict=True)]
            if (token_id := choose.choice(masks[0])) in ends:
                break
            for each in constraints:
                each.advance(token_id)
        assert num_forced[0] == 0
        assert spec.schema is None or num_forced[1:] == [1, 4]


async def test_end_tokens_are_allowed_only_at_an_end(demo_tokenizer: Tokenizer) -> None:
    ends = {*demo_tokenizer.end_token_ids, demo_tokenizer.encode("x")[0]}
    assert len(ends) == 3
    constraint = (await GrammarCompiler(demo_tokenizer, sorted(ends)).compile(regex_spec("[a-z]y*"))).constraint()
    first = set(allowed_ids(constraint, demo_tokenizer.vocab_size))
    assert first.isdisjoint(ends)  # even the one that is a letter elsewhere
    constraint.advance(demo_tokenizer.encode("a", control_tokens=False)[-1])
    assert ends < set(allowed_ids(constraint, demo_tokenizer.vocab_size))


async def test_disallowed_token_fails(compiler: GrammarCompiler, demo_tokenizer: Tokenizer) -> None:
    grammar = await compiler.compile(json_spec(POINT))
    constraint = grammar.constraint()
    constraint.advance(demo_tokenizer.encode("x")[0])
    with pytest.raises(GrammarFailedError, match="cannot be followed"):
        allowed_ids(constraint, demo_tokenizer.vocab_size)
    assert spell(grammar.constraint(), demo_tokenizer, '{"x": 1, "y": 2}')  # others are not affected


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "not": {}}, "keyword: not"),
        ({"type": "object", "properties": {"a": {"if": {}, "uniqueItems": True}}}, "keyword: if, uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "format": "colour"}, "format: colour"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"type": "strange"}, "strange"),
        ({"$ref": "#/$defs/x"}, "/\\$defs/x"),
        ({"$ref": "http://example.org/x"}, "example.org"),
        ({"$ref": "#"}, "no text"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum"),
        ({"enum": []}, "Unsatisfiable"),
    ],
)
async def test_unsupported_schema_is_an_error(compiler: GrammarCompiler, schema: Any, named: str) -> None:
    with pytest.raises(GrammarError, match=named) as caught:
        await compiler.compile(json_spec(schema))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (regex_spec("("), "unclosed group"),
        (regex_spec("(?P<a>b)\\1"), "backreferences"),
        (regex_spec("a^b"), "lookarounds"),
        (regex_spec("(" * 400 + "a" + ")" * 400), "nested"),
        (regex_spec("a{1000000}"), "too many"),
        (lark_spec("start: nothing"), "nothing"),
        (lark_spec('root ::= "a'), "GBNF.*end of input"),
        (lark_spec("root ::= nothing"), "nothing"),
        (lark_spec("root ::= " + "(" * 1000 + '"a"' + ")" * 1000), "nested too deeply"),
        (lark_spec(""), "Empty"),
        (lark_spec("start: start"), "no text"),
        (lark_spec('start: "a" start'), "Too many"),
        (lark_spec('start: %json {"not": {}}'), "keyword: not"),
    ],
)
async def test_error_is_one_line(compiler: GrammarCompiler, spec: GrammarSpec, named: str) -> None:
    with pytest.raises(GrammarError, match=named) as caught:
        await compiler.compile(spec)
    assert "\n" not in str(caught.value)


def chain(length: int) -> dict[str, Any]:
    links = {str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): {}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: json_spec({"enum": ["x" * 1_100_000]}), "longer than"),
        (lambda: json_spec(nested(100_000)), "too deeply"),
        (lambda: regex_spec("a" * 20_000), "longer than"),
        (lambda: choice_spec([]), "1 to"),
        (lambda: choice_spec(["a"] * 5000), "1 to"),
        (lambda: choice_spec(["a" * 1000] * 1100), "longer than"),
        (lambda: lark_spec("x" * 300_000), "longer than"),
        (lambda: regex_spec("\ud800"), "surrogate"),
        (lambda: choice_spec(["a", "\udc00"]), "surrogate"),
        (lambda: json_spec({"const": "\ud800"}), "surrogate"),
        (lambda: lark_spec('start: "\ud800"'), "surrogate"),
    ],
)
def test_size_limits(make: Any, named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        make()


@pytest.mark.parametrize(
    "spec",
    [
        json_spec(chain(1000)),
        lark_spec("start: a{1,9}\n" + "a: " + "(" * 20 + '"a"' + ")" * 20),
        lark_spec('start: %json {"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}'),
        lark_spec("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(600)) + 'r600 ::= "a"\n'),
        lark_spec("\n" * 260_000 + 'start: "a"'),
    ],
)
async def test_large_grammar_within_the_limits_compiles(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    await compiler.compile(spec)


async def test_equal_grammars_are_compiled_once(compiler: GrammarCompiler) -> None:
    grammars = await asyncio.gather(*(compiler.compile(json_spec(POINT)) for _ in range(5)))
    assert len({id(grammar) for grammar in grammars}) == 1


async def test_least_recently_used_grammar_is_evicted(demo_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, max_cached=2)

    async def compiled(pattern: str) -> Grammar:
        return await compiler.compile(regex_spec(pattern))

    a, b = weakref.ref(await compiled("a")), weakref.ref(await compiled("b"))
    assert await compiled("a") is a()
    await compiled("c")
    assert (a() is None, b() is None) == (False, True)


@pytest.mark.parametrize(
    ("tokenizer", "end_token_ids", "named"),
    [(TokenIdsOnly(64), (1,), "no tokenizer"), (synthetic_tokenizer(512), (), "no token that ends")],
)
async def test_unsuitable_tokenizer_is_an_error(
    tokenizer: Tokenizer, end_token_ids: tuple[int, ...], named: str
) -> None:
    with pytest.raises(GrammarError, match=named):
        await GrammarCompiler(tokenizer, end_token_ids).compile(regex_spec("a"))
