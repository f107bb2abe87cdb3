"""Streams a file out of a `multipart/form-data` body, piece by piece as it arrives."""

import re
from collections.abc import AsyncIterator, Collection
from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import kinds
from ..errors.request_errors import ApiError, bad_value, body_too_large
from ..generation.admission import Admission

MAX_FORM_BYTES: Final = 64 * 2**10
"""Maximum bytes of a form without its file: fields, headers of parts and what separates them."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a name loses, since no file system and no database takes them."""


class UploadReader:
    """Reads the fields of a form and the content of its part `file`.

    Attributes:
      fields: Fields that have arrived so far, of those that the route reads.
      ignored: Names of the other fields, whose values are dropped.
      filename: Name of the file; None until the header of its part has arrived.

    Args:
      content_type: Value of the request's header `content-type`.
      names: Names of the fields that the route reads.
      max_bytes: Maximum bytes of the file.

    Raises:
      ApiError: The header does not announce a form.
    """

    def __init__(self, content_type: str, names: Collection[str], max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise bad_value(None, "send the file as multipart/form-data, with the fields purpose and file")
        self.fields: dict[str, str] = {}
        self.ignored: set[str] = set()
        self.filename: str | None = None
        self._names = names
        self._max_bytes = max_bytes
        self._num_form_bytes = self._num_file_bytes = self._num_charged = 0
        self._pieces: list[bytes] = []
        self._header_name, self._header_value = bytearray(), bytearray()
        self._field = ""
        self._value = bytearray()
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_part_data": lambda data, start, end: self._add(data[start:end]),
                    "on_part_end": self._end_part,
                },
            )
        except FormParserError as error:
            raise bad_value(None, f"the header content-type announces no form: {error}") from None

    async def pieces(self, request: Request, own: Admission) -> AsyncIterator[bytes]:
        """Yields the content of the file as it arrives.

        Args:
          own: Admission that is charged for all other bytes of the form.

        Raises:
          ApiError: The body is not the form that its header announces, the file or the rest of the form is too large,
            or the budget is exhausted.
        """
        async for chunk in request.stream():
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _closing(bad_value(None, f"the body is not multipart/form-data: {error}")) from None
            piece = b"".join(self._pieces)
            self._pieces.clear()
            await self._charge(len(chunk), len(piece), own)
            if piece:
                yield piece
        if self.filename is None:
            raise bad_value("file", "the form has no field file")

    async def _charge(self, num_bytes: int, num_file_bytes: int, own: Admission) -> None:
        """Charges the part of these bytes that is not the file's, and checks both sizes.

        The beginning of what might be a boundary is counted here, and as the file's with the next bytes if it was none.
        """
        self._num_file_bytes += num_file_bytes
        self._num_form_bytes += num_bytes - num_file_bytes
        if self._num_file_bytes > self._max_bytes:
            raise _closing(body_too_large(self._max_bytes))
        if self._num_form_bytes > MAX_FORM_BYTES:
            message = f"the form has more than {MAX_FORM_BYTES:,} bytes beside the file: send fewer or shorter fields"
            raise _closing(ApiError(kinds.REQUEST_TOO_LARGE, message))
        new = max(self._num_form_bytes - self._num_charged, 0)
        await own.keep(new)
        self._num_charged += new

    def _begin_part(self) -> None:
        self._field = ""
        self._value.clear()

    def _end_header(self) -> None:  # the parser limits headers
        if self._header_name.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._header_value))[1]
            self._field = options.get(b"name", b"").decode(errors="replace")
            if self._field == "file":
                name = options.get(b"filename", b"").decode(errors="replace")
                self.filename = _CONTROL.sub("", name) or "file"
        self._header_name.clear()
        self._header_value.clear()

    def _add(self, data: bytes) -> None:
        if self._field == "file":
            self._pieces.append(data)
        elif self._field in self._names:
            self._value += data

    def _end_part(self) -> None:
        if self._field in self._names:
            self.fields[self._field] = self._value.decode(errors="replace")
        elif self._field != "file":
            self.ignored.add(self._field)


def _closing(error: ApiError) -> ApiError:
    """Returns the error about a form, with the connection's end: the rest of the body is of no use."""
    return ApiError(error.kind, error.message, param=error.param, headers={**error.headers, "connection": "close"})
