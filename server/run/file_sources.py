"""Files that a running server reloads when they change: API keys, and the certificate with its key."""

import logging
from functools import partial

import uvicorn

from ..http.auth import Access, reload_keys
from ..settings import Settings
from .file_reloads import FileSource
from .http_server import reload_certificate

_logger = logging.getLogger(__name__)


def file_sources(settings: Settings, access: Access, config: uvicorn.Config) -> list[FileSource]:
    """Returns the files that are reloaded when they change."""
    sources = []
    if settings.api_key_file is not None:
        load_keys = partial(_reload_keys, access, settings)
        sources.append(FileSource(f"api_key_file {settings.api_key_file}", [settings.api_key_file], load_keys))
    if settings.ssl_certfile is not None:
        paths = [path for path in (settings.ssl_certfile, settings.ssl_keyfile) if path is not None]
        load_certificate = partial(reload_certificate, config, settings)
        sources.append(FileSource(f"ssl_certfile {settings.ssl_certfile}", paths, load_certificate))
    return sources


def _reload_keys(access: Access, settings: Settings) -> None:
    had_one = len(access.keys.owners) == 1
    reload_keys(access, settings)
    if had_one and len(access.keys.owners) > 1:
        _logger.warning("shares of several API keys hold from the next start: this one had the keys of one name")
