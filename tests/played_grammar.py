"""A grammar process whose side of the pipes is played by the test, so that its replies come when the test wants."""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO

from roost.engine.types.output_constraint import mask_of_ids
from roost.server.constraints.grammar_process import Grammar
from roost.server.constraints.grammar_worker.protocol import TOKEN, Frame, FrameReader, GrammarLimits, Kind


class PlayedProcess:
    """The process's side.

    Attributes:
      process: The server's side.
    """

    def __init__(self, process: Grammar, commands: int, replies: int, status: int) -> None:
        self.process = process
        self._commands, self._replies, self._status = commands, replies, status
        self._reader = FrameReader()
        os.set_blocking(commands, False)

    def requests(self) -> list[tuple[int, list[int]]]:
        """Returns the followers and tokens of all requests that have arrived since the last call."""
        frames: list[Frame] = []
        with suppress(BlockingIOError):
            while data := os.read(self._commands, 2**16):
                frames += self._reader.feed(data)
        return [(each.follower, _tokens(each)) for each in frames if each.kind is Kind.NEXT]

    def allow(self, follower: int, token_ids: Sequence[int], words: int, forced: Sequence[int] = ()) -> None:
        """Replies with forced tokens and the mask after them."""
        head = b"".join(map(TOKEN.pack, (len(forced), *forced)))
        self.reply(Frame(Kind.MASK, follower, head + mask_of_ids(token_ids, words).tobytes()))

    def reply(self, frame: Frame) -> None:
        """Sends a reply."""
        os.write(self._replies, frame.to_bytes())

    def end(self, signal_number: int = 0) -> None:
        """Ends the process by a signal, or without one: the server's side sees its pipe close."""
        os.write(self._status, bytes([signal_number]))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._replies)
        os.close(null)


def _tokens(frame: Frame) -> list[int]:
    return [token_id for (token_id,) in TOKEN.iter_unpack(frame.payload)]


@contextmanager
def played() -> Iterator[PlayedProcess]:
    """Yields a process that has compiled a grammar."""
    commands, our_commands = os.pipe()
    our_replies, replies = os.pipe()
    our_status, status = os.pipe()
    os.set_blocking(our_commands, False)
    ours = FileIO(our_commands, "w"), FileIO(our_replies), FileIO(our_status)
    yield PlayedProcess(Grammar(*ours, list, GrammarLimits()), commands, replies, status)
    for file in ours:
        file.close()
    for pipe in (commands, replies, status):
        os.close(pipe)


class LateMasks:
    """Replies to requests one by one, each of them after a number of turns.

    Args:
      allowed: Returns the tokens that may follow an output's tokens.
      words: Number of words of a mask.
      num_turns: Number of turns from one reply to the next.
    """

    def __init__(
        self, played: PlayedProcess, allowed: Callable[[Sequence[int]], Sequence[int]], words: int, num_turns: int
    ) -> None:
        self._played = played
        self._allowed = allowed
        self._words = words
        self._num_turns = num_turns
        self._turn = 0
        self._outputs: defaultdict[int, list[int]] = defaultdict(list)
        self._waiting: deque[tuple[int, list[int]]] = deque()

    def turn(self) -> None:
        """Lets a turn pass: takes what was requested, and replies to the oldest request if it is time."""
        self._waiting += self._played.requests()
        self._turn += 1
        if self._turn % (self._num_turns + 1) == 0:
            self.reply()

    def reply(self) -> None:
        """Replies to the oldest request, if there is one."""
        if self._waiting:
            follower, token_ids = self._waiting.popleft()
            self._outputs[follower] += token_ids
            self._played.allow(follower, self._allowed(self._outputs[follower]), self._words)
