"""`GET /toys`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from ...feature import opened
from .open_toys import OpenToys

router = APIRouter()


@router.get("/toys")
async def toys(toys: Annotated[OpenToys, Depends(opened(OpenToys))]) -> dict[str, Any]:
    """Returns all toys, once they are wound up."""
    await toys.wound_up.wait()
    assert toys.database is not None
    rows = await toys.database.run(lambda transaction: transaction.rows("SELECT name, colour FROM roost_toys"))
    return {"greeting": toys.greeting, "toys": [list(row) for row in rows]}
