"""Valid grammars meant to exhaust resources: each ends its own process only."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from roost.engine.types.output_constraint import words_of_mask
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_process import GrammarConstraint, GrammarFailedError
from roost.server.constraints.grammar_spec import GrammarError, GrammarSpec, json_spec, lark_spec, regex_spec
from roost.server.constraints.grammar_worker.protocol import GrammarLimits
from roost.server.text.tokenizer import Tokenizer
from walk import allowed_ids, spell

HANGS_S = 120
LIMITS = GrammarLimits(compile_cpu_s=0.4, follow_cpu_s=0.2, memory=96 * 2**20)


@pytest.fixture(scope="module")
def strict(demo_tokenizer: Tokenizer) -> GrammarCompiler:
    """Compiler with low limits."""
    return GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, limits=LIMITS)


def definitions(count: int, make: Callable[[dict[str, str]], dict[str, Any]], **last: Any) -> dict[str, Any]:
    """Returns a schema whose definitions form a chain."""
    links = {str(i): make({"$ref": f"#/$defs/{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(count): last}}


def in_lark(schema: dict[str, Any]) -> GrammarSpec:
    """Returns a schema with escaped keywords, as clients may write it in a grammar."""
    return lark_spec("start: %json " + json.dumps(schema, separators=(",", ":")).replace("$ref", "\\u0024ref"))


def anchors(count: int) -> dict[str, Any]:
    links = {str(i): {"$anchor": f"a{i}", "items": {"$ref": f"#a{i + 1}"}} for i in range(count)}
    return {"$ref": "#a0", "$defs": {**links, "last": {"$anchor": f"a{count}"}}}


DEEP = {
    "escaped $ref": in_lark(definitions(5000, lambda ref: {"items": ref})),
    "items": json_spec(definitions(5000, lambda ref: {"items": ref})),
    "anyOf": json_spec(definitions(3600, lambda ref: {"anyOf": [ref, {"type": "null"}]})),
    "allOf": json_spec(definitions(5000, lambda ref: {"allOf": [ref]})),
    "oneOf": json_spec(definitions(5000, lambda ref: {"oneOf": [ref]})),
    "only references": json_spec(definitions(6000, lambda ref: ref)),
    "anchors": json_spec(anchors(3500)),
    "properties": json_spec(definitions(3200, lambda ref: {"properties": {"a": ref}, "required": ["a"]})),
    "rules": lark_spec("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(12_000)) + 'r12000: "a"\n'),
    "terminals": lark_spec("start: R0\n" + "".join(f'R{i}: "a" R{i + 1}\n' for i in range(9000)) + 'R9000: "a"\n'),
    "conditions": lark_spec('start: r::0\nr::_: "a" %if ' + "not(" * 40_000 + "is_zeros([0:2])" + ")" * 40_000 + "\n"),
}
"""Grammars that overflow a stack of 8 MB."""

PERMUTATIONS = (
    "r::_: "
    + "\n | ".join(f"A r::set_bit({i}) %if bit_clear({i})" for i in range(16))
    + '\n | "" %if is_ones([0:16])\nA: "a"\n'
)
"""Grammar whose first mask takes more than a minute."""

SLOW = {
    "40 intersections": lark_spec("start: A\nA: " + " & ".join(f"/(?s:.*)x{i}(?s:.*)/" for i in range(40)) + "\n"),
    "multiples": json_spec({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 89, 83, 79)]}),
    "nested repetition": lark_spec("start: /(a+)+/ /(a+)+/ /a+/ /a*/\n"),
    "permutations": lark_spec(f"start: r::0\n{PERMUTATIONS}"),
    "10,000 properties": json_spec({"type": "object", "properties": {f"k{i}": {} for i in range(9000)}}),
}
"""Grammars whose compilation or first mask takes many seconds, for some a gigabyte of memory too."""


@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in {**DEEP, **SLOW}.items()])
async def test_too_complex_grammar_ends_only_its_process(
    strict: GrammarCompiler, demo_tokenizer: Tokenizer, spec: GrammarSpec
) -> None:
    other = (await strict.compile(regex_spec("ab*"))).constraint()
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(GrammarError, match=r"too complex: .* smaller or less nested") as caught:
            await strict.compile(spec)
    assert "\n" not in str(caught.value)
    assert spell(other, demo_tokenizer, "abb")
    assert spell((await strict.compile(regex_spec("cd*"))).constraint(), demo_tokenizer, "cdd")


async def test_memory_has_a_limit(demo_tokenizer: Tokenizer) -> None:
    tight = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, limits=GrammarLimits(memory=32 * 2**20))
    with pytest.raises(GrammarError, match="32 MiB"):
        await tight.compile(json_spec({"const": "x" * 250_000}))
    await tight.compile(json_spec({"const": "x"}))


LATER_SLOW = {
    "ambiguous": 'start: s\ns: s s s | s s | A | B\nA: "a"\nB: "b"\n',
    "counters": 'start: r::0\nr::_: A r::incr([0:20]) | A r::incr([20:40]) | A r::incr([40:60]) | ""\nA: /[a-z]/\n',
    "nullable": 'start: start start | start start start | "a" | \n',
}
"""Grammars that compile quickly, and whose masks take ever longer, up to minutes."""


def letters(constraint: GrammarConstraint, tokenizer: Tokenizer) -> Iterator[bool]:
    """Repeats the first allowed letter, and yields for each mask whether it was ready at once."""
    ends = set(tokenizer.end_token_ids)
    while True:
        yield constraint.is_ready(0.0)
        ids = allowed_ids(constraint, tokenizer.vocab_size)
        constraint.advance(next(token_id for token_id in ids if token_id not in ends))


@pytest.mark.parametrize("source", LATER_SLOW.values(), ids=LATER_SLOW.keys())
async def test_output_with_slow_masks_fails(strict: GrammarCompiler, demo_tokenizer: Tokenizer, source: str) -> None:
    hostile = await strict.compile(lark_spec(source))
    other = (await strict.compile(regex_spec("[a-z]*"))).constraint()
    was_ready: list[bool] = []
    with pytest.raises(GrammarFailedError, match="too much work"):
        was_ready.extend(letters(hostile.constraint(), demo_tokenizer))
    assert not all(was_ready), "the engine is told that the mask is not there, instead of waiting for it"
    assert spell(other, demo_tokenizer, "still")


async def test_dead_grammar_is_compiled_again(strict: GrammarCompiler, demo_tokenizer: Tokenizer) -> None:
    spec = lark_spec(f"start: /[a-z]{{30}}/ r::0\n{PERMUTATIONS}")
    dead = await strict.compile(spec)
    with pytest.raises(GrammarFailedError, match="too much work"):
        list(letters(dead.constraint(), demo_tokenizer))
    assert await strict.compile(spec) is not dead
    with pytest.raises(GrammarFailedError):
        allowed_ids(dead.constraint(), demo_tokenizer.vocab_size)


class CountingTokenizer:
    """Records the longest text that was tokenized."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self.longest = 0

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        self.longest = max(self.longest, len(text.encode()))
        return self._encode(text, control_tokens=control_tokens)


