"""Who may come in, and what is told on which port. Plain ASGI, put together in `app.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api.native.chat_page import FILES
from ..error_responses import send_error
from ..errors import ApiError, invalid_api_key
from ..settings import Settings, SettingsError
from ..tenancy.tenant import tenant
from .api_keys import ApiKeys, KeyFormatError, read_key_file

_OPEN: Final = frozenset({"/", "/v1", "/v1/", *FILES, "/health", "/health/ready", "/metrics"})
"""Paths that need no key: the chat page, which asks people for the key, its files, the API's root, which says where to
go, probes and metrics."""

_DEBUG: Final = "/debug/"
"""Paths that begin with it want the operator's key."""

_ADMIN_ONLY: Final = ("/metrics", _DEBUG)
_ON_ADMIN_PORT: Final = ("/health", *_ADMIN_ONLY)
"""Where there is a port for the operator: beginnings of paths that are served there only, and there at all."""


@dataclass(frozen=True, slots=True)
class Access:
    """
    Attributes:
      keys: demanded for all but the page and its files, probes and metrics, if there are any.
      admin_keys: demanded for `/debug/`, which does not exist without.
      admin_port: where metrics and `/debug/` are told instead of on the main port; None tells all on the one.
      allowed_origins: of web pages that may use the API from a browser; "*" stands for all.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    admin_keys: ApiKeys = field(default_factory=ApiKeys)
    admin_port: int | None = None
    allowed_origins: tuple[str, ...] = ()


def open_access(settings: Settings, admin_port: int | None) -> Access:
    """
    Args:
      admin_port: the one that was taken, if any was asked for.

    Raises:
      SettingsError: a key is none, or the file of keys cannot be read.
    """
    in_file = [] if settings.api_key_file is None else _read_keys(settings.api_key_file)
    given = [key.get_secret_value() for key in settings.api_key or ()]
    return Access(
        keys=_keys("api_key" if given else f"api_key_file {settings.api_key_file}", [*given, *in_file]),
        admin_keys=_keys("admin_key", [key.get_secret_value() for key in settings.admin_key or ()]),
        admin_port=admin_port,
        allowed_origins=settings.allow_origin,
    )


def _read_keys(path: Path) -> list[str]:
    try:
        entries = read_key_file(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"api_key_file {path}: cannot be read ({error})") from None
    if not entries:
        raise SettingsError(f"api_key_file {path}: has no key, which would let everybody in")
    return entries


def _keys(name: str, entries: Sequence[str]) -> ApiKeys:
    try:
        return ApiKeys(entries)
    except KeyFormatError as error:
        raise SettingsError(f"{name}: {error}") from None


def is_debug(path: str) -> bool:
    return path.startswith(_DEBUG)


def is_private(path: str) -> bool:
    """Whether clients need a key."""
    return path not in _OPEN and not is_debug(path)


class KeyRequired:
    """Lets requests pass that carry a key, and those that need none; notes whose the key is.

    Args:
      concerns: which paths need one.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, concerns: Callable[[str], bool]) -> None:
        self._app = app
        self._keys = keys
        self._concerns = concerns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._concerns(scope["path"]):
            owner = self._keys.owner(_keys_given(Headers(scope=scope)))
            if owner is None:
                await send_error(invalid_api_key(), scope, receive, send)
                return
            tenant.set(owner)
        await self._app(scope, receive, send)


class PortSplit:
    """Tells clients and the operator apart by the port that they came to."""

    def __init__(self, app: ASGIApp, admin_port: int) -> None:
        self._app = app
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._belongs(scope):
            error = ApiError(404, "no such URL on this port")
            await send_error(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _belongs(self, scope: Mapping[str, object]) -> bool:
        server, path = scope["server"], str(scope["path"])
        on_admin_port = isinstance(server, tuple) and server[1] == self._admin_port
        return path.startswith(_ON_ADMIN_PORT) if on_admin_port else not path.startswith(_ADMIN_ONLY)


def _keys_given(headers: Headers) -> list[bytes]:
    """As OpenAI's clients send it, and as Anthropic's do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key.encode("latin-1") for key in given]
