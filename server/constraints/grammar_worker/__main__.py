"""Forks a process for each grammar.

The parent builds the vocabulary and runs no client's grammar, so that no grammar can end it. A fork takes a millisecond
and shares the vocabulary's memory.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

from .follow import Server, ServerClosedError, run
from .limits import Limits
from .vocabulary import SIZE_BYTES, Vocabulary, WorkerTokenizer


def main() -> int:
    """Serves the socket whose descriptor is the first argument, until its other end is closed.

    The second argument is a JSON object of the `Limits`.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = Limits(**json.loads(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service; the server decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # lets the system reap the children
    with control, control.makefile("rb", buffering=0) as stream:
        size = int.from_bytes(_read(stream.fileno(), SIZE_BYTES))
        tokenizer = WorkerTokenizer(Vocabulary.from_bytes(_read(stream.fileno(), size)))
        while True:
            _, pipes, _, _ = socket.recv_fds(control, 1, 2)
            if not pipes:
                return 0
            with suppress(OSError):  # if there are too many processes, the server sees the pipe close
                if os.fork() == 0:
                    os.close(control.detach())
                    _serve(tokenizer, limits, *pipes)
            for pipe in pipes:
                os.close(pipe)


def _serve(tokenizer: WorkerTokenizer, limits: Limits, commands: int, replies: int) -> None:
    """Runs one grammar and exits; after any failure the server sees the pipe close."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # native code reports its crash on stderr
    try:
        with suppress(ServerClosedError, BrokenPipeError):
            run(tokenizer, Server(commands, replies), limits)
    finally:
        os._exit(0)


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            raise SystemExit(0)
        data += piece
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
