"""Processes that compile and follow grammars, and the constraint that follows one output.

llguidance is native code whose parsers recurse, and a mask of a hostile grammar can take minutes. Its limits bound
neither, so each grammar has a separate process, which the system ends when it overflows its stack or exceeds the CPU
time or memory of `GrammarLimits`. The end of a process ends only the outputs that follow its grammar.
"""

import fcntl
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from io import FileIO
from typing import Final

import numpy as np

from ...engine import ConstraintLostError, RoostError
from ...engine.types.output_constraint import Forced, TokenMask, mask_of_ids
from ..text.tokenizer import Tokenizer
from . import grammar_worker
from .grammar_spec import GrammarBusyError, GrammarError, GrammarSpec, one_line
from .grammar_worker.protocol import TOKEN, Frame, FrameReader, GrammarLimits, Kind, Vocabulary

_READ_BYTES: Final = 64 * 1024
"""Maximum bytes of one read from a process."""

_PIPE_BYTES: Final = 2**20
"""Capacity of the pipe of masks, which lets a process run ahead of the engine."""

_KILLED: Final = frozenset({signal.SIGKILL, signal.SIGTERM})
"""Signals that no limit of a grammar sends."""

_DIED: Final = Frame(Kind.FAILED, payload=b"computing the next token mask takes too much work")
"""Reply of a process that has ended."""

_ALL_BYTES: Final = frozenset(bytes([byte]) for byte in range(256))

type Tokenize = Callable[[bytes], Sequence[int]]


@dataclass(eq=False)
class GrammarFollower:
    """A grammar's state along one output.

    Attributes:
      number: Number in messages.
      is_awaited: Whether the reply to the last request has not arrived.
      reply: Reply to the last request, once it has arrived.
    """

    number: int
    is_awaited: bool = False
    reply: Frame = _DIED


