"""Bodies of requests and responses that carry state files."""

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Final

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from ...errors.request_errors import ApiError, body_too_large
from ...http.responses import until_disconnect
from ...http.routes import refuse_encoding
from .state_files import StateFiles, Transfer

STATE_FILE_TYPE: Final = "application/octet-stream"
"""Media type of a state file."""

_PIECE_BYTES: Final = 256 * 2**10
"""Size of the pieces that are handed to a connection."""

_logger = logging.getLogger(__name__)


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
