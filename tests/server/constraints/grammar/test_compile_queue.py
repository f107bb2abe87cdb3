"""Queue and cache of grammars: bounded, and fair to tenants. Tests control how long compilations take."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_process import Grammar
from roost.server.constraints.grammar_spec import GrammarBusyError, GrammarError, GrammarSpec, json_spec, regex_spec
from roost.server.tenants import tenant
from roost.server.text.tokenizer import TokenIdsOnly, Tokenizer

HANGS_S = 60


class FakeCompiler:
    """Compiles grammars, each until it is released; all of them fail."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self._may_end: dict[str, threading.Event] = {}

    def __call__(self, spec: GrammarSpec) -> Grammar:
        self.started.append(spec.source)
        assert self._event(spec.source).wait(HANGS_S)
        raise GrammarError("no")

    def release(self, *names: str) -> None:
        for name in names:
            self._event(name).set()

    def _event(self, name: str) -> threading.Event:
        return self._may_end.setdefault(name, threading.Event())


@pytest.fixture
def fake() -> FakeCompiler:
    return FakeCompiler()


def compiler_with(fake: FakeCompiler, **options: Any) -> GrammarCompiler:
    return GrammarCompiler(TokenIdsOnly(64), (), compile_=fake, **options)


def request(compiler: GrammarCompiler, tenant_name: str, *names: str) -> list["asyncio.Task[Any]"]:
    """Requests grammars for a tenant."""

    async def compile_(name: str) -> Any:
        tenant.set(tenant_name)
        return await compiler.compile(GrammarSpec(name))

    return [asyncio.create_task(compile_(name)) for name in names]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(HANGS_S):
        while not condition():
            await asyncio.sleep(0.002)


async def ended(tasks: list["asyncio.Task[Any]"]) -> list[str]:
    """Returns the names of the errors of all tasks."""
    async with asyncio.timeout(HANGS_S):
        return [type(each).__name__ for each in await asyncio.gather(*tasks, return_exceptions=True)]


async def test_tenant_leaves_a_lane_to_others(fake: FakeCompiler) -> None:
    compiler = compiler_with(fake, tenants=2)
    slow = request(compiler, "a", *(f"a{i}" for i in range(16)))
    await until(lambda: fake.started)
    quick = request(compiler, "b", "b")
    await until(lambda: "b" in fake.started)
    assert fake.started == ["a0", "b"]
    fake.release("b", *(f"a{i}" for i in range(16)))
    assert await ended([*quick, *slow]) == ["GrammarError"] * 17


async def test_single_tenant_uses_all_lanes(fake: FakeCompiler) -> None:
    tasks = request(compiler_with(fake), "", "x", "y", "z")
    await until(lambda: len(fake.started) == 2)
    fake.release("x", "y", "z")
    assert await ended(tasks) == ["GrammarError"] * 3


async def test_waiting_too_long_is_a_busy_error(fake: FakeCompiler) -> None:
    compiler = compiler_with(fake, wait_s=0.01)
    slow = request(compiler, "a", "a0", "a1")
    await until(lambda: len(fake.started) == 2)
    assert await ended(request(compiler, "a", "a2")) == ["GrammarBusyError"]
    assert sorted(fake.started) == ["a0", "a1"], "and it is not compiled for nobody"
    fake.release("a0", "a1")
    assert await ended(slow) == ["GrammarError"] * 2, "however long it takes once it has started"


async def test_cancelled_grammar_is_not_compiled(fake: FakeCompiler) -> None:
    compiler = compiler_with(fake)
    slow = request(compiler, "a", "a0", "a1")
    await until(lambda: len(fake.started) == 2)
    left, shared = request(compiler, "a", *(f"x{i}" for i in range(16))), request(compiler, "a", "both", "both")
    await asyncio.sleep(0)
    for task in [*left, shared[0]]:
        task.cancel()
    fake.release("a0", "a1", "both", "last")
    assert await ended([*slow, shared[1], *request(compiler, "a", "last")]) == ["GrammarError"] * 4
    assert sorted(fake.started) == ["a0", "a1", "both", "last"], "each once: two lanes, so in no order"


