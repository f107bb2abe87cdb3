"""Memory that tasks wait for, in order of arrival."""

import asyncio

import pytest
from roost.server.tenancy.byte_gate import ByteGate


class Holder:
    """A task that holds bytes until it is told to end.

    Attributes:
      is_inside: Whether it holds them.
    """

    def __init__(self, gate: ByteGate, num_bytes: int) -> None:
        self.is_inside = False
        self._may_end = asyncio.Event()
        self._gate = gate
        self._num_bytes = num_bytes
        self.task = asyncio.create_task(self._run())

    def let_end(self) -> None:
        self._may_end.set()

    async def end(self) -> None:
        self.let_end()
        await self.task

    async def _run(self) -> None:
        async with self._gate.hold(self._num_bytes):
            self.is_inside = True
            await self._may_end.wait()


async def inside(*holders: Holder) -> list[bool]:
    """Returns which tasks hold their bytes, once all have run as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [holder.is_inside for holder in holders]


async def test_tasks_wait_for_bytes_in_order_of_arrival() -> None:
    gate = ByteGate(10)
    first, large, small = Holder(gate, 6), Holder(gate, 5), Holder(gate, 1)
    assert await inside(first, large, small) == [True, False, False]
    await first.end()
    assert await inside(large, small) == [True, True]
    assert gate.num_bytes == 6
    await asyncio.gather(large.end(), small.end())
    assert gate.num_bytes == 0


async def test_more_than_all_bytes_run_alone() -> None:
    gate = ByteGate(10)
    first, huge, last = Holder(gate, 1), Holder(gate, 100), Holder(gate, 1)
    assert await inside(first, huge, last) == [True, False, False]
    await first.end()
    assert await inside(huge, last) == [True, False]
    await huge.end()
    assert await inside(last) == [True]
    await last.end()


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_a_task_that_is_cancelled_leaves_its_bytes_to_others(is_admitted: bool) -> None:
    gate = ByteGate(10)
    first, cancelled, last = Holder(gate, 6), Holder(gate, 9), Holder(gate, 4)
    assert await inside(first, cancelled, last) == [True, False, False]
    if is_admitted:  # it holds its bytes, and has not run since
        first.let_end()
        while gate.num_bytes != 9:
            await asyncio.sleep(0)
        assert not cancelled.is_inside
    cancelled.task.cancel()
    await asyncio.gather(cancelled.task, return_exceptions=True)
    assert await inside(last) == [True]
    await asyncio.gather(first.end(), last.end())
    assert gate.num_bytes == 0
