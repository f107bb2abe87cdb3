"""Token ids that count how often they are read."""

from collections.abc import Iterator


class CountedIds(tuple[int, ...]):
    """A tuple of ids whose iterations are counted, those of all instances together."""

    count = 0

    def __iter__(self) -> Iterator[int]:
        CountedIds.count += 1
        return super().__iter__()
