"""Buckets on a loopback address, in the protocol that S3 and Google's storage share, with failures on demand."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

CHANGED = "2026-01-02T03:04:05.678Z"
"""Time of the last change of every object that `times` does not have."""


@dataclass
class FakeBucket:
    """Holds the objects of the bucket `models`, and has the requests that came.

    Attributes:
      objects: Contents by name.
      times: Times of the last change by name, as in a listing.
      status: Returns the status with which a request fails, by object (empty for a listing) and first byte, or None.
      shorten: Bytes that are missing at the end of every part.
      before: Called before each response, with the object and the first byte.
      reads: Object and first byte of each part, in the order in which they were requested.
      lists: Number of listings.
    """

    objects: dict[str, bytes]
    times: dict[str, str] = field(default_factory=dict)
    url: str = ""
    status: Callable[[str, int], int | None] = lambda name, begin: None
    shorten: int = 0
    before: Callable[[str, int], None] = lambda name, begin: None
    reads: list[tuple[str, int]] = field(default_factory=list)
    lists: int = 0

    def tag(self, name: str) -> str:
        """Returns the entity tag of an object."""
        return f'"{hashlib.md5(self.objects[name]).hexdigest()}"'

    def listing(self, prefix: str) -> bytes:
        """Returns the names that begin with a prefix."""
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{self.times.get(name, CHANGED)}</LastModified>"
            f"<ETag>{escape(self.tag(name))}</ETag><Size>{len(data)}</Size></Contents>"
            for name, data in sorted(self.objects.items())
            if name.startswith(prefix)
        )
        head = "<Name>models</Name><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{contents}</ListBucketResult>".encode()


@contextmanager
def bucket_with(objects: dict[str, bytes]) -> Iterator[FakeBucket]:
    """Yields a bucket that serves until the end of the block."""
    bucket = FakeBucket(dict(objects))

    class Handler(_Handler):
        served = bucket

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        bucket.url = f"http://127.0.0.1:{server.server_port}"
        yield bucket
        server.shutdown()


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Sets the variables with which buckets of both kinds are looked for at an address, without credentials."""
    variables = {
        "GOOGLE_BASE_URL": url,
        "GOOGLE_SKIP_SIGNATURE": "true",
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_SKIP_SIGNATURE": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


class _Handler(BaseHTTPRequestHandler):
    served: FakeBucket
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for head and body: the kernel would hold the second until the first is acknowledged

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, name = unquote(url.path).strip("/").partition("/")
        first, _, last = self.headers.get("Range", "bytes=0-0").removeprefix("bytes=").partition("-")
        self.served.before(name, int(first))
        status = self.served.status(name, int(first))
        if status is not None or bucket != "models" or (name and name not in self.served.objects):
            self._reply(status or 404, b"<Error><Code>NoSuchThing</Code></Error>")
        elif not name:
            self.served.lists += 1
            self._reply(200, self.served.listing(parse_qs(url.query).get("prefix", [""])[0]))
        elif self.headers.get("If-Match") not in (None, self.served.tag(name)):
            self._reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._part(name, int(first), int(last))

    def _part(self, name: str, first: int, last: int) -> None:
        data = self.served.objects[name]
        self.served.reads.append((name, first))
        headers = {
            "ETag": self.served.tag(name),
            "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT",
            "Content-Range": f"bytes {first}-{last}/{len(data)}",
        }
        self._reply(206, data[first : last + 1 - self.served.shorten], headers)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
