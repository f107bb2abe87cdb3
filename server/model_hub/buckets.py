"""Download of models from buckets: gs:// (Google Cloud Storage) and s3:// (Amazon S3 and compatible stores).

Each version of the objects under a path has a folder, which is renamed once it is complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import platformdirs
from huggingface_hub.utils import WeakFileLock
from tqdm import tqdm

from ...engine import CheckpointError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, RetryConfig, S3Store

_RETRIES: Final = 6
"""Number of retries of a request, within some ten seconds, if the bucket cannot be reached."""

_READ_MS: Final = 30_000
"""Milliseconds without a byte after which a request has failed."""

_CHUNK: Final = 2**25
"""Bytes per request, which are lost if the connection breaks."""

_PARTIAL: Final = ".partial"
"""Suffix of the folder of a version that is not complete."""

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
    """

    name: str
    size: int
    tag: str


def version_of(objects: Sequence[BucketObject]) -> str:
    """Returns a version of 12 hexadecimal digits, which depends on the objects' names and contents."""
    contents = [(each.name, each.size, each.tag) for each in sorted(objects)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


def fetch(url: str, cache: Path | None = None) -> Path:
    """Returns a folder with the objects under a path; complete versions are reused and partial downloads resumed.

    Several processes may share the cache. If the bucket is out of reach, or the version is given, a version that is
    complete is enough.

    Args:
      url: `gs://bucket/path` or `s3://bucket/path`, optionally with `#version`.
      cache: Folder for downloads; None means Roost's folder in the user's cache.

    Raises:
      CheckpointError: The path is empty or has another version, access is refused, or the bucket is unreachable and no
        version complete.
    """
    address = BucketAddress.parse(url)
    cache = cache or platformdirs.user_cache_path("roost", appauthor=False) / "buckets"
    folder = cache / address.scheme / address.bucket / address.path
    if address.version and (complete := folder / f"#{address.version}").exists():
        return complete
    try:
        import obstore.exceptions
    except ImportError:
        text = f"{url}: needs one more library; in a clone of Roost, pip install '.[buckets]'"
        raise CheckpointError(text) from None
    try:
        return _fetch(url, address, folder)
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        versions = [each for each in folder.glob("#*") if not each.name.endswith(_PARTIAL)]
        reason = " ".join(f"{type(error).__name__}: {error}".partition("Debug source")[0].split())[:300]
        access = _ACCESS[address.scheme]
        if _is_refusal(error):
            raise CheckpointError(f"{url}: access is refused, or an object has changed ({reason}): {access}") from error
        if address.version or not versions:
            fix = f"check the name and the network, and start again: finished downloads are kept. For access, {access}"
            raise CheckpointError(f"{url}: cannot be downloaded ({reason}); {fix}") from error
    newest = max(versions, key=lambda each: each.stat().st_mtime)
    _logger.warning("%s: %s; its version %s is complete here, and is used", url, reason, newest.name)
    return newest


def _fetch(url: str, address: BucketAddress, folder: Path) -> Path:
    """Downloads the present version, unless it is complete, and returns its folder."""
    store = _open(address)
    objects = _list(store)
    if not objects:
        raise CheckpointError(f"{url}: there is nothing under this path; check it, and that the bucket has the model")
    version = version_of(objects)
    if address.version not in ("", version):
        raise CheckpointError(f"{url}: its objects have the version #{version} now; restore them, or name this version")
    complete = folder / f"#{version}"
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".lock"):
            if not complete.exists():  # nor has another process completed it
                _download(store, objects, partial := folder / f"#{version}{_PARTIAL}")
                partial.rename(complete)
                for left in folder.glob(f"#*{_PARTIAL}"):
                    shutil.rmtree(left)
    _logger.info("%s: has the version #%s; append it to the name to serve no other version", url, version)
    return complete


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
        BucketObject(each["path"], each["size"], each["e_tag"] or "")
        for page in store.list()
        for each in page
        if all(part not in ("", ".", "..") for part in each["path"].split("/"))
    ]
    folders = {str(parent) for each in found for parent in Path(each.name).parents}
    return [each for each in found if each.name not in folders]


def _download(store: "GCSStore | S3Store", objects: Sequence[BucketObject], folder: Path) -> None:
    """Downloads the files of a version that a folder lacks. A progress bar is shown only on a terminal."""
    total = sum(each.size for each in objects)
    with tqdm(desc="downloading", total=total, unit="B", unit_scale=True, disable=None) as progress:
        for each in objects:
            path = folder / each.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as out:
                progress.update(out.tell())
                for begin in range(out.tell(), each.size, _CHUNK):
                    progress.update(out.write(_read(store, each, begin)))
                out.flush()
                os.fsync(out.fileno())


def _read(store: "GCSStore | S3Store", each: BucketObject, begin: int) -> bytes:
    """Returns the bytes of the next request, unless the object has changed since it was listed."""
    end = min(begin + _CHUNK, each.size)
    part = store.get(each.name, options={"range": (begin, end), "if_match": each.tag or None}).bytes()
    if len(part) != end - begin:
        raise OSError(f"{each.name}: {len(part)} bytes received where {end - begin} were requested")
    return bytes(part)


def _is_refusal(error: Exception) -> bool:
    """Returns whether the bucket responded, and refused."""
    from obstore.exceptions import PermissionDeniedError, PreconditionError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError | PreconditionError | UnauthenticatedError):
        return True
    # An error of a listing has the status only in its text. A local file's error has a number.
    is_missing = isinstance(error, FileNotFoundError) and not error.errno
    return is_missing or re.search(r"status code: 4\d\d", str(error)) is not None
