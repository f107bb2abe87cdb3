"""Access control: API keys and their files, the admin port, and origins of web pages."""

import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import kinds
from ..errors.request_errors import ApiError
from ..observability.logging import RejectedKeys, audit
from ..settings import Settings, SettingsError
from ..tenants import tenant
from .error_responses import send_error
from .middleware import client_of

UNNAMED: Final = "default"
"""Owner of keys without a name."""

_ENTRY: Final = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]{1,64}):)?(?P<key>[A-Za-z0-9._~+/=-]+)")
"""`NAME:KEY` or `KEY`. Keys have the characters of a bearer token (RFC 6750), which does not include the colon."""

_DEBUG: Final = "/debug/"
"""Prefix of paths that require an admin key."""

_ADMIN_ONLY: Final = ("/metrics", _DEBUG)
"""Prefixes of paths that move from the main port to the admin port, if there is one."""

_ON_ADMIN_PORT: Final = ("/health", *_ADMIN_ONLY)
"""Prefixes of paths that the admin port serves."""


class KeyFormatError(ValueError):
    """An API key is malformed. The message is one line and does not repeat the key."""


class ApiKeys:
    """Maps API keys to their owners. Only hashes of the keys are kept.

    Args:
      entries: `NAME:KEY`, or `KEY` alone, whose owner is "default". An owner may have several keys.

    Raises:
      KeyFormatError: An entry is malformed, or two owners have the same key.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._owners = _owners(entries)

    def replace(self, entries: Iterable[str]) -> None:
        """Replaces the accepted keys.

        Raises:
          KeyFormatError: An entry is malformed, or two owners have the same key. The keys are unchanged.
        """
        self._owners = _owners(entries)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._owners)

    @property
    def owners(self) -> tuple[str, ...]:
        """Owners in the order of their first keys."""
        return tuple(dict.fromkeys(self._owners.values()))

    def owner(self, given: Iterable[bytes]) -> str | None:
        """Returns the owner of the first known key, or None. It takes the same time for wrong and right keys."""
        digests = [_digest(key) for key in given]
        found = [
            owner for known, owner in self._owners.items() for digest in digests if hmac.compare_digest(known, digest)
        ]
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Access:
    """Access control of one server.

    Attributes:
      keys: API keys; if there are none, every path is public. `reload_keys` replaces them in place.
      admin_keys: Keys for operators' paths, such as `/debug/`, which do not exist without them.
      admin_port: Port that serves metrics and operators' paths instead; None serves all on the main port.
      allowed_origins: Origins of web pages that may use the API from a browser; "*" allows all.
      rejected: Writes rejected keys into the audit log.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    admin_keys: ApiKeys = field(default_factory=ApiKeys)
    admin_port: int | None = None
    allowed_origins: tuple[str, ...] = ()
    rejected: RejectedKeys = field(default_factory=RejectedKeys)


def load_access(settings: Settings, admin_port: int | None) -> Access:
    """Returns the access control that the settings define.

    Args:
      settings: Settings of the server.
      admin_port: Port that the admin listener is bound to, if there is one.

    Raises:
      SettingsError: A key is malformed, or the key file cannot be read.
    """
    access = Access(
        admin_keys=_keys("admin_key", [key.get_secret_value() for key in settings.admin_key or ()]),
        admin_port=admin_port,
        allowed_origins=settings.allow_origin,
    )
    reload_keys(access, settings)
    return access


def reload_keys(access: Access, settings: Settings) -> None:
    """Reads the key file again, and replaces the accepted keys by the file's and the settings' keys.

    Raises:
      SettingsError: A key is malformed, or the key file cannot be read. The keys are unchanged.
    """
    in_file = [] if settings.api_key_file is None else _read_keys(settings.api_key_file)
    given = [key.get_secret_value() for key in settings.api_key or ()]
    try:
        access.keys.replace([*given, *in_file])
    except KeyFormatError as error:
        name = "api_key" if given else f"api_key_file {settings.api_key_file}"
        raise SettingsError(f"{name}: {error}") from None


