"""A queue in which tenants take turns."""

from collections import OrderedDict, deque
from collections.abc import Callable


class Turns[Item]:
    """Items of tenants. Tenants take turns; items of one tenant keep their order."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, item: Item) -> None:
        """Adds the last item of a tenant."""
        self._waiting.setdefault(owner, deque()).append(item)

    def put_back(self, owner: str, item: Item) -> None:
        """Adds an item in front of its tenant's others."""
        self._waiting.setdefault(owner, deque()).appendleft(item)

    def take(self, may_go: Callable[[str, Item], bool] = lambda _, __: True) -> tuple[str, Item] | None:
        """Removes and returns the next item with its tenant.

        Args:
          may_go: Returns whether a tenant may have its turn, given its next item. Otherwise it keeps its place.

        Returns:
          None if no such tenant has an item.
        """
        owner = next((owner for owner, items in self._waiting.items() if may_go(owner, items[0])), None)
        if owner is None:
            return None
        item = self._waiting[owner].popleft()
        if self._waiting[owner]:
            self._waiting.move_to_end(owner)
        else:
            del self._waiting[owner]
        return owner, item
