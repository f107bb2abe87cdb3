"""Results of message batches, built from the output lines of stored batches."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from functools import partial
from typing import Any

import orjson

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import Admission
from ...schemas.json_limits import LONG_BYTES
from ..batches.batch_lines import leading_custom_id
from ..batches.batch_records import BatchRecord
from ..batches.batch_store import BatchStore


class BatchResults:
    """Results of a batch that has ended, as lines.

    Requests without output were canceled. Finding them takes a little memory for each request.
    """

    def __init__(self, batches: BatchStore, batch: BatchRecord, own: Admission) -> None:
        self._batches = batches
        self._batch = batch
        self._own = own
        self._has_result = bytearray(batch.num_lines // 8 + 1)

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yields lines, several at a time: first with messages, then with errors, then of canceled requests.

        Raises:
          StoreUnavailableError: The database is unavailable, or a file was deleted. The lines so far are incomplete.
        """
        batch = self._batch
        for file_id, count in ((batch.output_file, batch.num_completed), (batch.error_file, batch.num_failed)):
            if count:
                async for piece in self._pieces(file_id):
                    yield await self._own.run(partial(self._converted, piece), is_long=len(piece) >= LONG_BYTES)
        if batch.num_completed + batch.num_failed < batch.num_lines:
            number = 1
            async for piece in self._pieces(batch.input_file):
                requests = piece.splitlines()
                yield b"".join(self._canceled(requests, number))
                number += len(requests)

    async def _pieces(self, file_id: str) -> AsyncGenerator[bytes]:
        """Yields whole lines of a file; none if its client has deleted it."""
        try:
            record = await self._batches.file(file_id)
        except ApiError as error:
            if error.kind is not kinds.NO_SUCH_OBJECT:
                raise
            return
        async for piece in self._batches.content(record):
            yield piece

    def _converted(self, piece: bytes) -> bytes:
        """Returns the results of output lines, and records which requests they belong to."""
        return b"".join(map(self._result, piece.splitlines()))

    def _result(self, line: bytes) -> bytes:
        fields = self._own.parse_stored(line)
        number = int(fields["id"].rpartition("_")[2]) - 1
        self._has_result[number // 8] |= 1 << number % 8
        return _line(fields["custom_id"], _outcome(fields["response"], fields["error"]))

    def _canceled(self, requests: list[bytes], first: int) -> Iterator[bytes]:
        """Yields the results of requests that have no output.

        Args:
          first: Number of the first request, from 1.
        """
        for number, request in enumerate(requests, first - 1):
            if not self._has_result[number // 8] >> number % 8 & 1:
                yield _line(leading_custom_id(request), {"type": "canceled"})


def _outcome(response: Mapping[str, Any] | None, error: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the result of a request."""
    if response is not None:
        is_message = response["status_code"] == 200
        body = response["body"]
        return {"type": "succeeded", "message": body} if is_message else {"type": "errored", "error": body}
    assert error is not None
    if error["code"] == "batch_expired":
        return {"type": "expired"}
    detail = {"type": "api_error", "message": error["message"]}
    return {"type": "errored", "error": {"type": "error", "error": detail, "request_id": None}}


def _line(custom_id: str | None, result: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"custom_id": custom_id, "result": result}, option=orjson.OPT_APPEND_NEWLINE)
