"""Memory that requests hold until they end, in budgets that tenants share."""

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from ..errors import kinds
from ..errors.request_errors import ApiError, too_many_bytes
from .tenant import tenant

_LARGE: Final = 64 * 2**10
"""Bytes of a parsed body from which on a worker thread prepares its request, since that takes milliseconds."""


class ByteBudget:
    """A number of bytes that tenants share.

    If there are several tenants, none may hold more than it leaves free, so that there is room for another.

    Args:
      max_bytes: Maximum bytes that all tenants may hold together.
      tenants: Number of tenants.

    Attributes:
      num_bytes: Bytes that all tenants hold together.
    """

    def __init__(self, max_bytes: int, tenants: int = 1) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._is_shared = tenants > 1
        self._held: Counter[str] = Counter()

    def reserve(self, owner: str, num_bytes: int) -> None:
        """Reserves bytes for a tenant. A tenant that holds nothing may exceed its share.

        Raises:
          ApiError: 413 if the bytes can never fit, 503 if they do not fit now, 429 if the tenant would exceed its
            share. Nothing is reserved then.
        """
        if num_bytes > self._max_bytes:
            size = f"{self._max_bytes / 2**20:.0f} MiB"
            message = f"the request would hold more than {size} of memory: send fewer or shorter prompts"
            raise ApiError(kinds.REQUEST_TOO_LARGE, message)
        free, held = self._max_bytes - self.num_bytes, self._held[owner]
        if num_bytes > free:
            raise too_many_bytes()
        if self._is_shared and held and held + num_bytes > free:
            message = (
                "this API key's requests hold too much memory at a time: wait for some of them, or send smaller ones"
            )
            raise ApiError(kinds.TENANT_MEMORY_FULL, message)
        self._add(owner, num_bytes)

    def release(self, owner: str, num_bytes: int) -> None:
        """Returns bytes of a tenant to the budget."""
        self._add(owner, -num_bytes)

    def _add(self, owner: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._held[owner] += num_bytes
        if not self._held[owner]:
            del self._held[owner]


class RequestMemory:
    """Bytes that one HTTP request holds: its body until it is parsed, and all else until the response ends.

    Args:
      raw: Budget of bodies that are not parsed yet.
      kept: Budget of parsed requests and their prompts.

    Attributes:
      num_kept: Bytes that are held until the response ends.
    """

    def __init__(self, raw: ByteBudget, kept: ByteBudget) -> None:
        self.num_kept = 0
        self._owner = tenant.get()
        self._raw = raw
        self._kept = kept
        self._num_raw = 0
        self._num_holders = 1

    def receive(self, num_bytes: int) -> None:
        """Reserves bytes for a chunk of the body.

        Raises:
          ApiError: The budget has no room for them.
        """
        self._raw.reserve(self._owner, num_bytes)
        self._num_raw += num_bytes

    def replace_raw(self, num_bytes: int) -> None:
        """Releases the bytes of the unparsed body, and reserves those of the parsed one.

        Raises:
          ApiError: The budget has no room for them.
        """
        self._drop_raw()
        self.keep(num_bytes)

    def keep(self, num_bytes: int) -> None:
        """Reserves bytes until the response ends.

        Raises:
          ApiError: The budget has no room for them.
        """
        self._kept.reserve(self._owner, num_bytes)
        self.num_kept += num_bytes

    def hold(self) -> None:
        """Adds a holder of the request's memory, which has to call `release`."""
        self._num_holders += 1

    def release(self) -> None:
        """Drops a holder; the last one releases all bytes."""
        self._num_holders -= 1
        if not self._num_holders:
            self._drop_raw()
            self._kept.release(self._owner, self.num_kept)
            self.num_kept = 0

    def _drop_raw(self) -> None:
        self._raw.release(self._owner, self._num_raw)
        self._num_raw = 0


request_memory: Final[ContextVar[RequestMemory | None]] = ContextVar("request_memory", default=None)
"""Memory of the current HTTP request; None outside of a request."""


def keep(num_bytes: int) -> None:
    """Reserves bytes that the current request holds until its response ends.

    Raises:
      ApiError: The budget has no room for them.
    """
    if (memory := request_memory.get()) is not None:
        memory.keep(num_bytes)


def hold() -> Callable[[], None]:
    """Keeps the current request's memory beyond its response, until the returned function is called."""
    memory = request_memory.get()
    if memory is None:
        return lambda: None
    memory.hold()
    return memory.release


def is_large() -> bool:
    """Returns whether the current request is large enough that a worker thread should process it."""
    memory = request_memory.get()
    return memory is not None and memory.num_kept > _LARGE
