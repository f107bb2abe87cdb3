"""Streams a file out of a `multipart/form-data` body, piece by piece as it arrives."""

import re
from collections.abc import AsyncIterator
from typing import Final

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors.request_errors import bad_value, body_too_large

_MAX_FIELD_BYTES: Final = 4096
"""Maximum bytes of a field that is not the file."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a name loses, since no file system and no database takes them."""


class UploadReader:
    """Reads the fields of a form and the content of its part `file`.

    Attributes:
      fields: Fields that have arrived so far.
      filename: Name of the file; None until the header of its part has arrived.

    Args:
      content_type: Value of the request's header `content-type`.
      max_bytes: Maximum bytes of the file.

    Raises:
      ApiError: The header does not announce a form.
    """

    def __init__(self, content_type: str, max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise bad_value(None, "send the file as multipart/form-data, with the fields purpose and file")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pieces: list[bytes] = []
        self._header_name, self._header_value = bytearray(), bytearray()
        self._field = ""
        self._value = b""
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

    async def pieces(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the content of the file as it arrives.

        Raises:
          ApiError: The body is not the form that its header announces, or the file is too large.
        """
        async for chunk in request.stream():
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise bad_value(None, f"the body is not multipart/form-data: {error}") from None
            pieces, self._pieces = self._pieces, []
            if pieces:
                yield b"".join(pieces)
        if self.filename is None:
            raise bad_value("file", "the form has no field file")

    def _begin_part(self) -> None:
        self._field, self._value = "", b""

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
            self._num_bytes += len(data)
            if self._num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            self._pieces.append(data)
            return
        self._value += data
        if len(self._value) > _MAX_FIELD_BYTES:
            raise bad_value(None, f"a field of the form beside the file has more than {_MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        if self._field != "file":
            self.fields[self._field] = self._value.decode(errors="replace")
