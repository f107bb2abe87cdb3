"""Streams a file out of a `multipart/form-data` body, piece by piece as it arrives."""

from collections.abc import AsyncIterator
from email.message import Message
from typing import Final

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ...errors import ApiError, bad_value, body_too_large

_MAX_FIELD_BYTES: Final = 4096
"""Maximum bytes of a field that is not the file, and of a part's headers."""


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
        self._part = _Part()
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._part.add_header(data[start:end], is_name=True),
                "on_header_value": lambda data, start, end: self._part.add_header(data[start:end], is_name=False),
                "on_header_end": lambda: self._part.end_header(),
                "on_headers_finished": self._headers_finished,
                "on_part_data": lambda data, start, end: self._add(data[start:end]),
                "on_part_end": self._end,
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

    def _begin(self) -> None:
        self._part = _Part()

    def _headers_finished(self) -> None:
        self._part.finish_headers()
        if self._part.is_file:
            self.filename = self._part.filename or "file"

    def _add(self, data: bytes) -> None:
        if not self._part.is_file:
            self._part.add(data)
            return
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise body_too_large(self._max_bytes)
        self._pieces.append(data)

    def _end(self) -> None:
        if not self._part.is_file:
            self.fields[self._part.name] = self._part.text


class _Part:
    """A part of the form.

    Attributes:
      name: Name of its field, once its headers are complete.
      filename: Name of its file, if it has one.
      is_file: Whether it is the file.
    """

    def __init__(self) -> None:
        self.name = ""
        self.filename: str | None = None
        self.is_file = False
        self._headers = Message()
        self._name = b""
        self._value = b""
        self._data = b""

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def add_header(self, data: bytes, *, is_name: bool) -> None:
        if is_name:
            self._name += data
        else:
            self._value += data
        self._check(len(self._name) + len(self._value))

    def end_header(self) -> None:
        self._headers[self._name.decode("latin-1")] = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def finish_headers(self) -> None:
        self.name = str(self._headers.get_param("name", "", "content-disposition"))
        self.filename = self._headers.get_filename()
        self.is_file = self.name == "file"

    def add(self, data: bytes) -> None:
        self._data += data
        self._check(len(self._data))

    def _check(self, num_bytes: int) -> None:
        if num_bytes > _MAX_FIELD_BYTES:
            raise _too_long()


def _too_long() -> ApiError:
    return bad_value(None, f"a field of the form beside the file has more than {_MAX_FIELD_BYTES} bytes")
