"""Lists in pages, as OpenAI's API has them."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from ..errors.request_errors import bad_value

Order = Literal["asc", "desc"]

Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of entries of a page.")]
QueryOrder = Annotated[Order, Query(description="Order of the entries: `desc` begins with the newest.")]
After = Annotated[str | None, Query(description="Id of the entry that the page follows; none begins with the first.")]


def page[Item](
    items: Sequence[Item],
    limit: int,
    order: Order,
    after: str | None,
    *,
    id_of: Callable[[Item], str],
    describe: Callable[[Item], dict[str, Any]],
) -> dict[str, Any]:
    """One page of a list.

    Args:
      items: All of them, oldest first.
      after: Id of the item that the page follows; None begins with the first.

    Raises:
      ApiError: No item has the id `after`.
    """
    ordered = items if order == "asc" else items[::-1]
    start = 0
    if after is not None:
        start = 1 + next((place for place, item in enumerate(ordered) if id_of(item) == after), -1)
        if not start:
            raise bad_value("after", f"after: the list has no item with the id {after!r}")
    chosen = ordered[start : start + limit]
    return {
        "object": "list",
        "data": [describe(item) for item in chosen],
        "first_id": id_of(chosen[0]) if chosen else "",
        "last_id": id_of(chosen[-1]) if chosen else "",
        "has_more": start + limit < len(ordered),
    }
