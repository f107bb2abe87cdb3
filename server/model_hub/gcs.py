"""Download of the objects under a path in Google Cloud Storage into a folder."""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ...engine import CheckpointError
from .extras import missing_extra

_TIMEOUT_S: Final = 30.0
"""Timeout of each request in seconds, retries included."""

_CHUNK: Final = 2**25
"""Bytes per request, which are lost if the connection breaks."""


def fetch(url: str, cache: Path | None = None) -> Path:
    """Returns a folder with the objects under a path; unchanged objects are reused and partial downloads resumed.

    Args:
      url: `gs://bucket/path`.
      cache: Folder for downloads; None means Roost's folder in the user's cache.

    Raises:
      CheckpointError: The path is empty, access is refused, or the storage is unreachable.
    """
    try:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.exceptions import GoogleCloudError
        from requests import RequestException
    except ImportError:
        raise missing_extra(url, "gcs") from None
    bucket, _, path = url.removeprefix("gs://").strip("/").partition("/")
    folder = (cache or platformdirs.user_cache_path("roost", appauthor=False) / "gcs") / bucket / path
    try:
        blobs = _list(bucket, path)
        with _progress(sum(blob.size for _, blob in blobs)) as progress:
            for name, blob in blobs:
                _download(blob, folder / name, progress)
    except GoogleAuthError as error:  # such as insufficient anonymous credentials
        raise CheckpointError(f"{url}: {_explain(error, 401, bucket)}") from error
    except (GoogleAPIError, GoogleCloudError, RequestException, OSError) as error:
        raise CheckpointError(f"{url}: {_explain(error, getattr(error, 'code', None), bucket)}") from error
    if not blobs:
        raise CheckpointError(f"{url}: there is nothing under this path; gcloud storage ls {url} should list it")
    return folder


def _explain(error: Exception, status: int | None, bucket: str) -> str:
    if status in (401, 403):
        return (
            f"access is refused ({int(status)}): log in with gcloud auth application-default login, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may read the bucket {bucket}"
        )
    if status == 404:
        return f"there is no bucket {bucket}, or an object went away meanwhile; check the name"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"cannot be downloaded ({reason}); check the network and start again: finished downloads are kept"


def _list(bucket: str, path: str) -> list[tuple[str, Any]]:
    """Returns the objects under the path with their relative paths."""
    prefix = f"{path}/" if path else ""
    blobs = _client().list_blobs(bucket, prefix=prefix, timeout=_TIMEOUT_S, retry=_retry())
    named = ((blob.name.removeprefix(prefix), blob) for blob in blobs)
    return [(name, blob) for name, blob in named if all(part not in ("", ".", "..") for part in name.split("/"))]


def _client() -> Any:
    """Returns a client with the environment's credentials, or an anonymous one, which public buckets accept."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage  # type: ignore[attr-defined, unused-ignore]

    try:
        return storage.Client()
    except DefaultCredentialsError:
        return storage.Client.create_anonymous_client()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_TIMEOUT_S)


def _download(blob: Any, file: Path, progress: Progress) -> None:
    """Downloads an object into a file and sets the file's time to the object's."""
    (task,) = progress.task_ids
    changed = int(blob.updated.timestamp())
    if file.is_file() and (file.stat().st_size, int(file.stat().st_mtime)) == (blob.size, changed):
        progress.advance(task, blob.size)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{blob.generation}.partial")
    with partial.open("ab") as out:
        progress.advance(task, start := out.tell())
        for begin in range(start, blob.size, _CHUNK):
            end = min(begin + _CHUNK, blob.size) - 1
            part = blob.download_as_bytes(start=begin, end=end, timeout=_TIMEOUT_S, retry=_retry())
            if len(part) != end + 1 - begin:
                raise OSError(f"{blob.name}: {len(part)} bytes received where {end + 1 - begin} were requested")
            out.write(part)
            progress.advance(task, len(part))
    if _crc32c(partial) != blob.crc32c:
        partial.unlink()
        raise OSError(f"{blob.name}: the downloaded bytes do not match the checksum")
    os.utime(partial, (changed, changed))
    partial.rename(file)


def _crc32c(file: Path) -> str:
    """Returns a file's CRC32C in base64, as Google Cloud Storage reports it."""
    import google_crc32c

    checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call, unused-ignore]
    with file.open("rb") as data:
        while part := data.read(_CHUNK):
            checksum.update(part)
    return base64.b64encode(checksum.digest()).decode()


@contextmanager
def _progress(num_bytes: int) -> Iterator[Progress]:
    """Yields a progress bar, shown only on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        progress.add_task("", total=num_bytes)
        yield progress
