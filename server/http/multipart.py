"""Streams a file out of a `multipart/form-data` body, piece by piece as it arrives."""

import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors.request_errors import ApiError, bad_value, body_too_large

_MAX_FIELD_BYTES: Final = 4096
"""Maximum bytes of a field that is not the file, and of a part's headers."""

_PARAMETER: Final = re.compile(rb';[ \t]*([^\s;="]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
"""A parameter of a header, such as `; filename="in.jsonl"`."""

_CHARSETS: Final = {"utf-8": "utf-8", "iso-8859-1": "latin-1", "latin-1": "latin-1"}
"""Codecs of the charsets of `filename*` (RFC 8187). Python's other codecs may not be charsets, and may fail."""


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
      is_file: Whether the part is the file.
    """

    def __init__(self) -> None:
        self.name = ""
        self.filename: str | None = None
        self.is_file = False
        self._disposition = b""
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
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def finish_headers(self) -> None:
        parameters = _parameters(self._disposition)
        self.name = parameters.get("name", b"").decode("utf-8", "replace")
        self.is_file = self.name == "file"
        if self.is_file:
            self.filename = _filename(parameters)

    def add(self, data: bytes) -> None:
        self._data += data
        self._check(len(self._data))

    def _check(self, num_bytes: int) -> None:
        if num_bytes > _MAX_FIELD_BYTES:
            raise _too_long()


def _parameters(header: bytes) -> dict[str, bytes]:
    """Returns the parameters of a header by their lower-case names. The values have no quotation marks."""
    found: dict[str, bytes] = {}
    for name, value in _PARAMETER.findall(header):
        text = re.sub(rb"\\(.)", rb"\1", value[1:-1]) if value.startswith(b'"') else value.strip()
        found.setdefault(name.decode("latin-1").lower(), text)
    return found


def _filename(parameters: Mapping[str, bytes]) -> str | None:
    """Returns the name of a file; None if it has none.

    Raises:
      ApiError: The name is not text that every file system and database takes.
    """
    charset, *encoded = parameters.get("filename*", b"").split(b"'", 2)
    try:
        if len(encoded) == 2:
            name = unquote_to_bytes(encoded[1]).decode(_CHARSETS[charset.decode("latin-1").lower()])
        else:
            name = _decoded(parameters.get("filename", b""))
    except (KeyError, UnicodeDecodeError):
        raise _bad_filename() from None
    if any(unicodedata.category(char) == "Cc" for char in name):
        raise _bad_filename()
    return name or None


def _decoded(value: bytes) -> str:
    """Returns text in UTF-8, or in Latin-1 from old clients."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _bad_filename() -> ApiError:
    return bad_value("file", "file: the name must be UTF-8 or Latin-1 without control characters")


def _too_long() -> ApiError:
    return bad_value(None, f"a field of the form beside the file has more than {_MAX_FIELD_BYTES} bytes")
