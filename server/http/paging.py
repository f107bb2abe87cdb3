"""Lists in pages, in the form of OpenAI's API."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from ..errors.request_errors import ApiError, bad_value
from ..storage.objects import Page

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
    """Returns one page of a list.

    Args:
      items: All items, oldest first.
      after: Id of the item that the page follows; None begins with the first.

    Raises:
      ApiError: No item has the id `after`.
    """
    ordered = items[::-1] if order == "desc" else items
    start = 0
    if after is not None:
        start = 1 + next((place for place, item in enumerate(ordered) if id_of(item) == after), -1)
        if not start:
            raise no_such_entry(after)
    end = start + limit
    return described(Page(ordered[start:end], end < len(ordered)), id_of=id_of, describe=describe)


def described[Item](
    found: Page[Item], *, id_of: Callable[[Item], str], describe: Callable[[Item], Any]
) -> dict[str, Any]:
    """Returns a page in the form that clients receive."""
    return {
        "object": "list",
        "data": [describe(item) for item in found.items],
        "first_id": id_of(found.items[0]) if found.items else "",
        "last_id": id_of(found.items[-1]) if found.items else "",
        "has_more": found.has_more,
    }


def no_such_entry(after: str | None) -> ApiError:
    """Returns a 400 for a page that follows an entry which the list does not have."""
    return bad_value("after", f"after: the list has no item with the id {after!r}")
