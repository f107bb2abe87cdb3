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

from .follow import Server, ServerClosedError, WorkerTokenizer, run
from .protocol import SIZE_BYTES, GrammarLimits, Vocabulary


def main() -> int:
    """Serves the socket whose descriptor is the first argument, until its other end is closed.

    The second argument is a JSON object of the `GrammarLimits`.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = GrammarLimits(**json.loads(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service; the server decides
        signal.signal(number, signal.SIG_IGN)
    children = _Children()
    with control, control.makefile("rb", buffering=0) as stream:
        size = int.from_bytes(_read(stream.fileno(), SIZE_BYTES))
        tokenizer = WorkerTokenizer(Vocabulary.from_bytes(_read(stream.fileno(), size)))
        while True:
            _, pipes, _, _ = socket.recv_fds(control, 1, 3)
            if not pipes:
                return 0
            commands, replies, status = pipes
            if not children.fork(status):
                os.close(control.detach())
                _serve(tokenizer, limits, commands, replies)
            os.close(commands)
            os.close(replies)


class _Children:
    """The processes of grammars. When a process ends, a byte on its pipe reports the signal that ended it, or 0."""

    def __init__(self) -> None:
        self._pipes: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def fork(self, status: int) -> bool:
        """Forks, and returns whether this is the parent. If the fork fails, the server sees the pipes close.

        Args:
          status: Pipe for the byte about the child's end.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            child = os.fork()
        except OSError:
            child = -1
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for pipe in (status, *self._pipes.values()):
                os.close(pipe)
        elif child < 0:
            _report(status, signal.SIGKILL)
        else:
            self._pipes[child] = status
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return child != 0

    def _reap(self, number: int, frame: object) -> None:
        while self._pipes:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # a call that this one interrupts has waited for the last, and will report it
                return
            if not child:
                return
            _report(self._pipes.pop(child), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


def _report(pipe: int, number: int) -> None:
    """Writes the number of a signal to a pipe, which the server may have closed, and closes the pipe."""
    with suppress(BrokenPipeError):
        os.write(pipe, bytes([number]))
    os.close(pipe)


def _serve(tokenizer: WorkerTokenizer, limits: GrammarLimits, commands: int, replies: int) -> None:
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
