"""Hugging Face's hub on a loopback address, as much of it as a download needs, with failures on demand."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

REPO = "google/recurrentgemma-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Reply:
    """What is answered instead: a status and headers, and nothing more."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
NO_REPO = {"X-Error-Code": "RepoNotFound"}
NO_REVISION = {"X-Error-Code": "RevisionNotFound"}


@dataclass
class FakeHub:
    """
    Attributes:
      files: of the one repository, by path.
      failing: looks at a path and says how its answer fails, if it does.
      cut: bodies of files end after so many bytes, and the connection with them.
      wait: an event that every request waits for.
      requests: method, path and headers, in the order in which they came.
    """

    files: dict[str, bytes]
    url: str = ""
    failing: Callable[[str], Reply | None] = lambda path: None
    cut: int | None = None
    wait: threading.Event | None = None
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)

    def paths(self, method: str) -> list[str]:
        return [path for m, path, _ in self.requests if m == method]


def tiny_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def hub_with(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        if hub.wait is not None:
            hub.wait.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.fake, urlsplit(self.path).path
        hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        if hub.wait is not None:
            hub.wait.wait(10)
        if (failure := hub.failing(path)) is not None:
            self._send(failure.status, failure.headers, b"")
        elif path == f"/api/models/{REPO}/revision/main":
            self._send_json({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]})
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self._send_json([_entry(name, data) for name, data in hub.files.items()])
        elif path.startswith(prefix := f"/{REPO}/resolve/{COMMIT}/") and path.removeprefix(prefix) in hub.files:
            self._send_file(hub.files[path.removeprefix(prefix)])
        elif "/revision/" in path and path.startswith(f"/api/models/{REPO}/"):
            self._send(404, NO_REVISION, b"")
        else:
            self._send(404, NO_REPO, b"")

    def _send_json(self, content: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, headers, data)
            return
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206, headers, data[start:])

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        is_cut = self.fake.cut is not None and "/resolve/" in self.path
        self.wfile.write(body[: self.fake.cut] if is_cut else body)
        if is_cut:
            self.close_connection = True


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
