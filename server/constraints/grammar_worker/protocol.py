"""What the server and a grammar process exchange: messages, the vocabulary, and the limits of the process.

The system ends a process that exceeds its limits.
"""

import contextlib
import json
import resource
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<BII")

TOKEN: Final = struct.Struct("<I")


class Notation(IntEnum):
    """Notations of a grammar's source, which the grammar's process translates.

    Attributes:
      LARK: llguidance's dialect of Lark.
      GBNF: llama.cpp's EBNF.
      REGEX: One regular expression.
    """

    LARK = 0
    GBNF = 1
    REGEX = 2


class Kind(IntEnum):
    """Kinds of messages.

    Attributes:
      COMPILE: To the process, first: a byte with the `Notation`, then the source of the grammar.
      NEXT: To the process: tokens that advance a follower, none for its first mask. The reply is MASK or FAILED.
      DROP: To the process: a follower has ended.
      TOKENS: To the process: token ids, the reply to TOKENIZE; none if the tokenizer changes the text.
      COMPILED: To the server: bytes of memory that the compiled grammar holds, as a big-endian number.
      REFUSED: To the server: reason why the compilation failed.
      MASK: To the server: number of forced tokens, each the only one that a follower allows after the previous
        tokens; these tokens; and the mask of the token after them, one bit per token.
      FAILED: To the server: reason why an output cannot be followed further.
      TOKENIZE: To the server: text whose token ids are needed.
    """

    COMPILE = 0
    NEXT = 1
    DROP = 2
    TOKENS = 3
    COMPILED = 4
    REFUSED = 5
    MASK = 6
    FAILED = 7
    TOKENIZE = 8


class Frame(NamedTuple):
    """One message.

    Attributes:
      kind: Kind of the message.
      follower: Number of the follower; 0 for the grammar itself.
      payload: Content of the message.
    """

    kind: Kind
    follower: int = 0
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """Returns the encoded message."""
        return _HEADER.pack(self.kind, self.follower, len(self.payload)) + self.payload


class FrameReader:
    """Decodes messages from a stream of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Adds bytes and yields the messages that are complete."""
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, follower, length = _HEADER.unpack_from(self._data)
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            yield Frame(Kind(kind), follower, payload)


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """Limits of one grammar.

    Attributes:
      compile_cpu_s: Maximum CPU seconds of a compilation, including the first masks.
      follow_cpu_s: Initial and maximum CPU seconds of an output's allowance.
      token_cpu_s: CPU seconds that each token adds to the allowance; most masks take 1% of it.
      memory: Maximum bytes of address space that a grammar process adds to the vocabulary's.
      stack: Maximum bytes of stack; 8 MiB suffice for a chain of about 2,000 definitions.
      max_forced: Maximum number of forced tokens that come with a mask, for speculation to draft.
    """

    compile_cpu_s: float = 5.0
    follow_cpu_s: float = 0.5
    token_cpu_s: float = 0.005
    memory: int = 512 * 2**20
    stack: int = 8 * 2**20
    max_forced: int = 0


class GrammarFailure(Exception):
    """The grammar cannot be compiled or followed."""


class Allowance:
    """Allowance of CPU time of one output."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._left_s = limits.follow_cpu_s

    @contextlib.contextmanager
    def spend(self, num_tokens: int = 1) -> Iterator[None]:
        """Subtracts the CPU time of the `with` block. The system ends a process that exceeds the allowance within it.

        Args:
          num_tokens: Number of tokens that the block follows; every token after the first adds to its allowance.

        Raises:
          GrammarFailure: The allowance is used up afterwards.
        """
        began = time.process_time()
        available_s = self._left_s + max(num_tokens - 1, 0) * self._limits.token_cpu_s
        with cpu_limit(available_s):
            yield
        spent = time.process_time() - began
        self._left_s = min(available_s - spent + self._limits.token_cpu_s, self._limits.follow_cpu_s)
        if self._left_s <= 0:
            raise GrammarFailure("computing the next token mask takes too much work")


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Ends this process after `seconds` of CPU time in the `with` block. Native code ignores gentler limits."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(limits: GrammarLimits) -> None:
    """Limits this process's stack and, if the system reports its size, the growth of its address space."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(
        resource.RLIMIT_STACK, (limits.stack if hard == resource.RLIM_INFINITY else min(limits.stack, hard), hard)
    )
    size = _statm(0)
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, size + limits.memory))


def resident() -> int:
    """Returns the resident bytes of this process without file mappings; 0 if the system does not report them."""
    return max(_statm(1) - _statm(2), 0)


def _statm(field: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens of a model.

    Attributes:
      tokens: Bytes of each token; names of special tokens.
      special_token_ids: Tokens without text.
      end_token_ids: Tokens that end a generation.
      bos_token_id: BOS token, if there is one.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    end_token_ids: Sequence[int]
    bos_token_id: int | None

    def to_json(self) -> str:
        """Returns the vocabulary as JSON, with a character for each byte."""
        tokens = [token.decode("latin-1") for token in self.tokens]
        return json.dumps([tokens, self.special_token_ids, self.end_token_ids, self.bos_token_id])

    @classmethod
    def from_json(cls, data: str) -> "Vocabulary":
        """Returns the vocabulary that `to_json` has written."""
        tokens, *others = json.loads(data)
        return cls([token.encode("latin-1") for token in tokens], *others)
