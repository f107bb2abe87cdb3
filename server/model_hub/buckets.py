"""Download of models from buckets: gs:// (Google Cloud Storage) and s3:// (Amazon S3 and compatible stores).

Several processes may fill the folder of a path at the same time.
"""

import glob
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ...engine import CheckpointError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, RetryConfig, S3Store

_RETRIES: Final = 6
"""Number of retries of a request, within some ten seconds, if the bucket cannot be reached."""

_READ_MS: Final = 30_000
"""Milliseconds without a byte after which a request has failed."""

_CHUNK: Final = 2**25
"""Bytes per request, which are lost if the connection breaks."""

_TOKEN_DIGITS: Final = 16
"""Number of digits in the name of a partial file that distinguish contents of an object."""

_ACCESS: Final = {
    "gs": "log in with gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of "
    "an account that may read the bucket; a public bucket needs GOOGLE_SKIP_SIGNATURE=true",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role that may read the bucket; a "
    "public bucket needs AWS_SKIP_SIGNATURE=true",
}
"""How to get access, by scheme."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """Names the objects under a path.

    Attributes:
      scheme: `gs` or `s3`.
      bucket: Name of the bucket.
      path: Path without slashes at its ends; empty for the whole bucket.
      version: Version that the objects must have, as `version_of` gives it; empty takes any.
    """

    scheme: str
    bucket: str
    path: str
    version: str

    @classmethod
    def parse(cls, url: str) -> "BucketAddress":
        """Parses `gs://bucket/path` or `s3://bucket/path`, optionally with `#version`."""
        address, _, version = url.partition("#")
        scheme, _, rest = address.partition("://")
        bucket, _, path = rest.strip("/").partition("/")
        return cls(scheme, bucket, path.strip("/"), version)

    @property
    def name(self) -> str:
        """Last part of the path, or the bucket."""
        return self.path.rpartition("/")[2] or self.bucket


@dataclass(frozen=True, slots=True, order=True)
class BucketObject:
    """Description of an object in the listing of its bucket.

    Attributes:
      name: Path below the folder.
      size: Bytes.
      tag: Entity tag, which changes with the content.
      changed: Time of the last change, in whole seconds since 1970.
    """

    name: str
    size: int
    tag: str
    changed: int


def version_of(objects: Sequence[BucketObject]) -> str:
    """Returns a version of 12 hexadecimal digits, which depends on the objects' names and contents."""
    contents = [(each.name, each.size, each.tag) for each in sorted(objects)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


class BucketFolder:
    """Files of a folder. An object is complete once its file has its name, size and time.

    A partial file is named after the content of its object. Processes that download the same content therefore write
    the same bytes to the same places, and need no lock. The first to complete the file gives it the object's name.
    """

    def __init__(self, path: Path, listing: Path) -> None:
        """Takes the path of the folder, and of a file for the last listing whose objects were all complete."""
        self.path = path
        self._listing = listing

    def has(self, each: BucketObject) -> bool:
        """Returns whether an object is complete."""
        try:
            found = (self.path / each.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_size, int(found.st_mtime)) == (each.size, each.changed)

    def complete_version(self) -> str | None:
        """Returns the version of the last listing if all of its objects are still complete; otherwise None."""
        objects = self._remembered()
        return version_of(objects) if objects and all(map(self.has, objects)) else None

    def remember(self, objects: list[BucketObject]) -> None:
        """Stores a listing of complete objects, and removes objects that only the previous listing had."""
        last = self._remembered()
        if last == objects:
            return
        for name in {each.name for each in last} - {each.name for each in objects}:
            (self.path / name).unlink(missing_ok=True)
        self._listing.parent.mkdir(parents=True, exist_ok=True)
        partial = self._listing.with_name(f"{self._listing.name}.{uuid.uuid4().hex}.partial")
        with partial.open("w") as out:
            json.dump([astuple(each) for each in objects], out)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(self._listing)

    def _remembered(self) -> list[BucketObject]:
        """Returns the last listing; empty if there is none or it cannot be read."""
        try:
            return [BucketObject(*each) for each in json.loads(self._listing.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    @contextmanager
    def partial(self, each: BucketObject) -> Iterator[BinaryIO]:
        """Yields a file for the rest of an object, which begins with the bytes that any process has left.

        Unless an error occurs, the object is complete afterwards, either by this file or by another process.
        """
        file = self.path / each.name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{hashlib.sha256(each.tag.encode()).hexdigest()[:_TOKEN_DIGITS]}.partial")
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as out:
            out.seek(0, os.SEEK_END)
            yield out
            out.flush()
            os.fsync(out.fileno())
            if not self.has(each):
                os.utime(out.fileno(), (each.changed, each.changed))
            if not self.has(each):  # nor has another process renamed the file
                with suppress(FileNotFoundError):
                    partial.rename(file)
        for left in file.parent.glob(f"{glob.escape(file.name)}.{'?' * _TOKEN_DIGITS}.partial"):
            left.unlink(missing_ok=True)


def fetch(url: str, cache: Path | None = None) -> Path:
    """Returns a folder with the objects under a path; complete objects are reused and partial downloads resumed.

    Several processes may share the cache. If the bucket is out of reach, or the version is given, a folder that was
    complete is enough.

    Args:
      url: `gs://bucket/path` or `s3://bucket/path`, optionally with `#version`.
      cache: Folder for downloads; None means Roost's folder in the user's cache.

    Raises:
      CheckpointError: The path is empty or has another version, access is refused, or the bucket is unreachable and the
        folder incomplete.
    """
    address = BucketAddress.parse(url)
    folder = _folder(address, cache or platformdirs.user_cache_path("roost", appauthor=False) / "buckets")
    if address.version and address.version == folder.complete_version():
        return folder.path
    try:
        import obstore.exceptions
    except ImportError:
        text = f"{url}: needs one more library; in a clone of Roost, pip install '.[buckets]'"
        raise CheckpointError(text) from None
    try:
        _update(url, address, folder)
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        reason, complete = _explain(error, address), folder.complete_version()
        if complete is None or address.version or _status(error):
            raise CheckpointError(f"{url}: {reason}") from error
        _logger.warning("%s: %s; its version #%s is complete here, and is used", url, reason, complete)
    return folder.path


def _folder(address: BucketAddress, cache: Path) -> BucketFolder:
    place = Path(address.scheme, address.bucket, address.path)
    return BucketFolder(cache / place, cache / "listings" / place.with_name(f"{place.name}.json"))


def _update(url: str, address: BucketAddress, folder: BucketFolder) -> None:
    """Downloads missing objects."""
    store = _open(address)
    objects = _list(store)
    if not objects:
        raise CheckpointError(f"{url}: there is nothing under this path; check it, and that the bucket has the model")
    version = version_of(objects)
    if address.version not in ("", version):
        raise CheckpointError(f"{url}: its objects have the version #{version} now; restore them, or name this version")
    with _progress(sum(each.size for each in objects)) as advance:
        for each in objects:
            _download(store, each, folder, advance)
    folder.remember(objects)
    _logger.info("%s: has the version #%s; append it to the name to serve no other version", url, version)


def _open(address: BucketAddress) -> "GCSStore | S3Store":
    """Returns the store of the objects under a path, with credentials of the environment."""
    from obstore.store import GCSStore, S3Store

    kind = GCSStore if address.scheme == "gs" else S3Store
    # Only an address from the environment is without TLS, such as that of a store in the same cluster.
    client: ClientConfig = {"read_timeout": f"{_READ_MS}ms", "timeout": "1h", "allow_http": True}
    retry: RetryConfig = {"max_retries": _RETRIES}
    return kind(address.bucket, prefix=address.path or None, client_options=client, retry_config=retry)


def _list(store: "GCSStore | S3Store") -> list[BucketObject]:
    """Returns the objects, except placeholders of folders."""
    found = [
        BucketObject(each["path"], each["size"], each["e_tag"] or "", int(each["last_modified"].timestamp()))
        for page in store.list()
        for each in page
        if all(part not in ("", ".", "..") for part in each["path"].split("/"))
    ]
    folders = {str(parent) for each in found for parent in Path(each.name).parents}
    return [each for each in found if each.name not in folders]


def _download(
    store: "GCSStore | S3Store", each: BucketObject, folder: BucketFolder, advance: Callable[[int], None]
) -> None:
    """Completes an object."""
    if folder.has(each):
        advance(each.size)
        return
    with folder.partial(each) as out:
        advance(out.tell())
        for begin in range(out.tell(), each.size, _CHUNK):
            part = _read(store, each, begin)
            if folder.has(each):  # another process has completed it
                advance(each.size - begin)
                break
            out.write(part)
            out.flush()  # so that another process can continue from it
            advance(len(part))


def _read(store: "GCSStore | S3Store", each: BucketObject, begin: int) -> bytes:
    """Returns the bytes of the next request, unless the object has changed since it was listed."""
    end = min(begin + _CHUNK, each.size)
    part = store.get(each.name, options={"range": (begin, end), "if_match": each.tag or None}).bytes()
    if len(part) != end - begin:
        raise OSError(f"{each.name}: {len(part)} bytes received where {end - begin} were requested")
    return bytes(part)


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of a refusal, or None if the bucket is out of reach."""
    from obstore.exceptions import PermissionDeniedError, PreconditionError, UnauthenticatedError

    if isinstance(error, OSError) and error.errno:  # of a file
        return None
    kinds: dict[type[Exception], int] = {FileNotFoundError: 404, PermissionDeniedError: 403, PreconditionError: 412}
    kinds[UnauthenticatedError] = 401
    # An error of a listing has the status only in its text.
    written = re.search(r"status code: (4\d\d)", str(error))
    return kinds.get(type(error), int(written[1]) if written else None)


def _explain(error: Exception, address: BucketAddress) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".partition("Debug source")[0].split())
    status = _status(error)
    if status in (401, 403):
        return f"access is refused ({status}): {_ACCESS[address.scheme]}"
    if "service account file" in reason:
        return f"the credentials cannot be used ({reason[:300]}): {_ACCESS[address.scheme]}"
    if "169.254.169.254" in reason:
        return f"no credentials were found: {_ACCESS[address.scheme]}"
    if status == 404:
        return f"there is no bucket {address.bucket}, or an object was deleted during the download; check the name"
    if status == 412:
        return "an object has changed during the download; start again"
    return f"cannot be downloaded ({reason[:300]}); check the network and start again: finished downloads are kept"


@contextmanager
def _progress(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances a progress bar by a number of bytes. The bar is shown only on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=num_bytes)
        yield lambda count: progress.advance(task, count)