class Grammar:
    """A grammar, which any number of outputs may follow, and its process.

    One thread at a time may use it, but any thread may drop followers.

    Args:
      commands: Pipe to the process.
      replies: Pipe from the process.
      status: Pipe with one byte after the end of the process: the signal that ended it, or 0.
      tokenize: Returns the token ids of a text.
      limits: Resource limits of the process.

    Attributes:
      num_bytes: Bytes of memory that the grammar holds.
    """

    def __init__(
        self, commands: FileIO, replies: FileIO, status: FileIO, tokenize: Tokenize, limits: GrammarLimits
    ) -> None:
        self._limits = limits
        self.num_bytes = 0
        self._commands, self._replies, self._status = commands, replies, status
        self._tokenize = tokenize
        self._reader = FrameReader()
        self._numbers = itertools.count()
        self._followers: weakref.WeakValueDictionary[int, GrammarFollower] = weakref.WeakValueDictionary()
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()
        self._is_dead = False
        self._signal: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process is running. Callable on any thread."""
        poll = select.poll()
        poll.register(self._replies, 0)
        hung_up = bool(poll.poll(0))
        return not self._is_dead and not hung_up

    @property
    def was_killed(self) -> bool:
        """Whether the system or an operator ended the process, and not one of its limits."""
        if not self._is_dead:
            return False
        if self._signal is None:
            found = self._status.read(1)
            self._signal = found[0] if found else signal.SIGKILL  # without a byte, its watcher was killed as well
        return self._signal in _KILLED

    def compile(self, spec: GrammarSpec) -> None:
        """Compiles the grammar, before any other message.

        Raises:
          GrammarError: The grammar is wrong, uses an unsupported feature, or exceeds the limits.
          GrammarBusyError: The system has ended the process.
        """
        compilation = self.new_follower()
        self._request(compilation, Kind.COMPILE, bytes([spec.notation]) + spec.source.encode())
        os.set_blocking(self._commands.fileno(), False)  # after the compilation, a process must not block the engine
        self.wait(compilation, None)
        result = compilation.reply
        if result is _DIED:
            if self.was_killed:
                raise GrammarBusyError("the system has ended the process that compiled it; try again later")
            raise GrammarError(_too_complex(self._limits))
        if result.kind is Kind.REFUSED:
            raise GrammarError(one_line(result.payload.decode()))
        self.num_bytes = int.from_bytes(result.payload)

    def constraint(self, generated: Sequence[int] = ()) -> "GrammarConstraint":
        """Returns the constraint of one more output, after the tokens that were already generated."""
        constraint = GrammarConstraint(self)
        for token_id in generated:
            constraint.advance(token_id)
        return constraint

    def new_follower(self) -> GrammarFollower:
        """Returns a new follower, which the process drops once it is collected."""
        follower = GrammarFollower(next(self._numbers))
        self._followers[follower.number] = follower
        weakref.finalize(follower, self._send, Frame(Kind.DROP, follower.number)).atexit = False
        return follower

    def request_mask(self, follower: GrammarFollower, token_ids: Sequence[int] = ()) -> None:
        """Requests a follower's next mask, without waiting for it. Its last reply must have arrived.

        Args:
          token_ids: Tokens that advance the follower; none for the first mask.
        """
        self._request(follower, Kind.NEXT, b"".join(map(TOKEN.pack, token_ids)))

    def wait(self, follower: GrammarFollower, seconds: float | None) -> bool:
        """Waits for the reply to the last request, and returns whether it has arrived, or the process has ended."""
        while follower.is_awaited and not self._is_dead:
            if not self._wait_for_io(seconds):
                return False
        return True

    def _request(self, follower: GrammarFollower, kind: Kind, payload: bytes) -> None:
        follower.is_awaited, follower.reply = True, _DIED
        self._send(Frame(kind, follower.number, payload))

    def _wait_for_io(self, seconds: float | None) -> bool:
        """Waits until a pipe is ready, then reads and writes without blocking; returns False after the timeout."""
        self._flush()
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        if self._unsent:
            poll.register(self._commands, select.POLLOUT)
        ready = poll.poll(None if seconds is None else 1e3 * seconds)
        if any(descriptor == self._replies.fileno() for descriptor, _ in ready):
            self._receive()
        return bool(ready)

    def _send(self, frame: Frame) -> None:
        self._unsent.append(frame.to_bytes())
        self._flush()

    def _flush(self) -> None:
        """Writes as much as the process accepts now. If another thread is writing, that thread writes everything."""
        while self._unsent and self._sending.acquire(blocking=False):
            try:
                is_blocked = self._write()
            finally:
                self._sending.release()
            if is_blocked:
                return

    def _write(self) -> bool:
        """Writes waiting messages; returns whether the pipe is full before the end."""
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = len(data) if self._commands.closed else self._commands.write(data)
            except BrokenPipeError:
                self._is_dead, sent = True, len(data)
            if sent is None:
                return True
            if sent < len(data):
                self._unsent[0] = data[sent:]
            else:
                self._unsent.popleft()
        return False

    def _receive(self) -> None:
        data = self._replies.read(_READ_BYTES)
        if not data:
            self._is_dead = True
            return
        for frame in self._reader.feed(data):
            if frame.kind is Kind.TOKENIZE:
                token_ids = self._tokenize(frame.payload)
                self._send(Frame(Kind.TOKENS, payload=b"".join(map(TOKEN.pack, token_ids))))
            elif (follower := self._followers.get(frame.follower)) is not None:
                follower.is_awaited, follower.reply = False, frame


class GrammarProcessFactory:
    """Starts grammar processes as forks of one worker process, which holds the vocabulary.

    The worker is started with the first grammar.

    Args:
      tokenizer: Tokenizer of the model.
      end_token_ids: All tokens that end a generation; they are allowed only where a grammar may end.
      limits: Resource limits of each grammar.
    """

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Sequence[int], limits: GrammarLimits) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def new_process(self) -> Grammar:
        """Returns a new process without a grammar. Callable on any thread.

        Raises:
          GrammarError: The tokenizer is not suitable for grammars.
        """
        with self._lock:
            try:
                return self._fork(self._control or self._start())
            except BrokenPipeError:  # the worker was killed
                return self._fork(self._start())

    def _start(self) -> socket.socket:
        vocabulary = vocabulary_of(self._tokenizer, self._end_token_ids)
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", grammar_worker.__name__, str(number), json.dumps(asdict(self._limits))],
                pass_fds=(number,),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        weakref.finalize(self, _end, ours, process)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(vocabulary.to_json())
        self._control = ours
        return ours

    def _fork(self, control: socket.socket) -> Grammar:
        commands, our_commands = os.pipe()
        our_replies, replies = os.pipe()
        our_status, status = os.pipe()
        with suppress(AttributeError, OSError):  # Linux only, and limited per user
            fcntl.fcntl(replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        ours = FileIO(our_commands, "w"), FileIO(our_replies), FileIO(our_status)
        try:
            socket.send_fds(control, [b"g"], [commands, replies, status])
        except BaseException:
            _close(*ours)
            raise
        finally:
            for pipe in (commands, replies, status):
                os.close(pipe)
        process = Grammar(*ours, partial(exact_token_ids, self._tokenizer), self._limits)
        weakref.finalize(process, _close, *ours)
        return process


def exact_token_ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Returns the tokenizer's token ids of a text; none if their bytes are not the text's.

    A dummy prefix or a normalizer changes them. The library requires tokens with exactly the text's bytes.
    """
    token_ids = tokenizer.encode(text.decode(), control_tokens=False)
    return token_ids if b"".join(map(tokenizer.token_bytes, token_ids)) == text else []


