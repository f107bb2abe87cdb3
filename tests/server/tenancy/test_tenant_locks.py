"""One lock per tenant."""

import asyncio

from roost.server.tenants import TenantLocks, tenant


async def test_tenant_waits_for_its_own_tasks_only() -> None:
    locks, running, most = TenantLocks(), dict[str, int](), dict[str, int]()
    may_end = asyncio.Event()

    async def work(owner: str) -> None:
        tenant.set(owner)
        async with locks.hold():
            running[owner] = running.get(owner, 0) + 1
            most[owner] = max(most.get(owner, 0), running[owner])
            await may_end.wait()
            running[owner] -= 1

    tasks = [asyncio.create_task(work(owner)) for owner in "aaabb"]
    while sum(running.values()) < 2:
        await asyncio.sleep(0)
    tasks[1].cancel()  # a waiting task
    may_end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == {"a": 1, "b": 1}
    assert running == {"a": 0, "b": 0}


async def test_exception_releases_the_lock() -> None:
    locks = TenantLocks()
    for _ in range(2):
        try:
            async with locks.hold():
                raise ValueError
        except ValueError:
            pass