async def test_long_constant_is_not_tokenized_whole_for_each_token(
    demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingTokenizer(demo_tokenizer)
    monkeypatch.setattr(demo_tokenizer, "encode", counting.encode)
    text = "Once upon a time, é☃. " * 30
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids)
    constraint = (await compiler.compile(json_spec({"const": text}))).constraint()
    data = b""
    while (token_id := allowed_ids(constraint, demo_tokenizer.vocab_size)[0]) not in demo_tokenizer.end_token_ids:
        constraint.advance(token_id)
        data += demo_tokenizer.token_bytes(token_id)
    assert json.loads(data) == text
    assert 0 < counting.longest <= 256


async def test_outputs_that_end_early_leave_nothing_behind(strict: GrammarCompiler, demo_tokenizer: Tokenizer) -> None:
    """There are more unread masks than fit in a pipe."""
    grammar = await strict.compile(regex_spec("[a-z]*"))
    for _ in range(3000):
        constraint = grammar.constraint()
        constraint.is_ready(0.0)
    mask = np.zeros(words_of_mask(demo_tokenizer.vocab_size), np.uint32)
    constraint.fill_mask(mask)
    assert mask.any()
    assert grammar.is_alive


async def test_grammar_may_be_requested_while_the_engine_waits_for_its_mask(
    strict: GrammarCompiler, demo_tokenizer: Tokenizer
) -> None:
    spec = lark_spec(f"start: /[a-z]{{3}}/ r::0\n{PERMUTATIONS}")
    answer = letters((await strict.compile(spec)).constraint(), demo_tokenizer)
    waiting = asyncio.create_task(asyncio.to_thread(list, answer))
    while not waiting.done():
        await strict.compile(spec)
        await asyncio.sleep(0)
    with pytest.raises(GrammarFailedError):
        await waiting
