"""Admission: the single entry point for all work.

Each HTTP request, line of a batch, response of another replica and call of the Python API has an admission. It charges
memory to a tenant, in budgets that all tenants share, and gives long work its turn on a worker thread. Only an
admission decodes JSON of clients and of the store, within limits that apply before the text is parsed.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final
from uuid import uuid4

from pydantic import BaseModel
from pydantic_core import from_json

from ..errors import kinds
from ..errors.request_errors import ApiError, bad_value, body_too_large
from ..schemas.json_limits import LONG_BYTES, JsonError, decode_json
from ..tenants import TenantLocks, Workers, tenant

MAX_OVERTAKEN: Final = 64
"""Number of later reservations that go before one that waits for bytes. Then no further one does, so that large work
gets its bytes once the work that holds some has ended."""


class _Waiter:
    """A reservation that waits.

    Attributes:
      num_overtaken: Number of later reservations that were made meanwhile.
    """

    def __init__(self) -> None:
        self.num_overtaken = 0

    @property
    def is_aged(self) -> bool:
        return self.num_overtaken >= MAX_OVERTAKEN


class ByteBudget:
    """A number of bytes that tenants share.

    With several tenants, none may hold more than it leaves free, so that another tenant has room. A reservation that
    waits is overtaken by at most `MAX_OVERTAKEN` others that came later.

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
        self._waiters = list[_Waiter]()  # oldest first
        self._has_changed = asyncio.Event()

    def reserve(self, owner: str, num_bytes: int) -> None:
        """Reserves bytes for a tenant. A tenant that holds nothing may exceed its share.

        Raises:
          ApiError: 413 if the bytes can never fit, 503 if they do not fit now, 429 if the tenant would exceed its
            share. Nothing is reserved then.
        """
        if not num_bytes:
            return
        if num_bytes > self._max_bytes:
            size = f"{self._max_bytes / 2**20:.0f} MiB"
            message = f"the request would hold more than {size} of memory: send fewer or shorter prompts"
            raise ApiError(kinds.REQUEST_TOO_LARGE, message)
        free, held = self._max_bytes - self.num_bytes, self._held[owner]
        if num_bytes > free:
            raise ApiError(kinds.OVERLOADED, "too many large requests at a time: try again later")
        if self._is_shared and held and held + num_bytes > free:
            message = (
                "this API key's requests hold too much memory at a time: wait for some of them, or send smaller ones"
            )
            raise ApiError(kinds.TENANT_MEMORY_FULL, message)
        self.num_bytes += num_bytes
        self._held[owner] = held + num_bytes

    def release(self, owner: str, num_bytes: int) -> None:
        """Returns bytes of a tenant to the budget."""
        self.num_bytes -= num_bytes
        self._held[owner] -= num_bytes
        if not self._held[owner]:
            del self._held[owner]
        self._has_changed.set()

    async def wait(self, owner: str, num_bytes: int) -> None:
        """Reserves bytes for a tenant once they fit, and no earlier reservation has waited for too many others.

        Raises:
          ApiError: 413, the bytes can never fit.
        """
        if not num_bytes:
            return
        waiter = _Waiter()
        self._waiters.append(waiter)
        try:
            while not self._has_reserved(waiter, owner, num_bytes):
                self._has_changed.clear()
                await self._has_changed.wait()
        finally:
            self._waiters.remove(waiter)
            self._has_changed.set()  # an aged reservation blocks others no longer

    def _has_reserved(self, waiter: _Waiter, owner: str, num_bytes: int) -> bool:
        """Reserves the bytes of a waiter if they fit and it is its turn; returns whether it did."""
        earlier = self._waiters[: self._waiters.index(waiter)]
        if any(other.is_aged for other in earlier):
            return False
        try:
            self.reserve(owner, num_bytes)
        except ApiError as error:
            if error.kind is kinds.REQUEST_TOO_LARGE:
                raise
            return False
        for other in earlier:
            other.num_overtaken += 1
        return True


_UNLIMITED: Final = ByteBudget(sys.maxsize)
"""Budget of work that is not limited."""