def vocabulary_of(tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> Vocabulary:
    """Returns the bytes of a model's tokens; takes half a second for a large vocabulary.

    Raises:
      GrammarError: The tokens cannot spell every text, or no token ends a generation.
    """
    if not tokenizer.has_text:
        raise GrammarError(
            "this checkpoint has no tokenizer, so its tokens have no text that a grammar could constrain"
        )
    if not end_token_ids:
        raise GrammarError("this checkpoint names no token that ends a generation")
    ends, ids = frozenset(end_token_ids), range(tokenizer.vocab_size)
    special_token_ids = [token_id for token_id in ids if tokenizer.is_control(token_id) or token_id in ends]
    special = frozenset(special_token_ids)
    tokens = [
        tokenizer.token_text(token_id).encode() if token_id in special else tokenizer.token_bytes(token_id)
        for token_id in ids
    ]
    if not _ALL_BYTES.issubset(tokens):
        raise GrammarError("this checkpoint's tokenizer has no token for some bytes, so it cannot spell every text")
    return Vocabulary(tokens, special_token_ids, list(end_token_ids), tokenizer.bos_id)


def _too_complex(limits: GrammarLimits) -> str:
    return (
        f"it is too complex: compiling it takes more than {limits.compile_cpu_s:g} s of CPU time, "
        f"{limits.memory >> 20} MiB of memory, or a deeper stack than there is; make it smaller or less nested"
    )


def _close(*files: FileIO) -> None:
    for file in files:
        file.close()


def _end(control: socket.socket, process: "subprocess.Popen[str]") -> None:
    control.close()
    process.wait()


class GrammarFailedError(RoostError):
    """A grammar cannot be followed further: it became too complex, or received a token that it had not allowed."""


class GrammarConstraint:
    """A `Constraint` of one output. End tokens are allowed exactly where the grammar may end.

    Masks are computed in the grammar's process. The first call of `is_ready` after new tokens requests the next one,
    unless the last one is still computed, or the tokens were forced, and the masks after them known.

    Args:
      process: Process that has compiled the grammar.
    """

    def __init__(self, process: Grammar) -> None:
        self._process = process
        self._follower = process.new_follower()
        self._unsent: list[int] = []
        self._is_requested = False
        self._known: Forced | None = None  # after all tokens

    def advance(self, token_id: int) -> None:
        """Takes the output's next token. `fill_mask` raises if it was not allowed."""
        self._unsent.append(token_id)
        known, self._known = self._known, None
        if known is not None and known.token_ids[:1] == (token_id,):
            self._known = Forced(known.token_ids[1:], known.mask)
        else:
            self._is_requested = False

    def is_ready(self, wait_s: float) -> bool:
        """Waits up to `wait_s` seconds, and returns whether `fill_mask` would return without waiting."""
        if self._known is not None:
            return True
        return self._has_reply(wait_s)

    def fill_mask(self, mask: TokenMask) -> None:
        """Writes the current token mask, and waits for it if necessary.

        Args:
          mask: uint32 words, one bit per token; overwritten.

        Raises:
          GrammarFailedError: The mask takes too much work, or the last token was not allowed.
          ConstraintLostError: The system has ended the grammar's process.
        """
        forced, following = self.forced()
        mask[:] = mask_of_ids(forced[:1], mask.size) if forced else following[: mask.size]

    def forced(self) -> Forced:
        """Returns the next tokens that are known to be forced. Waits and raises as `fill_mask`."""
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> Forced:
        self._has_reply(None)
        reply = self._follower.reply
        if reply.kind is not Kind.MASK:
            if self._process.was_killed:
                raise ConstraintLostError("the system has ended the process of the grammar: send the request again")
            reason = one_line(reply.payload.decode())
            raise GrammarFailedError(f"the grammar cannot be followed any further: {reason}")
        words = np.frombuffer(reply.payload, np.uint32)
        end = 1 + int(words[0])
        return Forced(tuple(words[1:end].tolist()), words[end:])

    def _has_reply(self, wait_s: float | None) -> bool:
        """Waits for the mask after all tokens, and returns whether it has arrived, or the grammar has failed."""
        has_reply = self._process.wait(self._follower, wait_s)
        if has_reply and not self._is_requested:
            self._process.request_mask(self._follower, self._unsent)
            self._unsent.clear()
            self._is_requested = True
            has_reply = self._process.wait(self._follower, wait_s)
        return has_reply
