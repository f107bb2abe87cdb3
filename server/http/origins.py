"""Refuses requests that pages of other sites send through a browser, and names that rebound DNS gives a local server.

A browser says where a request comes from: by `Sec-Fetch-Site` over HTTPS and to loopback addresses, and by `Origin`.
"""

import ipaddress
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..errors import kinds
from ..errors.request_errors import ApiError
from ..observability.logging import LinesPerMinute
from ..settings import Settings
from .middleware import Guard

LOCAL_APPS: Final = ("app://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
"""Origins of apps on this machine, which a server on a loopback address accepts. No web page can have their schemes."""

FORWARDED_HOST: Final = "roost.forwarded_host"
"""Key of an ASGI scope with the host that a trusted proxy was asked for."""

_ANY: Final = "*"

_ANY_HOST_OF_SCHEME: Final = "://*"

_LOCAL_NAMES: Final = ("localhost", "host.docker.internal")

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

_READING_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing. Browsers do not let other pages read their responses."""

_SPENDING_PATHS: Final = frozenset({"/health_generate"})
"""Paths on which a reading method runs the model."""

_OWN_SITES: Final = (b"same-origin", b"none")
"""Values of `Sec-Fetch-Site` for a server's own pages, and for what its user types or opens."""

_MAX_HOST: Final = 300
"""Maximum characters of a header `host`; a name has at most 253."""

_MAX_SHOWN: Final = 256
"""Maximum characters of an origin or a host in an error and a log line."""

_logger = logging.getLogger(__name__)


class AllowedOrigins:
    """Origins whose pages may use the API from a browser.

    Args:
      patterns: Origins such as `https://example.org`, `SCHEME://*` for all origins of a scheme, or `*` for all.

    Attributes:
      names: The origins without those of whole schemes, as `CORSMiddleware` takes them.
      schemes: Prefixes such as `app://`.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        names, schemes = list[str](), list[str]()
        for pattern in patterns:
            if pattern.endswith(_ANY_HOST_OF_SCHEME):
                schemes.append(pattern.removesuffix(_ANY))
            else:
                names.append(pattern.rstrip("/"))  # an origin is written without a path
        self.names = tuple(names)
        self.schemes = tuple(schemes)
        self._is_any = _ANY in names

    def __bool__(self) -> bool:
        """Whether any origin is allowed."""
        return bool(self.names or self.schemes)

    def __contains__(self, origin: str) -> bool:
        return self._is_any or origin in self.names or origin.startswith(self.schemes)


class AllowedHosts:
    """Names under which clients may address a server on a loopback address. IP addresses always pass.

    Without this check, a web page whose name is made to resolve to 127.0.0.1 would be of the same origin as the server.

    Args:
      names: Names, or `*` for all. Ports and trailing dots do not matter.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_host_name(name) for name in names}
        self._is_allowed = lru_cache(maxsize=256)(self._check)

    def __contains__(self, host: str) -> bool:
        return len(host) <= _MAX_HOST and self._is_allowed(host)

    def _check(self, host: str) -> bool:
        name = _host_name(host)
        return _ANY in self._names or name in self._names or name.endswith(".localhost") or _is_address(name)


@dataclass(frozen=True, slots=True)
class BrowserPolicy:
    """Origins and host names that a server accepts from browsers.

    Attributes:
      origins: Origins of pages that may use the API.
      hosts: Names of the server; None accepts all, as a server that other machines can reach.
    """

    origins: AllowedOrigins = field(default_factory=AllowedOrigins)
    hosts: AllowedHosts | None = None


def browser_policy(settings: Settings, *, on_loopback: bool) -> BrowserPolicy:
    """Returns what the settings accept from browsers.

    Args:
      on_loopback: Whether only this machine can connect to the server's ports.
    """
    if not on_loopback:
        return BrowserPolicy(AllowedOrigins(settings.allow_origin))
    hosts_of_origins = [origin.partition("://")[2] for origin in settings.allow_origin if "://" in origin]
    pages = [host for host in hosts_of_origins if host != _ANY]
    names = [*_LOCAL_NAMES, socket.gethostname(), settings.host, *pages, *settings.allow_host]
    return BrowserPolicy(AllowedOrigins((*settings.allow_origin, *LOCAL_APPS)), AllowedHosts(names))