async def test_queue_is_bounded(fake: FakeCompiler) -> None:
    compiler = compiler_with(fake)
    tasks = request(compiler, "a", *(f"a{i}" for i in range(100)))
    await until(lambda: sum(task.done() for task in tasks) == 100 - 64 - 2)
    for i in range(100):
        fake.release(f"a{i}")
    assert (await ended(tasks)).count("GrammarBusyError") == 34


async def test_failed_grammar_is_compiled_again(fake: FakeCompiler) -> None:
    compiler = compiler_with(fake)
    fake.release("x")
    assert await ended(request(compiler, "a", "x")) == ["GrammarError"]
    assert await ended(request(compiler, "a", "x")) == ["GrammarError"]
    assert fake.started == ["x", "x"]


async def test_internal_error_is_raised_as_it_is(fake: FakeCompiler) -> None:
    def broken(spec: GrammarSpec) -> Grammar:
        raise ZeroDivisionError

    compiler = GrammarCompiler(TokenIdsOnly(64), (), compile_=broken)
    assert await ended(request(compiler, "a", "x", "y", "z")) == ["ZeroDivisionError"] * 3


async def test_tenant_leaves_as_much_of_the_queue_as_it_holds(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.server.constraints.grammar_compiler.MAX_WAITING", 4)
    compiler = compiler_with(fake, tenants=2)
    tasks = request(compiler, "a", *(f"a{i}" for i in range(3)))
    await until(lambda: len(fake.started) == 1)
    with pytest.raises(GrammarBusyError, match="of this API key"):
        await request(compiler, "a", "a3")[0]
    tasks += request(compiler, "b", "b0", "b1")
    await until(lambda: len(fake.started) == 2)
    with pytest.raises(GrammarBusyError, match="of this API key"):
        await request(compiler, "b", "b2")[0]
    tasks[1].cancel()
    await asyncio.sleep(0)
    tasks += request(compiler, "b", "b2")
    fake.release("a0", "a2", "b0", "b1", "b2")
    assert await ended(tasks) == ["GrammarError", "CancelledError", *["GrammarError"] * 4]


async def compiled(compiler: GrammarCompiler, tenant_name: str, pattern: str) -> Any:
    tenant.set(tenant_name)
    return await compiler.compile(regex_spec(pattern))


async def test_tenant_evicts_its_own_grammars_only(demo_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2, max_cached=4)
    mine = await compiled(compiler, "a", "mine")
    theirs = [weakref.ref(await compiled(compiler, "b", f"b{i}")) for i in range(8)]
    assert await compiled(compiler, "a", "mine") is mine
    assert [each() is None for each in theirs] == [True] * 5 + [False] * 3


async def is_refused(compiler: GrammarCompiler, tenant_name: str, pattern: str) -> bool:
    try:
        await compiled(compiler, tenant_name, pattern)
    except GrammarBusyError:
        return True
    return False


async def test_grammars_in_use_are_bounded(demo_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2, max_grammars=4)
    in_use = [await compiled(compiler, "a", f"a{i}") for i in range(2)]
    with pytest.raises(GrammarBusyError, match="too many different grammars"):
        await compiled(compiler, "a", "a2")
    await compiled(compiler, "b", "b0")
    del in_use[0]
    async with asyncio.timeout(60):
        while await is_refused(compiler, "a", "a2"):  # the thread that compiled the grammar may not have dropped it yet
            await asyncio.sleep(0.01)
    assert await compiled(compiler, "a", "a1") is in_use[0], "a grammar in use is known, though others came since"


async def test_tenants_do_not_share_grammars(demo_tokenizer: Tokenizer) -> None:
    """One tenant's use of a grammar cannot end the other's."""
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids, tenants=2)
    assert await compiled(compiler, "a", "x") is not await compiled(compiler, "b", "x")


async def test_cache_is_bounded_in_bytes(demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.server.constraints.grammar_compiler.MAX_CACHED_BYTES", 2**20)
    compiler = GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids)
    large = json_spec({"enum": [f"label {number}" for number in range(15_000)]})
    small = weakref.ref(await compiled(compiler, "", "a"))
    assert await compiled(compiler, "", "a") is small()
    await compiler.compile(large)
    assert small() is None