def _read_keys(path: Path) -> list[str]:
    try:
        entries = read_key_file(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"api_key_file {path}: cannot be read ({error})") from None
    if not entries:
        raise SettingsError(f"api_key_file {path}: has no key; add a line KEY or NAME:KEY")
    return entries


def _keys(name: str, entries: Sequence[str]) -> ApiKeys:
    try:
        return ApiKeys(entries)
    except KeyFormatError as error:
        raise SettingsError(f"{name}: {error}") from None


def read_key_file(path: Path) -> list[str]:
    """Returns the entries of a key file, one per line, without empty lines and comments (#).

    Raises:
      OSError, UnicodeDecodeError: The file cannot be read.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _owners(entries: Iterable[str]) -> dict[bytes, str]:
    """Returns the owner of each key, by the hash of the key."""
    owners: dict[bytes, str] = {}
    for number, entry in enumerate(entries, 1):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise KeyFormatError(
                f"entry {number} must be KEY or NAME:KEY; keys are made of letters, digits and ._~+/=-, "
                "names of letters, digits and ._-"
            )
        owner = owners.setdefault(_digest(match["key"].encode()), match["name"] or UNNAMED)
        if owner != (match["name"] or UNNAMED):
            raise KeyFormatError(f"entry {number} repeats the key of {owner}")
    return owners


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def needs_admin_key(path: str, admin_paths: Collection[str]) -> bool:
    """Returns whether a path requires an admin key."""
    return path.startswith(_DEBUG) or path in admin_paths


def needs_key(path: str, public_paths: Collection[str]) -> bool:
    """Returns whether a path requires an API key."""
    return path not in public_paths and not path.startswith(_DEBUG)


class KeyAuthentication:
    """Responds 401 where a path requires a key and the request has none; sets the tenant to the key's owner.

    Args:
      app: Wrapped application.
      access: Access control of the server.
      is_protected: Returns whether a path requires a key.
      is_admin: Whether the accepted keys are the admin keys, whose requests the audit log has.
    """

    def __init__(
        self, app: ASGIApp, access: Access, is_protected: Callable[[str], bool], *, is_admin: bool = False
    ) -> None:
        self._app = app
        self._keys = access.admin_keys if is_admin else access.keys
        self._is_protected = is_protected
        self._is_admin = is_admin
        self._rejected = access.rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_protected(scope["path"]):
            presented, path = _presented_keys(Headers(scope=scope)), scope["path"]
            owner = self._keys.owner(presented)
            if owner is None:
                self._rejected.write(client_of(scope), path, presented)
                message = "missing or wrong API key: send the header Authorization: Bearer KEY, or x-api-key: KEY"
                await send_error(ApiError(kinds.INVALID_API_KEY, message), scope, receive, send)
                return
            tenant.set(owner)
            if self._is_admin:
                audit("admin", client=client_of(scope), method=scope["method"], path=path)
        await self._app(scope, receive, send)


class PortSplit:
    """Responds 404 to paths that the request's port does not serve.

    Args:
      app: Wrapped application.
      admin_port: Port that serves the admin paths.
      admin_paths: Further paths that need an admin key.
    """

    def __init__(self, app: ASGIApp, admin_port: int, admin_paths: Collection[str] = ()) -> None:
        self._app = app
        self._admin_port = admin_port
        self._admin_paths = admin_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_served(scope):
            error = ApiError(kinds.NO_SUCH_URL, "no such URL on this port")
            await send_error(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_served(self, scope: Mapping[str, object]) -> bool:
        server, path = scope["server"], str(scope["path"])
        on_admin_port = isinstance(server, tuple) and server[1] == self._admin_port
        if path in self._admin_paths:
            return on_admin_port
        return path.startswith(_ON_ADMIN_PORT) if on_admin_port else not path.startswith(_ADMIN_ONLY)


def _presented_keys(headers: Headers) -> list[bytes]:
    """Returns the keys of `authorization` (OpenAI's clients) and `x-api-key` (Anthropic's)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key.encode("latin-1") for key in given]
