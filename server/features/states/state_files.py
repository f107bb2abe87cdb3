"""Transfer of state files, and the memory that they share. Each has tens of megabytes, and some clients are slow."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from ....engine import TenantStore
from ...errors import kinds
from ...errors.request_errors import ApiError, body_too_large, too_many_bytes
from ...http.responses import until_disconnect
from ...http.routes import refuse_encoding
from ...tenants import tenant

FILES_AT_A_TIME: Final = 8
"""Number of the largest files that fit into memory together. More files fit if they are smaller."""

GRACE_S: Final = 5.0
"""Seconds after which a transfer may be ended for another one when memory is short."""

STATE_FILE_TYPE: Final = "application/octet-stream"
"""Media type of a state file."""

_PIECE_BYTES: Final = 256 * 2**10
"""Size of the pieces that are handed to a connection."""

_logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Transfer:
    """Transfer of one file.

    Attributes:
      owner: Tenant that the file belongs to.
      started: Start of the transfer, in seconds of the clock.
      scope: Timeout that ends the transfer.
      num_bytes: Memory that the file takes.
      may_give_way: Whether the transfer waits for its client, and may be ended to free memory for another one.
      gave_way: Whether the transfer was ended to free memory for another one.
    """

    owner: str
    started: float
    scope: asyncio.Timeout
    num_bytes: int = 0
    may_give_way: bool = True
    gave_way: bool = False


@dataclass(slots=True)
class StateFiles:
    """Memory for files that are being received, checked or sent.

    Only the received part of a file takes memory, so a slow client holds no more than it has sent. If another piece has
    no room, the oldest transfer of the tenant that holds the most is ended, unless it began within `GRACE_S`.

    Attributes:
      num_tenants: Number of tenants. With several tenants, none may hold more than it leaves free.
      clock: Monotonic clock in seconds.
    """

    num_tenants: int = 1
    clock: Callable[[], float] = time.monotonic
    _transfers: TenantStore[Transfer, Transfer] = field(default_factory=TenantStore)

    @property
    def num_bytes(self) -> int:
        """Memory that all files take."""
        return self._transfers.num_bytes

    @asynccontextmanager
    async def transfer(self) -> AsyncGenerator[Transfer]:
        """Counts the memory of a file while the `with` block runs.

        Raises:
          ApiError: The transfer was ended to free memory for another one.
        """
        transfer = None
        try:
            async with asyncio.timeout(None) as scope:
                transfer = Transfer(tenant.get(), self.clock(), scope)
                self._transfers.put(transfer, transfer.owner, transfer, 0)
                yield transfer
        except TimeoutError:
            if transfer is None or not transfer.gave_way:
                raise
            raise _gave_way() from None
        finally:
            if transfer is not None:
                self._transfers.pop(transfer)

    def grow(self, transfer: Transfer, num_bytes: int, limit: int) -> None:
        """Reserves memory for more of a file.

        Args:
          limit: Maximum size of one file.

        Raises:
          ApiError: The memory is full.
        """
        while not self._has_room(transfer, num_bytes, FILES_AT_A_TIME * limit):
            self._end(self._oldest_beside(transfer, num_bytes, FILES_AT_A_TIME * limit))
        transfer.num_bytes += num_bytes
        self._transfers.resize(transfer, transfer.num_bytes)

    def _has_room(self, transfer: Transfer, num_bytes: int, limit: int) -> bool:
        return self._transfers.has_room(transfer.owner, num_bytes, limit, is_shared=self.num_tenants > 1)

    def _oldest_beside(self, transfer: Transfer, num_bytes: int, limit: int) -> Transfer:
        """Returns the transfer to end for another one; a transfer of the same tenant if its share is used up.

        Raises:
          ApiError: All transfers began within `GRACE_S`.
        """
        is_full = not self._transfers.has_room(transfer.owner, num_bytes, limit, is_shared=False)
        owner = self._transfers.largest() if is_full else transfer.owner
        latest = self.clock() - GRACE_S
        for other in self._transfers.of(owner):
            if other is not transfer and other.may_give_way and other.num_bytes and other.started <= latest:
                return other
        raise too_many_bytes()

    def _end(self, transfer: Transfer) -> None:
        transfer.gave_way = True
        transfer.scope.reschedule(0)
        self._transfers.pop(transfer)


def _gave_way() -> ApiError:
    message = f"the file did not arrive within {GRACE_S:g} s, and others needed its memory: send it faster, or later"
    return ApiError(kinds.REQUEST_TOO_SLOW, message)


async def receive_file(request: Request, files: StateFiles, transfer: Transfer, limit: int) -> bytearray:
    """Returns a request's body.

    Args:
      files: Memory that all files share.
      transfer: Transfer of the body.
      limit: Maximum size.

    Raises:
      ApiError: The body or its announced size exceeds the limit, the body is compressed, or the memory is full.
    """
    refuse_encoding(request.headers)
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise body_too_large(limit)
    data = bytearray()
    async for chunk in request.stream():
        if len(data) + len(chunk) > limit:
            raise body_too_large(limit)
        files.grow(transfer, len(chunk), limit)
        data += chunk
    transfer.may_give_way = False
    return data


class StateFileResponse(StreamingResponse):
    """Response with a file, whose memory counts until the client has received it.

    Args:
      transfer: Transfer of the file.
      resources: Closes the transfer.
    """

    def __init__(self, data: bytes, name: str, transfer: Transfer, resources: AsyncExitStack) -> None:
        headers = {"content-length": str(len(data)), "content-disposition": f'attachment; filename="{name}"'}
        self._pieces = _pieces(data)
        super().__init__(self._pieces, headers=headers, media_type=STATE_FILE_TYPE)
        self._transfer = transfer
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._transfer.may_give_way = True
        try:
            async with self._resources, aclosing(self._pieces), until_disconnect(receive):
                await self.stream_response(send)
        except ClientDisconnect:
            _logger.debug("the client closed the connection before it had the file")
        except ApiError:  # the response has started, so its status cannot change
            _logger.info("a client received a state file too slowly, and others needed its memory")


async def _pieces(data: bytes) -> AsyncGenerator[bytes]:
    """Yields a file in pieces, so that a connection buffers at most one."""
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]