BODY_FLAG: Final = "--max-body-bytes"
"""Flag that sets the maximum size of a body."""

type _Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI channel from which a request's body is received."""

_LARGE: Final = 64 * 2**10
"""Bytes of a parsed body above which a worker thread prepares its request, which takes milliseconds."""


class Admission:
    """Right of one piece of work to use memory and worker threads on behalf of a tenant.

    By default it is unbounded, for a process that runs its own model.

    Args:
      workers: Threads for long work; None runs it on the current thread.
      raw: Budget of JSON that is not parsed yet.
      kept: Budget of parsed values, prompts, and the parts of them that responses repeat.
      owner: The tenant.

    Attributes:
      preemptible: Whether the work takes only slots that no other request is waiting for.
      name: Name of work that may run again after its replica has died; empty for all other work.
      is_repeated: Whether the work may have run before.
      num_kept: Bytes that are held until the work ends.
      is_large: Whether `num_kept` is so large that each step of the work should run on a worker thread.
    """

    preemptible = False
    name = ""
    is_repeated = False

    def __init__(
        self,
        workers: Workers | None = None,
        raw: ByteBudget = _UNLIMITED,
        kept: ByteBudget = _UNLIMITED,
        owner: str = "",
    ) -> None:
        self.owner = owner
        self.num_kept = 0
        self.is_large = False
        self._workers = workers
        self._raw = raw
        self._kept = kept
        self._num_raw = 0
        self._num_holders = 1

    def new_id(self, part: str) -> str:
        """Returns 32 hexadecimal digits: random ones, or the same ones each time that work with a name runs.

        Args:
          part: Name of what gets the id, unique in the work.
        """
        return blake2b(f"{self.name} {part}".encode(), digest_size=16).hexdigest() if self.name else uuid4().hex

    def charged(self, receive: _Receive, max_bytes: int) -> _Receive:
        """Returns an ASGI channel that charges the bytes of JSON that arrive.

        Raises:
          ApiError: From the channel: the body has more than `max_bytes`, or the budget is exhausted.
        """
        num_bytes = 0

        async def receive_charged() -> MutableMapping[str, Any]:
            nonlocal num_bytes
            message = await receive()
            new = len(message.get("body", b""))
            num_bytes += new
            if num_bytes > max_bytes:
                raise body_too_large(max_bytes, BODY_FLAG)
            self._raw.reserve(self.owner, new)
            self._num_raw += new
            return message

        return receive_charged

    async def parse[T](self, raw: bytes | bytearray, build: Callable[[Any], T]) -> T:
        """Returns the result of `build` for a parsed body. A long body is parsed on a worker thread.

        The result is charged instead of the received bytes, until the work ends.

        Args:
          raw: JSON in UTF-8.

        Raises:
          ApiError: The body is not JSON or has too many arrays and objects, or the budget is exhausted.
        """

        def parse() -> tuple[T, int]:
            try:
                result = build(decode_json(raw))
            except JsonError as error:
                raise bad_value(None, f"the body {error}") from None
            return result, size_of(result)

        result, num_bytes = await self.run(parse, is_long=True) if len(raw) >= LONG_BYTES else parse()
        self._drop_raw()
        await self.keep(num_bytes)
        return result

    def parse_now(self, raw: bytes | bytearray) -> Any:
        """Returns the value of JSON. Call it for short JSON, or on a worker thread. Nothing is charged for the value.

        Raises:
          JsonError: The text is not JSON, or has too many arrays and objects.
        """
        return decode_json(raw)

    async def run[T](self, work: Callable[[], T], *, is_long: bool = False) -> T:
        """Runs a step of the work, on a worker thread in the tenant's turn if the step is long or the work is large."""
        if self._workers is not None and (is_long or self.is_large):
            return await self._workers.run(work)
        return work()

    async def keep(self, num_bytes: int) -> None:
        """Charges bytes until the work ends.

        Raises:
          ApiError: The budget is exhausted.
        """
        self._kept.reserve(self.owner, num_bytes)
        self.num_kept += num_bytes
        self.is_large = self.num_kept > _LARGE

    def drop(self, num_bytes: int) -> None:
        """Releases bytes that `keep` has charged, before the work ends."""
        self._kept.release(self.owner, num_bytes)
        self.num_kept -= num_bytes
        self.is_large = self.num_kept > _LARGE

    @asynccontextmanager
    async def holding(self, num_bytes: int) -> AsyncGenerator[None]:
        """Charges bytes until the end of the `with` block.

        Raises:
          ApiError: The budget is exhausted.
        """
        await self.keep(num_bytes)
        try:
            yield
        finally:
            self.drop(num_bytes)

    def hold(self) -> None:
        """Adds a holder of the charged bytes, which stay charged until each holder has called `release`."""
        self._num_holders += 1

    def release(self) -> None:
        """Drops a holder; the caller that opened the admission is the first. The last one releases all bytes."""
        self._num_holders -= 1
        if not self._num_holders:
            self._end()

    def _end(self) -> None:
        self._drop_raw()
        self._kept.release(self.owner, self.num_kept)
        self.num_kept = 0

    def _drop_raw(self) -> None:
        self._raw.release(self.owner, self._num_raw)
        self._num_raw = 0


