"""Counts the files and functions that a streamed chat request passes, and how often it changes from file to file.

    python tools/request_path.py

Starts `roost serve` in this process and sends it streamed chat completions, after a first one that fills its caches.
Between a request and the end of its stream, `sys.monitoring` reports each function of Roost that is entered on any
thread but the client's. It prints the files and the calls between them, in order, and then two numbers:

- files: files with a function that was entered;
- changes of file: pairs of functions, caller and callee, in different files. A pair counts once however often it
  is called, so that the number does not depend on how many tokens are generated.

Head and body of a request arrive together, as on a quiet machine, since the server takes another way for a body that it
waits for.

No number includes what an idle server does all the time, such as watching the engine's thread. Of three requests, each
number counts what all of them do, so that it does not depend on what a timer does during one of them.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from http.client import HTTPResponse
from types import CodeType
from typing import Any, Final

import roost.server
from roost.server.__main__ import main as run_roost

ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(roost.server.__file__)))  # as code objects name it
ROOMS: Final = tuple(os.path.join(ROOT, room, "") for room in ("server", "engine", "kernels"))

_TOOL: Final = sys.monitoring.PROFILER_ID
_EVENTS: Final = sys.monitoring.events
_BODY: Final = b'{"messages":[{"role":"user","content":"What is the capital of France?"}],"max_tokens":1,"stream":true}'
_HEADERS: Final = b"host: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
_MESSAGE: Final = b"POST /v1/chat/completions HTTP/1.1\r\n" + _HEADERS + _BODY
_REQUESTS: Final = 3
_REST_S: Final = 0.5
"""Seconds in which the server finishes what it does after a stream. When idle, it does something every 0.05 s."""

type Function = tuple[str, str]
"""File, from the root of the checkout, and qualified name."""

type Call = tuple[Function | None, Function]
"""Caller and callee."""


class Recorder:
    """Records calls between functions of Roost on every thread but the one that makes it."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}
        self._client = threading.get_ident()
        sys.monitoring.use_tool_id(_TOOL, "request_path")
        for event in (_EVENTS.PY_START, _EVENTS.PY_RESUME):
            sys.monitoring.register_callback(_TOOL, event, self._enter)
        sys.monitoring.set_events(_TOOL, _EVENTS.PY_START | _EVENTS.PY_RESUME)

    def take(self) -> dict[Call, None]:
        """Returns the calls since the last time, in the order in which they were first made."""
        calls, self._calls = self._calls, {}
        return calls

    def _enter(self, code: CodeType, offset: int) -> Any:
        if not code.co_filename.startswith(ROOMS):
            return sys.monitoring.DISABLE
        if threading.get_ident() == self._client:
            return None
        frame = sys._getframe(1).f_back
        while frame is not None and not frame.f_code.co_filename.startswith(ROOMS):
            frame = frame.f_back
        self._calls[None if frame is None else _function(frame.f_code), _function(code)] = None
        return None


def _function(code: CodeType) -> Function:
    return os.path.relpath(code.co_filename, ROOT), code.co_qualname


def succeeds(connection: socket.socket) -> bool:
    """Sends a request and reads its whole response."""
    connection.sendall(_MESSAGE)
    response = HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status == 200


def connect(port: int) -> socket.socket:
    """Returns a connection to the server as soon as it answers requests."""
    while True:
        with contextlib.suppress(ConnectionError):
            connection = socket.create_connection(("127.0.0.1", port))
            if succeeds(connection):
                return connection
            connection.close()
        time.sleep(0.1)


def record(port: int, found: list[Call]) -> None:
    """Sends a request to warm up and those that are recorded, adds what all of them do, and ends the server."""
    try:
        with connect(port) as connection:
            time.sleep(_REST_S)
            recorder = Recorder()
            time.sleep(_REST_S)
            idle, requests = recorder.take(), []
            for _ in range(_REQUESTS):
                if not succeeds(connection):
                    raise RuntimeError("a request failed")
                time.sleep(_REST_S)
                requests.append(recorder.take())
            sys.monitoring.set_events(_TOOL, _EVENTS.NO_EVENTS)  # what the callback needs may be gone at the end
        found += [call for call in requests[-1] if call not in idle and all(call in each for each in requests)]
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Prints the files, the calls and the numbers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found: list[Call] = []
    threading.Thread(target=record, args=(port, found), daemon=True).start()
    sys.argv = ["roost", "serve", "demo", "--port", str(port), "--slots", "4", "--prefill-chunk", "64"]
    with contextlib.suppress(SystemExit):
        run_roost()
    functions: dict[str, dict[str, None]] = defaultdict(dict)
    for _, (file, name) in found:
        functions[file][name] = None
    for file, names in functions.items():
        print(f"{file}: {len(names)} ({', '.join(names)})")
    calls = [(caller, callee) for caller, callee in found if caller is not None and caller[0] != callee[0]]
    for caller, callee in calls:
        print(f"{' '.join(caller)} -> {' '.join(callee)}")
    print(f"{len(functions)} files, {len(calls)} changes of file, {sum(map(len, functions.values()))} functions")


if __name__ == "__main__":
    main()
