"""Tasks that outlive their requests."""

import asyncio

import pytest
from roost.server.features.responses.background import Background


async def test_a_task_may_begin_before_an_earlier_one_of_its_name_has_ended() -> None:
    """A response that was given up is adopted again, while its earlier task is still being cancelled."""
    background, ends = Background(), asyncio.Event()
    earlier = background.start("r1", asyncio.sleep(60))
    earlier.cancel()
    later = background.start("r1", _wait(ends))
    with pytest.raises(asyncio.CancelledError):
        await earlier
    await asyncio.sleep(0)
    assert background.is_running("r1")
    ends.set()
    await background.wait("r1")
    assert later.done()
    await asyncio.sleep(0)
    assert not background.is_busy


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
