"""Reloads key and certificate files that have changed, or when SIGHUP arrives, without interrupting requests."""

import asyncio
import itertools
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

_POLL_INTERVAL_S: Final = 0.25
"""Seconds between two looks for SIGHUP."""

_POLLS_PER_LOOK: Final = 20
"""Looks for SIGHUP for each look at the files. A change is loaded at the look after the one that finds it."""

_logger = logging.getLogger(__name__)

type _Signature = tuple[tuple[int, ...] | None, ...]
"""Device, inode, size and time of change of each file; None for one that is missing."""


@dataclass(slots=True)
class FileSource:
    """Files that are loaded together, once before the source is made.

    Attributes:
      name: Description of the files for the log, such as "api_key_file keys.txt".
      paths: Paths of the files.
      load: Loads them. If it raises a `RoostError` or a `SettingsError`, the values loaded before stay in use.
      loaded: Signature of the files when they were last loaded.
      seen: Signature at the last look.
      is_successful: Whether they could be loaded then.
    """

    name: str
    paths: Sequence[Path]
    load: Callable[[], None]
    loaded: _Signature = ()
    seen: _Signature = ()
    is_successful: bool = True

    def __post_init__(self) -> None:
        self.loaded = self.seen = self.signature()

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
    sources, key_file, certificate = [], settings.api_key_file, settings.ssl_certfile
    if key_file is not None:
        sources.append(FileSource(f"api_key_file {key_file}", [key_file], partial(_reload_keys, access, settings)))
    if certificate is not None:
        metrics.record_certificate(str(certificate), certificate_expiry(certificate))

        def load() -> None:
            reload_certificate(config, settings)
            metrics.record_certificate(str(certificate), certificate_expiry(certificate))

        paths = [certificate] if settings.ssl_keyfile is None else [certificate, settings.ssl_keyfile]
        sources.append(FileSource(f"ssl_certfile {certificate}", paths, load))
    return sources


def _reload_keys(access: Access, settings: Settings) -> None:
    had_one = len(access.keys.owners) == 1
    reload_keys(access, settings)
    if had_one and len(access.keys.owners) > 1:
        _logger.warning("shares of several API keys hold from the next start: this one had the keys of one name")


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

    async def run(self) -> None:
        """Watches until it is cancelled."""
        num_reloads = 0
        for num_polls in itertools.count(1):
            await asyncio.sleep(_POLL_INTERVAL_S)
            if self._signals.num_reloads != num_reloads:
                num_reloads = self._signals.num_reloads
                self.reload_all()
            if num_polls % _POLLS_PER_LOOK == 0:
                self.look()

    def reload_all(self) -> None:
        """Loads all files."""
        if not self._sources:
            _logger.info("SIGHUP: no file of keys or certificates is in use, so nothing was reloaded")
        for source in self._sources:
            self._reload(source)

    def look(self) -> None:
        """Loads changed files once two looks find the same version: the first may see a file that is half written."""
        for source in self._sources:
            seen, source.seen = source.seen, source.signature()
            if source.seen == seen != source.loaded:
                self._reload(source)

    def _reload(self, source: FileSource) -> None:
        source.loaded = source.signature()
        try:
            source.load()
        except (RoostError, SettingsError) as error:
            source.is_successful = False
            _logger.error("reload failed, and the previous files stay in use: %s", error)
        else:
            source.is_successful = True
            _logger.info("reloaded %s", source.name)
        audit("reload", files=source.name, is_successful=source.is_successful)
        self._metrics.record(is_successful=all(each.is_successful for each in self._sources))
