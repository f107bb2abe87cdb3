"""Access control: API keys and their files, the admin port, and origins of web pages."""

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Scope

from ..errors import kinds
from ..errors.request_errors import ApiError
from ..observability.logging import RejectedKeys, audit
from ..settings import Settings, SettingsError
from ..tenants import tenant
from .middleware import Guard, client_of
from .origins import BrowserPolicy, browser_policy

UNNAMED: Final = "default"
"""Owner of keys without a name."""

_ENTRY: Final = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]{1,64}):)?(?P<key>[A-Za-z0-9._~+/=-]+)")
"""`NAME:KEY` or `KEY`. Keys have the characters of a bearer token (RFC 6750), which does not include the colon."""

_DEBUG: Final = "/debug/"
"""Prefix of paths that require an admin key."""

_METRICS: Final = "/metrics"
"""Path that moves from the main port to the admin port, if there is one, like paths that require an admin key."""

_HEALTH: Final = "/health"
"""Prefix of paths that both ports serve."""


class ApiKeys:
    """Maps API keys to their owners. Only hashes of the keys are kept.

    Args:
      entries: `NAME:KEY`, or `KEY` alone, whose owner is "default". An owner may have several keys.
      source: Where the entries are from, for errors.

    Raises:
      SettingsError: An entry is malformed, or two owners have the same key. The message does not repeat the key.
    """

    def __init__(self, entries: Iterable[str] = (), source: str = "api_key") -> None:
        self.replace(entries, source)

    def replace(self, entries: Iterable[str], source: str) -> None:
        """Replaces the accepted keys.

        Raises:
          SettingsError: See the constructor. The keys are unchanged.
        """
        self._owners = _owners(entries, source)

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
      browsers: Origins and host names that are accepted from browsers.
      rejected: Writes rejected keys into the audit log.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    admin_keys: ApiKeys = field(default_factory=ApiKeys)
    admin_port: int | None = None
    browsers: BrowserPolicy = field(default_factory=BrowserPolicy)
    rejected: RejectedKeys = field(default_factory=RejectedKeys)


def load_access(settings: Settings, admin_port: int | None, *, on_loopback: bool = False) -> Access:
    """Returns the access control that the settings define.

    Args:
      settings: Settings of the server.
      admin_port: Port that the admin listener is bound to, if there is one.
      on_loopback: Whether only this machine can connect to the server's ports.

    Raises:
      SettingsError: A key is malformed, or the key file cannot be read.
    """
    access = Access(
        admin_keys=ApiKeys([key.get_secret_value() for key in settings.admin_key or ()], "admin_key"),
        admin_port=admin_port,
        browsers=browser_policy(settings, on_loopback=on_loopback),
    )
    reload_keys(access, settings)
    return access


def is_shared_without_keys(access: Access, settings: Settings, *, on_loopback: bool) -> bool:
    """Returns whether a server has no API keys, and others than the user of this machine may be its clients.

    They may if it listens beyond loopback, or if a setting says that a proxy is in front of it.
    """
    if access.keys:
        return False
    has_proxy = settings.uds is not None or settings.root_path is not None
    return has_proxy or bool(settings.forwarded_allow_ips or settings.allow_host) or not on_loopback


def reload_keys(access: Access, settings: Settings) -> None:
    """Reads the key file again, and replaces the accepted keys by the file's and the settings' keys.

    Raises:
      SettingsError: A key is malformed, or the key file cannot be read. The keys are unchanged.
    """
    path = settings.api_key_file
    in_file = [] if path is None else _read_keys(path)
    given = [key.get_secret_value() for key in settings.api_key or ()]
    access.keys.replace([*given, *in_file], "api_key" if given else f"api_key_file {path}")


def _read_keys(path: Path) -> list[str]:
    """Returns the entries of a key file, one per line, without empty lines and comments (#)."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"api_key_file {path}: cannot be read ({error})") from None
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise SettingsError(f"api_key_file {path}: has no key; add a line KEY or NAME:KEY")
    return entries


def _owners(entries: Iterable[str], source: str) -> dict[bytes, str]:
    """Returns the owner of each key, by the hash of the key."""
    owners: dict[bytes, str] = {}
    for number, entry in enumerate(entries, 1):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise SettingsError(
                f"{source}: entry {number} must be KEY or NAME:KEY; keys are made of letters, digits and ._~+/=-, "
                "names of letters, digits and ._-"
            )
        owner = owners.setdefault(_digest(match["key"].encode()), match["name"] or UNNAMED)
        if owner != (match["name"] or UNNAMED):
            raise SettingsError(f"{source}: entry {number} repeats the key of {owner}")
    return owners


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class AccessControl(Guard):
    """Middleware that refuses requests without a required key, and requests for paths of the other port.

    It sets the tenant to the key's owner.

    Args:
      app: Wrapped application.
      access: Access control of the server.
      public_paths: Paths that need no key.
      admin_paths: Paths that need an admin key, in addition to those below `/debug/`.
    """

    def __init__(
        self, app: ASGIApp, access: Access, public_paths: Collection[str], admin_paths: Collection[str]
    ) -> None:
        super().__init__(app)
        self._access = access
        self._public_paths = public_paths
        self._admin_paths = admin_paths

    def _check(self, scope: Scope) -> ApiError | None:
        access, path = self._access, scope["path"]
        is_admin = path.startswith(_DEBUG) or path in self._admin_paths
        if access.admin_port is not None and not path.startswith(_HEALTH):
            is_on_admin_port = (scope.get("server") or ("", None))[1] == access.admin_port
            if is_on_admin_port != (is_admin or path.startswith(_METRICS)):
                return ApiError(kinds.NO_SUCH_URL, "no such URL on this port")
        keys = access.admin_keys if is_admin else access.keys
        if not keys or path in self._public_paths:
            return None
        presented = _presented_keys(Headers(scope=scope))
        owner = keys.owner(presented)
        if owner is None:
            access.rejected.write(client_of(scope), path, presented)
            message = "missing or wrong API key: send the header Authorization: Bearer KEY, or x-api-key: KEY"
            return ApiError(kinds.INVALID_API_KEY, message)
        tenant.set(owner)
        if is_admin:
            audit("admin", client=client_of(scope), method=scope["method"], path=path)
        return None


def _presented_keys(headers: Headers) -> list[bytes]:
    """Returns the keys of `authorization` (OpenAI's clients) and `x-api-key` (Anthropic's)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key.encode("latin-1") for key in given]
