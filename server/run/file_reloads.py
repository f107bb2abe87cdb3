"""Reloads key and certificate files that have changed, or when SIGHUP arrives, without interrupting requests."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn

from ...engine import RoostError
from ..http.auth import Access, reload_keys
from ..observability.logging import audit
from ..observability.metrics import ReloadMetrics
from ..settings import Settings, SettingsError
from ..terminal.exits import Signals
from .http_server import certificate_expiry, reload_certificate

LOOK_INTERVAL_S: Final = 5.0
"""Seconds between two looks at the files. A change is loaded at the look after the one that finds it."""

_POLL_INTERVAL_S: Final = 0.25
"""Seconds between two looks for SIGHUP."""

_logger = logging.getLogger(__name__)

type _Signature = tuple[tuple[int, ...] | None, ...]
"""Device, inode, size and time of change of each file; None for one that is missing."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """Files that are loaded together.

    Attributes:
      name: Description of the files for the log, such as "api_key_file keys.txt".
      paths: Paths of the files.
      load: Loads them. If it raises a `RoostError` or a `SettingsError`, the values loaded before stay in use.
    """

    name: str
    paths: Sequence[Path]
    load: Callable[[], None]

    def signature(self) -> _Signature:
        """Returns a value that changes with the files. Links are followed: Kubernetes replaces a link to change a
        secret.
        """
        return tuple(map(_signature, self.paths))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def file_sources(
    settings: Settings, access: Access, config: uvicorn.Config, metrics: ReloadMetrics
) -> list[FileSource]:
    """Returns the files that are reloaded when they change; they have been loaded once."""
    sources = []
    if settings.api_key_file is not None:
        load_keys = partial(_reload_keys, access, settings)
        sources.append(FileSource(f"api_key_file {settings.api_key_file}", [settings.api_key_file], load_keys))
    if settings.ssl_certfile is not None:
        paths = [path for path in (settings.ssl_certfile, settings.ssl_keyfile) if path is not None]
        load_certificate = partial(_reload_certificate, config, settings, metrics)
        sources.append(FileSource(f"ssl_certfile {settings.ssl_certfile}", paths, load_certificate))
        _record_expiry(settings.ssl_certfile, metrics)
    return sources


def _reload_keys(access: Access, settings: Settings) -> None:
    had_one = len(access.keys.owners) == 1
    reload_keys(access, settings)
    if had_one and len(access.keys.owners) > 1:
        _logger.warning("shares of several API keys hold from the next start: this one had the keys of one name")


def _reload_certificate(config: uvicorn.Config, settings: Settings, metrics: ReloadMetrics) -> None:
    reload_certificate(config, settings)
    assert settings.ssl_certfile is not None
    _record_expiry(settings.ssl_certfile, metrics)


def _record_expiry(certificate: Path, metrics: ReloadMetrics) -> None:
    if (expiry := certificate_expiry(certificate)) is not None:
        metrics.record_certificate(str(certificate), expiry)


class FileReloads:
    """Watches files that were loaded at the start.

    Args:
      sources: Files to watch.
      signals: Counts the signals that request a reload.
      metrics: Metrics of the last reload.
    """

    def __init__(self, sources: Sequence[FileSource], signals: Signals, metrics: ReloadMetrics) -> None:
        self._sources = sources
        self._signals = signals
        self._metrics = metrics
        self._num_reloads = 0
        self._loaded = [source.signature() for source in sources]
        self._seen = list(self._loaded)
        self._failed: set[str] = set()

    async def run(self) -> None:
        """Watches until it is cancelled."""
        now = asyncio.get_running_loop().time
        next_look = now() + LOOK_INTERVAL_S
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            if self._signals.num_reloads != self._num_reloads:
                self._num_reloads = self._signals.num_reloads
                self.reload_all()
            if now() >= next_look:
                next_look = now() + LOOK_INTERVAL_S
                self.look()

    def reload_all(self) -> None:
        """Loads all files."""
        if not self._sources:
            _logger.info("SIGHUP: no file of keys or certificates is in use, so nothing was reloaded")
        for index in range(len(self._sources)):
            self._reload(index)

    def look(self) -> None:
        """Loads changed files once two looks find the same version: the first may see a file that is half written."""
        for index, source in enumerate(self._sources):
            seen, self._seen[index] = self._seen[index], source.signature()
            if self._seen[index] == seen != self._loaded[index]:
                self._reload(index)

    def _reload(self, index: int) -> None:
        source = self._sources[index]
        self._loaded[index] = source.signature()
        try:
            source.load()
        except (RoostError, SettingsError) as error:
            self._failed.add(source.name)
            _logger.error("reload failed, and the previous files stay in use: %s", error)
        else:
            self._failed.discard(source.name)
            _logger.info("reloaded %s", source.name)
        audit("reload", files=source.name, is_successful=source.name not in self._failed)
        self._metrics.record(is_successful=not self._failed)
