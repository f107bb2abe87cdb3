"""Forks a process for each grammar.

The parent builds the vocabulary and runs no client's grammar, so that no grammar can end it. A fork takes a millisecond
and shares the vocabulary's memory. A second process waits for each grammar's, and reports how it ended.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

from .follow import Server, WorkerTokenizer, run
from .protocol import GrammarLimits, Vocabulary


def main() -> int:
    """Reads the vocabulary from stdin, then serves the socket of the first argument until its other end is closed.

    The second argument is a JSON object of the `GrammarLimits`.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = GrammarLimits(**json.loads(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a service; the server decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the watchers
    tokenizer = WorkerTokenizer(Vocabulary.from_json(sys.stdin.read()))
    while pipes := socket.recv_fds(control, 1, 3)[1]:
        with suppress(OSError):  # the server sees the pipes close
            if os.fork() == 0:
                control.close()
                _watch(tokenizer, limits, *pipes)
        for pipe in pipes:
            os.close(pipe)
    return 0


def _watch(tokenizer: WorkerTokenizer, limits: GrammarLimits, commands: int, replies: int, status: int) -> None:
    """Runs one grammar in a child, writes the number of the signal that ended it, or 0, to `status`, and exits."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child == 0:
            os.close(status)
            _serve(tokenizer, limits, commands, replies)
        os.close(commands)
        os.close(replies)
        os.write(status, bytes([os.WTERMSIG(os.waitpid(child, 0)[1])]))
    finally:
        os._exit(0)


def _serve(tokenizer: WorkerTokenizer, limits: GrammarLimits, commands: int, replies: int) -> None:
    """Runs one grammar and exits; after any failure the server sees the pipe close."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # native code reports its crash on stderr
    try:
        with suppress(StopIteration, BrokenPipeError):
            run(tokenizer, Server(commands, replies), limits)
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
