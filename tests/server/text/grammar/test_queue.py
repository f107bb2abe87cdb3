"""Who compiles when, and what is remembered: bounded, and fair between tenants. Compilations take as long as a test
says."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from roost.server.tenancy.tenant import tenant
from roost.server.text.grammar import (
    Compilation,
    GrammarBusyError,
    GrammarCompiler,
    GrammarError,
    GrammarSpec,
    json_spec,
    regex_spec,
)
from roost.server.text.grammar.turns import Turns
from roost.server.text.tokenizer import TokenIdsOnly, Tokenizer

HANGS_S = 30


class Bench:
    """Where grammars are compiled, each until it is let go; none compiles."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._may_end: dict[str, threading.Event] = {}

    def __call__(self, spec: GrammarSpec) -> Compilation:
        self.begun.append(spec.source)
        assert self._event(spec.source).wait(HANGS_S)
        return Compilation(GrammarError("no"), 1.0)

    def let_go(self, *names: str) -> None:
        for name in names:
            self._event(name).set()

    def _event(self, name: str) -> threading.Event:
        return self._may_end.setdefault(name, threading.Event())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def compiler_at(bench: Bench, **options: Any) -> GrammarCompiler:
    return GrammarCompiler(TokenIdsOnly(64), (), compile_=bench, **options)


def ask(compiler: GrammarCompiler, who: str, *names: str) -> list["asyncio.Task[Any]"]:
    """Asks for grammars on a tenant's behalf."""

    async def compile_(name: str) -> Any:
        tenant.set(who)
        return await compiler.compile(GrammarSpec(name))

    return [asyncio.create_task(compile_(name)) for name in names]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(HANGS_S):
        while not condition():
            await asyncio.sleep(0.002)


async def ended(tasks: list["asyncio.Task[Any]"]) -> list[str]:
    """What became of them, by the names of their errors."""
    async with asyncio.timeout(HANGS_S):
        return [type(each).__name__ for each in await asyncio.gather(*tasks, return_exceptions=True)]


async def test_a_tenant_leaves_a_lane_to_others(bench: Bench) -> None:
    compiler = compiler_at(bench, tenants=2)
    slow = ask(compiler, "a", *(f"a{i}" for i in range(16)))
    await until(lambda: bench.begun)
    quick = ask(compiler, "b", "b")
    await until(lambda: "b" in bench.begun)
    assert bench.begun == ["a0", "b"]
    bench.let_go("b", *(f"a{i}" for i in range(16)))
    assert await ended([*quick, *slow]) == ["GrammarError"] * 17


async def test_a_single_tenant_has_all_lanes(bench: Bench) -> None:
    tasks = ask(compiler_at(bench), "", "x", "y", "z")
    await until(lambda: len(bench.begun) == 2)
    bench.let_go("x", "y", "z")
    assert await ended(tasks) == ["GrammarError"] * 3


async def test_waiting_too_long_is_not_the_grammars_fault(bench: Bench) -> None:
    compiler = compiler_at(bench, wait_s=0.01)
    slow = ask(compiler, "a", "a0", "a1")
    await until(lambda: len(bench.begun) == 2)
    assert await ended(ask(compiler, "a", "a2")) == ["GrammarBusyError"]
    assert sorted(bench.begun) == ["a0", "a1"], "and it is not compiled for nobody"
    bench.let_go("a0", "a1")
    assert await ended(slow) == ["GrammarError"] * 2, "however long it takes once it has begun"


async def test_what_nobody_waits_for_any_more_is_not_compiled(bench: Bench) -> None:
    compiler = compiler_at(bench)
    slow = ask(compiler, "a", "a0", "a1")
    await until(lambda: len(bench.begun) == 2)
    left, shared = ask(compiler, "a", *(f"x{i}" for i in range(16))), ask(compiler, "a", "both", "both")
    await asyncio.sleep(0)
    for task in [*left, shared[0]]:
        task.cancel()
    bench.let_go("a0", "a1", "both", "last")
    assert await ended([*slow, shared[1], *ask(compiler, "a", "last")]) == ["GrammarError"] * 4
    assert sorted(bench.begun) == ["a0", "a1", "both", "last"], "each once: two lanes, so in no order"


