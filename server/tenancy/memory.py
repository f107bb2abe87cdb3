"""Memory that requests hold: two budgets of bytes that tenants share, and the part of them that one request has."""

import sys
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from pydantic import BaseModel

from ..errors import request_too_large, tenant_holds_too_much, too_many_bytes
from .tenant import tenant

_LARGE: Final = 64 * 2**10
"""Bytes of a parsed body from which on a worker thread prepares its request: all of it takes milliseconds."""


class ByteBudget:
    """A number of bytes that tenants share. Where there are several tenants, none may hold more than it leaves free,
    so that there is room for another.

    Attributes:
      num_bytes: held by all tenants together.

    Args:
      max_bytes: the most that may be held.
      tenants: number of tenants.
    """

    def __init__(self, max_bytes: int, tenants: int = 1) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._is_shared = tenants > 1
        self._held: Counter[str] = Counter()

    def take(self, owner: str, num_bytes: int) -> None:
        """Books bytes for a tenant. What a tenant takes while it holds nothing needs only to fit.

        Raises:
          ApiError: 413 if they can never fit, 503 if they do not fit now, 429 if the tenant would hold more than its
            share; nothing is booked then.
        """
        if num_bytes > self._max_bytes:
            raise request_too_large(self._max_bytes)
        free, held = self._max_bytes - self.num_bytes, self._held[owner]
        if num_bytes > free:
            raise too_many_bytes()
        if self._is_shared and held and held + num_bytes > free:
            raise tenant_holds_too_much()
        self._book(owner, num_bytes)

    def give_back(self, owner: str, num_bytes: int) -> None:
        self._book(owner, -num_bytes)

    def _book(self, owner: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._held[owner] += num_bytes
        if not self._held[owner]:
            del self._held[owner]


class RequestMemory:
    """The bytes that one HTTP request holds: of its body as it was sent, until that is parsed, and of everything that
    was made of it, until the answer ends.

    Attributes:
      num_kept: bytes that are held until the answer ends.

    Args:
      raw: the budget of bodies that are not parsed yet.
      kept: the budget of everything else.
    """

    def __init__(self, raw: ByteBudget, kept: ByteBudget) -> None:
        self.num_kept = 0
        self._owner = tenant.get()
        self._raw = raw
        self._kept = kept
        self._num_raw = 0
        self._num_holders = 1

    def receive(self, num_bytes: int) -> None:
        """Books a piece of the body that has arrived.

        Raises:
          ApiError: there is no room for it.
        """
        self._raw.take(self._owner, num_bytes)
        self._num_raw += num_bytes

    def drop_raw(self) -> None:
        """Gives back the room of the body as it was sent."""
        self._raw.give_back(self._owner, self._num_raw)
        self._num_raw = 0

    def keep(self, num_bytes: int) -> None:
        """Books bytes until the answer ends.

        Raises:
          ApiError: there is no room for them.
        """
        self._kept.take(self._owner, num_bytes)
        self.num_kept += num_bytes

    def hold(self) -> None:
        """Somebody else works on the request too, and calls `release` in the end."""
        self._num_holders += 1

    def release(self) -> None:
        """Gives everything back when the last one that works on the request has called this."""
        self._num_holders -= 1
        if not self._num_holders:
            self.drop_raw()
            self._kept.give_back(self._owner, self.num_kept)
            self.num_kept = 0


request_memory: Final[ContextVar[RequestMemory | None]] = ContextVar("request_memory", default=None)
"""What the HTTP request holds on whose behalf this code runs."""


def keep(num_bytes: int) -> None:
    """Books bytes that the current request holds until its answer ends.

    Raises:
      ApiError: there is no room for them.
    """
    if (memory := request_memory.get()) is not None:
        memory.keep(num_bytes)


def hold() -> Callable[[], None]:
    """Lets the current request's memory outlive its HTTP exchange, until the returned function is called."""
    memory = request_memory.get()
    if memory is None:
        return lambda: None
    memory.hold()
    return memory.release


def is_large() -> bool:
    """Returns whether the current request holds so much that work over all of it belongs on a worker thread."""
    memory = request_memory.get()
    return memory is not None and memory.num_kept > _LARGE


def size_of(value: Any) -> int:
    """Returns the bytes that a parsed body takes: a bound from above, at most a quarter more than it is.

    It goes through the whole of it, some 10 million values per second.

    Args:
      value: made of pydantic's models and JSON's types; nothing but keys of objects may occur twice in it.
    """
    total, stack = 0, [value]
    keys = set[int]()
    while stack:
        each = stack.pop()
        kind = type(each)
        if kind is list:
            total += _allocated(each)
            if {*map(type, each)} == {int}:
                total += sum(_allocated(number) for number in each if number > _LARGEST_SHARED_INT)
            else:
                stack += each
        elif kind is dict:
            total += _allocated(each)
            new = [key for key in each if id(key) not in keys]
            keys.update(map(id, new))
            total += sum(map(_allocated, new))
            stack += each.values()
        elif isinstance(each, BaseModel):
            total += _allocated(each) + _allocated(each.__dict__) + _allocated(each.__pydantic_fields_set__)
            stack += each.__dict__.values()
            if each.__pydantic_extra__ is not None:
                stack.append(each.__pydantic_extra__)
        elif kind is str and len(each) <= 1:
            continue  # CPython has one object for each such text, but for rare letters
        elif each is not None and kind is not bool:
            total += _allocated(each)
    return total


_LARGEST_SHARED_INT: Final = 256
"""CPython has one object for each integer up to this one."""


def _allocated(value: object) -> int:
    """An object's own bytes; CPython allocates in multiples of 16."""
    return (sys.getsizeof(value) + 15) & ~15