admission: Final[ContextVar[Admission]] = ContextVar("admission", default=Admission())  # noqa: B039 - unbounded
"""Admission of the current work. By default it is unbounded, and long work runs on the current thread."""


def stored_json(raw: bytes) -> Any:
    """Returns the value of JSON that a server wrote. Nothing is charged for it. Call it like `Admission.parse_now`."""
    return from_json(raw)


class PreemptibleWork:
    """Open preemptible work, and work that must run without it.

    Attributes:
      is_barred: Whether no preemptible work should run.
    """

    def __init__(self) -> None:
        self._num_open = self._num_alone = 0
        self._has_none = asyncio.Event()
        self._has_none.set()

    @property
    def is_barred(self) -> bool:
        return self._num_alone > 0

    def add(self, change: int) -> None:
        """Counts work that is opened (1) or released (-1)."""
        self._num_open += change
        if self._num_open:
            self._has_none.clear()
        else:
            self._has_none.set()

    @asynccontextmanager
    async def barred(self) -> AsyncIterator[None]:
        """Waits until no preemptible work is open, and bars it until the end of the `with` block."""
        self._num_alone += 1
        try:
            await self._has_none.wait()
            yield
        finally:
            self._num_alone -= 1


class PreemptibleAdmission(Admission):
    """Admission of work that waits for memory instead of failing, so that no results are discarded.

    While it waits, it releases the bytes that it holds, and then charges all bytes together, so that no waiting work
    blocks another. Few bytes are charged this way, since the work of a tenant takes turns from its first charge to its
    last. The caller that begins the work limits the bytes that are not parsed, and settles and releases it.

    Args:
      admissions: Admissions of the server.
      name: See `Admission`.
      is_repeated: See `Admission`.
    """

    preemptible = True

    def __init__(self, admissions: "Admissions", name: str = "", *, is_repeated: bool = False) -> None:
        super().__init__(admissions.workers, kept=admissions.kept_preemptible, owner=tenant.get())
        self.name = name
        self.is_repeated = is_repeated
        self._work = admissions.preemptible
        self._work.add(1)
        self._turns = admissions.turns
        self._turn = AsyncExitStack()

    async def begin(self) -> None:
        """Waits for the tenant's turn. The work must not charge anything before it."""
        await self._turn.enter_async_context(self._turns.hold())

    async def keep(self, num_bytes: int) -> None:
        """Charges bytes until the work ends, once they fit.

        Raises:
          ApiError: 413, the bytes can never fit.
        """
        held, self.num_kept = self.num_kept, 0
        self._kept.release(self.owner, held)
        await self._kept.wait(self.owner, held + num_bytes)
        self.num_kept = held + num_bytes
        self.is_large = self.num_kept > _LARGE

    async def settle(self) -> None:
        """Ends the tenant's turn. The work must not charge anything after it."""
        await self._turn.aclose()

    def _end(self) -> None:
        super()._end()
        self._work.add(-1)


