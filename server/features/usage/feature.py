"""`GET /v1/usage`: tokens and requests of each tenant and day, for operators with an admin key."""

from functools import partial
from typing import Annotated, Any, Final, TypedDict

from fastapi import APIRouter, Query

from ...errors.request_errors import bad_value
from ...feature import Feature
from ...http.routes import JsonRoute, described
from ...storage.objects import REPLY_S
from . import usage_table
from .open_usage import UsageDatabase, open_usage
from .usage_table import TABLES, today

_DEFAULT_DAYS: Final = 30
"""Number of days for which usage is returned by default, in addition to today."""

_MAX_ROWS: Final = 100_000
"""Maximum number of rows of a response."""

Day = Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")]

router = APIRouter(route_class=JsonRoute)


@described
class UsageRow(TypedDict):
    """Usage of a tenant on a day."""

    date: str
    """UTC day on which the requests ended, such as `2026-11-29`."""

    tenant: str
    """Name of the API keys; empty on a server without keys."""

    requests: int
    """Number of requests that had a slot and have ended."""

    prompt_tokens: int
    """Tokens of their prompts. Each prompt is counted once for all of its choices."""

    cached_tokens: int
    """Prompt tokens that were served from the prefix cache."""

    completion_tokens: int
    """Generated tokens of all choices."""


@described
class UsageList(TypedDict):
    """Response of `/v1/usage`."""

    object: str
    """Always `list`."""

    start: str
    """First day."""

    end: str
    """Last day."""

    data: list[UsageRow]
    """A row for each day and tenant with usage, oldest first."""


@router.get("/v1/usage", response_model=UsageList)
async def usage(database: UsageDatabase, start: Day = None, end: Day = None) -> dict[str, Any]:
    """Returns the usage of each tenant and UTC day from `start` to `end`, such as 2026-11-29, both included."""
    start, end = start or today(_DEFAULT_DAYS), end or today()
    read = partial(usage_table.read, start=start, end=end, limit=_MAX_ROWS + 1)
    rows = await database.run(read, timeout_s=REPLY_S)
    if len(rows) > _MAX_ROWS:
        raise bad_value("start", f"start and end must be nearer to each other: there are more than {_MAX_ROWS} rows")
    names = UsageRow.__annotations__  # in the order of the counts
    data = [dict(zip(names, (day, tenant, *found), strict=True)) for day, tenant, found in rows]
    return {"object": "list", "start": start, "end": end, "data": data}


FEATURE: Final = Feature("usage", admin_routers=(router,), tables=TABLES, open=open_usage)