async def test_the_queue_has_an_end(bench: Bench) -> None:
    compiler = compiler_at(bench)
    tasks = ask(compiler, "a", *(f"a{i}" for i in range(100)))
    await until(lambda: sum(task.done() for task in tasks) == 100 - 64 - 2)
    for i in range(100):
        bench.let_go(f"a{i}")
    assert (await ended(tasks)).count("GrammarBusyError") == 34


async def test_what_failed_is_tried_again(bench: Bench) -> None:
    compiler = compiler_at(bench)
    bench.let_go("x")
    assert await ended(ask(compiler, "a", "x")) == ["GrammarError"]
    assert await ended(ask(compiler, "a", "x")) == ["GrammarError"]
    assert bench.begun == ["x", "x"]


async def test_a_fault_of_ours_is_no_grammars(bench: Bench) -> None:
    def broken(spec: GrammarSpec) -> Compilation:
        raise ZeroDivisionError

    compiler = GrammarCompiler(TokenIdsOnly(64), (), compile_=broken)
    assert await ended(ask(compiler, "a", "x", "y", "z")) == ["ZeroDivisionError"] * 3


def test_next_is_who_had_least_cpu_time() -> None:
    turns = Turns(lanes=1, max_waiting=10)
    for who in "aab":
        turns.add(who)
    first = turns.next()
    assert first is not None
    assert (first.tenant, turns.next()) == ("a", None), "there is one lane"
    turns.end(first, cpu_s=2.0)
    order = []
    turns.add("c")
    while (turn := turns.next()) is not None:
        order.append(turn.tenant)
        turns.end(turn, cpu_s=0.5)
    assert order == ["b", "c", "a"]


def test_a_tenant_leaves_as_much_of_the_queue_as_it_takes() -> None:
    turns = Turns(lanes=1, max_waiting=4, tenants=2)
    kept = [turns.add("a") for _ in range(2)]
    with pytest.raises(GrammarBusyError, match="of this API key"):
        turns.add("a")
    turns.add("b")
    with pytest.raises(GrammarBusyError, match="of this API key"):
        turns.add("b")
    turns.remove(kept[0])
    turns.add("b")
    assert turns.num_waiting == 3


async def compiled(compiler: GrammarCompiler, who: str, pattern: str) -> Any:
    tenant.set(who)
    return await compiler.compile(regex_spec(pattern))


async def test_a_tenant_pushes_out_its_own_grammars_only(demo_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2, max_cached=4)
    mine = await compiled(compiler, "a", "mine")
    first = await compiled(compiler, "b", "b0")
    for i in range(1, 8):
        await compiled(compiler, "b", f"b{i}")
    assert await compiled(compiler, "a", "mine") is mine
    assert await compiled(compiler, "b", "b0") is not first


async def test_grammars_in_use_have_a_limit(demo_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2, max_grammars=4)
    in_use = [await compiled(compiler, "a", f"a{i}") for i in range(2)]
    with pytest.raises(GrammarBusyError, match="too many different grammars"):
        await compiled(compiler, "a", "a2")
    await compiled(compiler, "b", "b0")
    del in_use[0]
    await compiled(compiler, "a", "a2")
    assert await compiled(compiler, "a", "a1") is in_use[0], "a grammar in use is known, though others came since"


async def test_equal_ones_of_two_tenants_are_two(demo_tokenizer: Tokenizer) -> None:
    """Whatever one of them does to its own is not the other's."""
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2)
    assert await compiled(compiler, "a", "x") is not await compiled(compiler, "b", "x")


async def test_a_large_schema_counts(demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.server.text.grammar.compiler.MAX_CACHED_BYTES", 2**20)
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids)
    large = json_spec({"enum": [f"label {number}" for number in range(15_000)]})
    small, first = await compiled(compiler, "", "a"), await compiler.compile(large)
    assert await compiler.compile(large) is first, "a single one is kept whatever its size"
    assert await compiled(compiler, "", "a") is not small