MAX_BODY_BYTES: Final = 4 * 2**20
"""Default maximum size of a body: a prompt of about a million tokens as text, or half a million token ids."""

MAX_KEPT_BYTES: Final = 2**30
"""Default bytes that all admissions may hold: parsed bodies, prompts, and the parts of them that responses repeat.

A parsed body may take thirty times its size; most take about their own size.
"""

_MAX_RAW_BODIES: Final = 32
"""Number of bodies of the maximum size that may be received at the same time."""

_LARGEST_REQUESTS: Final = 4
"""Number of requests that may each hold as much as the largest body can grow to."""

_GROWTH: Final = 64
"""Maximum ratio of a request's memory (parsed values and prompt token ids) to the size of its body."""


class Admissions:
    """Budgets and worker threads that all work of a server shares.

    Args:
      max_body_bytes: Maximum bytes of one body.
      max_kept_bytes: See the attribute; raised if one body could grow to more.
      tenants: Number of tenants.

    Attributes:
      max_body_bytes: Maximum bytes of one body.
      max_expanded_bytes: Maximum bytes of what one body names, such as a stored conversation: as for the body itself,
        but not less than by default.
      max_kept_bytes: Maximum bytes that all work may hold; preemptible work has a separate budget of the same size.
      workers: Threads for long work.
      kept_preemptible: Budget of preemptible work.
      turns: Turns of the tenants' preemptible work.
      preemptible: Open preemptible work.
    """

    def __init__(
        self, max_body_bytes: int = MAX_BODY_BYTES, max_kept_bytes: int = MAX_KEPT_BYTES, tenants: int = 1
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_expanded_bytes = max(MAX_BODY_BYTES, max_body_bytes)
        self.max_kept_bytes = max(max_kept_bytes, _LARGEST_REQUESTS * _GROWTH * max_body_bytes)
        self.workers = Workers(tenants)
        self._raw = ByteBudget(_MAX_RAW_BODIES * max_body_bytes, tenants)
        self._kept = ByteBudget(self.max_kept_bytes, tenants)
        self.kept_preemptible = ByteBudget(self.max_kept_bytes, tenants)  # or it would exhaust the others' budget
        self.turns = TenantLocks()
        self.preemptible = PreemptibleWork()

    def open(self) -> Admission:
        """Returns an admission for work of the current tenant. The caller must release it."""
        return Admission(self.workers, self._raw, self._kept, tenant.get())

    def unbounded(self) -> Admission:
        """Returns an admission for work of the process itself."""
        return Admission(self.workers, owner=tenant.get())


_LARGEST_SHARED_INT: Final = 256
"""Largest integer that CPython caches."""


def size_of(value: Any) -> int:
    """Returns an upper bound, at most 25% too large, of the bytes that a parsed body takes.

    Visits about 10 million values per second.

    Args:
      value: Tree of pydantic models and JSON types. Only keys of objects may occur twice in it.
    """
    total, stack = 0, [value]
    keys = set[int]()
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is list:
            total += _allocated(item)
            if {*map(type, item)} == {int}:
                total += sum(_allocated(number) for number in item if number > _LARGEST_SHARED_INT)
            else:
                stack += item
        elif kind is dict:
            total += _allocated(item)
            new = [key for key in item if id(key) not in keys]
            keys.update(map(id, new))
            total += sum(map(_allocated, new))
            stack += item.values()
        elif isinstance(item, BaseModel):
            total += _allocated(item) + _allocated(item.__dict__) + _allocated(item.__pydantic_fields_set__)
            stack += item.__dict__.values()
            stack += [each for each in (item.__pydantic_extra__, item.__pydantic_private__) if each is not None]
        elif kind is str and len(item) <= 1:
            continue  # CPython shares strings of one character, except rare ones
        elif item is not None and kind is not bool:
            total += _allocated(item)
    return total


def _allocated(value: object) -> int:
    """Returns an object's own bytes; CPython allocates in multiples of 16."""
    return (sys.getsizeof(value) + 15) & ~15
