"""Server with OpenAI's API, as a client sees it: first queries, events of its streams, and the text of its errors."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from ..settings import SettingsError
from ..terminal.failure import CommandError
from .http_client import Address, ClientError, HttpClient, Response, UrlError

_MAX_MESSAGE: Final = 160
"""Maximum characters of a server's error that are repeated."""


def server_addresses(urls: Sequence[str], api_key: str | None, settings: Mapping[str, Any]) -> list[Address]:
    """Returns the addresses in the value of `--url`.

    Args:
      urls: Addresses as the user wrote them.
      api_key: Key of the servers; None sends none.
      settings: Settings of a model in this process, all of which must be None.

    Raises:
      SettingsError: An address or the key cannot be used, or a setting was given.
    """
    for name, value in settings.items():
        if value is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for a model that is loaded here, not with --url")
    try:
        addresses = [Address.parse(url.strip()) for url in urls]
    except UrlError as error:
        raise SettingsError(f"--url {error}") from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError("--api-key must be printable ASCII in one line")
    return addresses


async def server_version(client: HttpClient) -> str | None:
    """Returns the version that Roost and vLLM report at /version; None if the server has no such path.

    Raises:
      CommandError: The server cannot be reached.
    """
    try:
        response = await client.get("/version")
    except ClientError as error:
        raise CommandError(f"the server cannot be reached: {error}; see --url") from None
    found = _json(response)
    version = found.get("version") if isinstance(found, dict) else None
    return None if version is None else str(version)


async def first_model(client: HttpClient) -> str:
    """Returns the id of the first model that the server lists.

    Raises:
      CommandError: The server does not list a model.
    """
    try:
        response = await client.get("/v1/models")
        return str(_json(response)["data"][0]["id"])
    except ClientError as error:
        raise CommandError(f"the server cannot be asked for its models: {error}; see --url") from None
    except (KeyError, IndexError, TypeError):
        reason = http_failure(response) if response.status != 200 else "it lists none"
        fix = "give its key with --api-key or ROOST_API_KEY" if response.status == 401 else "name one with --model"
        raise CommandError(f"the server does not list its models ({reason}); {fix}") from None


def http_failure(response: Response) -> str:
    """Returns a line about a response whose status is not 200."""
    try:
        body = orjson.loads(response.body)
        message = error_message(body) if isinstance(body, dict) else ""
    except orjson.JSONDecodeError:
        message = ""
    return f"HTTP {response.status}" + (f": {message}" if message else "")


def error_message(body: Mapping[str, Any]) -> str:
    """Returns the text of an error in OpenAI's shape, or in another server's shape."""
    error = body.get("error") or body
    text = error.get("message") or error.get("detail") or "" if isinstance(error, dict) else error
    return " ".join(str(text).split())[:_MAX_MESSAGE]


class EventParser:
    """Returns the data of each complete event.

    Lines may end in LF, CR or CRLF. Comments and the names and ids of events are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._ended_in_cr = False
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the events that a piece completes. Pieces may end anywhere."""
        if self._ended_in_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._ended_in_cr = False
        if b"\r" in piece:
            self._ended_in_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [event for line in lines if (event := self._feed_line(line)) is not None]

    def _feed_line(self, line: bytes) -> bytes | None:
        """Returns the event that a line ends, if any: an empty line ends an event."""
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            return None
        if line or not self._data:
            return None
        event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data = []
        return event


def _json(response: Response) -> Any:
    try:
        return orjson.loads(response.body) if response.status == 200 else {}
    except orjson.JSONDecodeError:
        return {}