class TrustedProxies(ProxyHeadersMiddleware):
    """Takes clients' addresses, scheme and host from the headers of the proxies that `--forwarded-allow-ips` names."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        peer = (scope.get("client") or (None,))[0]
        if peer in self.trusted_hosts:
            forwarded = (value for name, value in scope["headers"] if name == b"x-forwarded-host")
            scope[FORWARDED_HOST] = next(forwarded, None)
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


class BrowserGuard(Guard):
    """Middleware that refuses what `BrowserPolicy` does not accept, before any of the body is read.

    It checks the host of every request, and where a request comes from if its method changes something or its path runs
    the model. Clients that are no browsers send neither `Sec-Fetch-Site` nor `Origin`, and pass.

    Args:
      app: Wrapped application.
      policy: What the server accepts.
    """

    def __init__(self, app: ASGIApp, policy: BrowserPolicy) -> None:
        super().__init__(app)
        self._policy = policy
        self._lines = LinesPerMinute(1)

    def _check(self, scope: Scope) -> ApiError | None:
        host, origin, site = _browser_headers(scope)
        hosts = self._policy.hosts
        if hosts is not None and host is not None and (name := host.decode("latin-1")) not in hosts:
            return self._refuse_host(_host_name(name))
        method, path = scope["method"], scope["path"]
        if method in _READING_METHODS and (method == "OPTIONS" or path not in _SPENDING_PATHS):
            return None
        given_origin = None if origin is None else origin.decode("latin-1")
        if given_origin is not None and given_origin in self._policy.origins:
            return None
        own_host = scope.get(FORWARDED_HOST) or host or b""
        if _is_from_own_page(site, given_origin, own_host.decode("latin-1")):
            return None
        return self._refuse_origin(given_origin)

    def _refuse_host(self, name: str) -> ApiError:
        flag = f"--allow-host {_shown(name)}"
        return self._refuse(flag, f"this server is not known by the host name of the request: start it with {flag}")

    def _refuse_origin(self, origin: str | None) -> ApiError:
        flag = f"--allow-origin {'ORIGIN' if origin is None else _shown(origin)}"
        return self._refuse(flag, f"pages of other sites may not use this server: start it with {flag} to allow them")

    def _refuse(self, flag: str, message: str) -> ApiError:
        """Returns the error, and logs it at most once a minute for each flag that would accept the request."""
        if self._lines.may_write(flag):
            _logger.warning("refused a request of a browser: %s", message)
        return ApiError(kinds.FOREIGN_PAGE, message)


def _browser_headers(scope: Scope) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Returns the values of `host`, `origin` and `sec-fetch-site`; None for a header that the request lacks."""
    host = origin = site = None
    for name, value in scope["headers"]:
        match name:
            case b"host":
                host = value
            case b"origin":
                origin = value
            case b"sec-fetch-site":
                site = value
    return host, origin, site


def _is_from_own_page(site: bytes | None, origin: str | None, host: str) -> bool:
    """Returns whether a request comes from one of the server's own pages, from its user, or from no browser."""
    if site is not None:
        return site in _OWN_SITES
    if origin is None:
        return True
    scheme, separator, page_host = origin.partition("://")
    if not separator:
        return False  # "null", of sandboxed frames and local files
    default_port = _DEFAULT_PORTS.get(scheme, "")
    return _with_port(page_host, default_port) == _with_port(host, default_port)


def _with_port(host: str, default_port: str) -> tuple[str, str]:
    """Returns the name and the port of a header `host` or of an origin without its scheme."""
    name, port = _split_port(host)
    return name, port or default_port


def _host_name(host: str) -> str:
    return _split_port(host)[0]


def _split_port(host: str) -> tuple[str, str]:
    """Splits `NAME`, `NAME:PORT` or `[IPV6]:PORT`. The name comes in lower case, without a trailing dot or brackets."""
    name, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
    return name.strip().removeprefix("[").removesuffix("]").removesuffix(".").lower(), port.strip()


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].strip().isdecimal() and (host.count(":") == 1 or "]:" in host)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """Returns a header's value for an error and a log line, without line breaks and at most `_MAX_SHOWN` characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_SHOWN])
