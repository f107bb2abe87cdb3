"""Counts the files and functions that a streamed chat request passes, and how often it changes from file to file.

    python tools/request_path.py [--model demo] [--max-tokens 1] [--requests 1] [--files]

Starts `roost serve` in this process and sends it one streamed chat completion, after a first one that fills its caches.
Between the request and the end of its stream, `sys.monitoring` reports each function of Roost that is entered on any
thread but the client's. Two numbers follow:

- files: files with a function that was entered;
- changes of file: pairs of functions, caller and callee, in different files. A pair counts once however often it
  is called, so that the number does not depend on how many tokens are generated.

No number includes what an idle server does all the time, such as watching the engine's thread. With several requests,
each number counts what all of them do, so that it does not depend on what a timer does during one of them.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import CodeType
from typing import Any, Final

import httpx
import roost.server
from roost.server.__main__ import main as run_roost

ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(roost.server.__file__)))  # as code objects name it
ROOMS: Final = tuple(os.path.join(ROOT, room, "") for room in ("server", "engine", "kernels"))

_TOOL: Final = sys.monitoring.PROFILER_ID
_EVENTS: Final = sys.monitoring.events
_START_S: Final = 120.0
_IDLE_S: Final = 0.5
"""Seconds in which the idle server is watched; it does something every 0.05 s."""

_REST_S: Final = 0.3
"""Seconds in which the server finishes what it does after the end of a stream."""

type Function = tuple[str, str]
"""File, from the root of the checkout, and qualified name."""

type _Call = tuple[Function | None, Function]
"""Caller and callee."""


class Recorder:
    """Records calls between functions of Roost, in the order in which they are first called."""

    def __init__(self) -> None:
        self._calls: dict[_Call, None] = {}
        self._idle: frozenset[_Call] = frozenset()
        self._earlier: list[frozenset[_Call]] = []
        self._client = 0

    @property
    def files(self) -> list[str]:
        """Files with a function that was entered."""
        return list(dict.fromkeys(callee[0] for _, callee in self._new()))

    @property
    def functions(self) -> list[Function]:
        """Functions that were entered."""
        return list(dict.fromkeys(callee for _, callee in self._new()))

    @property
    def calls(self) -> list[tuple[Function, Function]]:
        """Pairs of caller and callee in different files."""
        return [(caller, callee) for caller, callee in self._new() if caller is not None and caller[0] != callee[0]]

    def _new(self) -> list["_Call"]:
        return [call for call in self._calls if call not in self._idle and all(call in each for each in self._earlier)]

    def forget(self) -> None:
        """Leaves the calls so far out of the results, also if they come again."""
        self._idle = frozenset(self._calls)

    def begin_request(self) -> None:
        """Leaves out of the results what the next request does not do, or an earlier one has not done."""
        if self._calls.keys() - self._idle:
            self._earlier.append(frozenset(self._calls))
        self._calls = {}

    def start(self) -> None:
        """Starts recording on every thread but the current one."""
        self._client = threading.get_ident()
        sys.monitoring.use_tool_id(_TOOL, "request_path")
        for event in (_EVENTS.PY_START, _EVENTS.PY_RESUME):
            sys.monitoring.register_callback(_TOOL, event, self._enter)
        sys.monitoring.set_events(_TOOL, _EVENTS.PY_START | _EVENTS.PY_RESUME)

    def stop(self) -> None:
        sys.monitoring.set_events(_TOOL, 0)
        sys.monitoring.free_tool_id(_TOOL)

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


def _ask(url: str, max_tokens: int, num_requests: int, recorder: Recorder) -> None:
    """Sends a request to warm up and those that are recorded, then ends the server."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": max_tokens}
    end = time.monotonic() + _START_S
    with httpx.Client(base_url=url, timeout=_START_S) as client, contextlib.suppress(httpx.HTTPError):
        status = 0
        while status != httpx.codes.OK and time.monotonic() < end:
            with contextlib.suppress(httpx.ConnectError):
                status = client.post("/v1/chat/completions", json={**body, "stream": True}).status_code
            time.sleep(0.1)
        recorder.start()
        time.sleep(_IDLE_S)
        recorder.forget()
        for _ in range(num_requests):
            recorder.begin_request()
            client.post("/v1/chat/completions", json={**body, "stream": True}).raise_for_status()
            time.sleep(_REST_S)
        recorder.stop()
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """Prints the numbers and, on request, the files and the calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="model to serve")
    parser.add_argument("--max-tokens", type=int, default=1, help="tokens to generate")
    parser.add_argument("--requests", type=int, default=1, help="requests to record")
    parser.add_argument("--files", action="store_true", help="also list the files and the calls between them, in order")
    options = parser.parse_args()
    recorder, port = Recorder(), _free_port()
    arguments = (f"http://127.0.0.1:{port}", options.max_tokens, options.requests, recorder)
    threading.Thread(target=_ask, args=arguments, daemon=True).start()
    sys.argv = ["roost", "serve", options.model, "--port", str(port), "--slots", "4", "--prefill-chunk", "64"]
    with contextlib.suppress(SystemExit):
        run_roost()
    if options.files:
        for file in recorder.files:
            names = [name for each, name in recorder.functions if each == file]
            print(f"{file}: {len(names)} ({', '.join(names)})")
        for caller, callee in recorder.calls:
            print(f"{' '.join(caller)} -> {' '.join(callee)}")
    print(f"{len(recorder.files)} files, {len(recorder.calls)} changes of file, {len(recorder.functions)} functions")


if __name__ == "__main__":
    main()
