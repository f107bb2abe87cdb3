"""Admission: the single entry point for all work.

Each HTTP request, line of a batch, response of another replica and call of the Python API has an admission. It charges
memory to a tenant, in budgets that all tenants share, and gives long work its turn on a worker thread.
"""

import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Final
from uuid import uuid4

from ..errors.request_errors import bad_value
from ..schemas.json_limits import LONG_BYTES, JsonError, decode_json, decode_own_json, size_of
from ..tenancy.workers import Workers
from .byte_budget import ByteBudget

_LARGE: Final = 64 * 2**10
"""Bytes of a parsed body above which a worker thread prepares its request, which takes milliseconds."""


class Admission:
    """Right of one piece of work to use memory and worker threads on behalf of a tenant.

    Without budgets it is unbounded, for a process that runs its own model.

    Args:
      workers: Threads for long work; None runs it on the current thread.
      raw: Budget of JSON that is not parsed yet; None sets no limit.
      kept: Budget of parsed values, prompts, and the parts of them that responses repeat; None sets no limit.
      owner: The tenant.

    Attributes:
      preemptible: Whether the work takes only slots that no other request is waiting for.
      name: Name of work that may run again after its replica has died; empty for all other work.
      is_repeated: Whether the work may have run before.
      num_kept: Bytes that are held until the work ends.
    """

    preemptible = False
    name = ""
    is_repeated = False

    def __init__(
        self,
        workers: Workers | None = None,
        raw: ByteBudget | None = None,
        kept: ByteBudget | None = None,
        owner: str = "",
    ) -> None:
        self.owner = owner
        self.num_kept = 0
        self._workers = workers
        self._raw = raw
        self._kept = kept
        self._num_raw = 0
        self._num_holders = 1

    @property
    def is_large(self) -> bool:
        """Whether each step of the work should run on a worker thread."""
        return self.num_kept > _LARGE

    def new_id(self, part: str) -> str:
        """Returns 32 hexadecimal digits: random ones, or the same ones each time that work with a name runs.

        Args:
          part: Name of what gets the id, unique in the work.
        """
        return blake2b(f"{self.name} {part}".encode(), digest_size=16).hexdigest() if self.name else uuid4().hex

    async def begin(self) -> None:
        """Waits until the work may charge its first bytes."""

    def receive(self, num_bytes: int) -> None:
        """Charges bytes of JSON that has arrived.

        Raises:
          ApiError: The budget is exhausted.
        """
        if self._raw is not None:
            self._raw.reserve(self.owner, num_bytes)
            self._num_raw += num_bytes

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
                result = build(self.parse_now(raw))
                return result, size_of(result)
            except JsonError as error:
                raise bad_value(None, f"the body {error}") from None

        result, num_bytes = await self.make(parse, is_long=len(raw) >= LONG_BYTES)
        self._drop_raw()
        await self.keep(num_bytes)
        return result

    def parse_now(self, raw: bytes | bytearray) -> Any:
        """Returns the value of JSON. Call it for short JSON, or on a worker thread. Nothing is charged for the value.

        Raises:
          JsonError: The text is not JSON, or has too many arrays and objects.
        """
        return decode_json(raw)

    def parse_stored(self, raw: bytes) -> Any:
        """Returns the value of JSON from the store. For short JSON, or on a worker thread. Nothing is charged."""
        return decode_own_json(raw)

    async def run[T](self, work: Callable[[], T], *, is_long: bool = False) -> T:
        """Runs a step of the work, on a worker thread in the tenant's turn if the step is long or the work is large."""
        if self._workers is not None and (is_long or self.is_large):
            return await self._workers.run(work)
        return work()

    async def make[T](self, work: Callable[[], T], *, is_long: bool) -> T:
        """Runs a step that makes many objects; see `run`."""

        def uncollected() -> T:
            was_enabled = gc.isenabled()
            gc.disable()  # a million new objects would trigger many collections, and each one stops all threads
            try:
                return work()
            finally:
                if was_enabled:
                    gc.enable()

        return await self.run(uncollected, is_long=is_long)

    async def keep(self, num_bytes: int) -> None:
        """Charges bytes until the work ends.

        Raises:
          ApiError: The budget is exhausted.
        """
        if self._kept is not None:
            self._kept.reserve(self.owner, num_bytes)
            self.num_kept += num_bytes

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
            if self._kept is not None:
                self._kept.release(self.owner, num_bytes)
                self.num_kept -= num_bytes

    async def settle(self) -> None:
        """Ends the charges. The work must not charge anything after this."""

    def hold(self) -> Callable[[], None]:
        """Keeps all bytes charged after the end of the work, until the returned function is first called."""
        self._num_holders += 1
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self.release()

        return release

    def release(self) -> None:
        """Drops a holder. The last one releases all bytes."""
        self._num_holders -= 1
        if not self._num_holders:
            self._end()

    def _end(self) -> None:
        self._drop_raw()
        if self._kept is not None:
            self._kept.release(self.owner, self.num_kept)
        self.num_kept = 0

    def _drop_raw(self) -> None:
        if self._raw is not None:
            self._raw.release(self.owner, self._num_raw)
        self._num_raw = 0


admission: Final[ContextVar[Admission]] = ContextVar("admission", default=Admission())  # noqa: B039 - unbounded
"""Admission of the current work. By default it is unbounded, and long work runs on the current thread."""
