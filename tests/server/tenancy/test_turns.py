"""One thing at a time for each tenant."""

import asyncio

from roost.server.tenancy.tenant import tenant
from roost.server.tenancy.turns import TenantTurns


async def test_a_tenant_waits_for_itself_only() -> None:
    turns, running, most = TenantTurns(), dict[str, int](), dict[str, int]()
    may_end = asyncio.Event()

    async def work(owner: str) -> None:
        tenant.set(owner)
        async with turns.mine():
            running[owner] = running.get(owner, 0) + 1
            most[owner] = max(most.get(owner, 0), running[owner])
            await may_end.wait()
            running[owner] -= 1

    tasks = [asyncio.create_task(work(owner)) for owner in "aaabb"]
    while sum(running.values()) < 2:
        await asyncio.sleep(0)
    tasks[1].cancel()  # one that waits
    may_end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == {"a": 1, "b": 1}
    assert running == {"a": 0, "b": 0}


async def test_one_that_fails_lets_the_next_one_in() -> None:
    turns = TenantTurns()
    for _ in range(2):
        try:
            async with turns.mine():
                raise ValueError
        except ValueError:
            pass
