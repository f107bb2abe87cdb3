"""Resource limits of a grammar process. The system ends a process that exceeds them."""

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one grammar.

    Attributes:
      compile_cpu_s: maximum CPU seconds of a compilation, the first masks included.
      follow_cpu_s: CPU seconds that an answer may use at its start, and maximum of its allowance.
      token_cpu_s: CPU seconds that each token adds to the allowance; most masks take a hundredth of it.
      memory: bytes of address space that a grammar process may add to the vocabulary's.
      stack: bytes of stack; 8 MiB are enough for a chain of some 2,000 definitions.
    """

    compile_cpu_s: float = 5.0
    follow_cpu_s: float = 0.5
    token_cpu_s: float = 0.005
    memory: int = 512 * 2**20
    stack: int = 8 * 2**20


class TooMuchWorkError(Exception):
    """An answer has used up its allowance."""


class Allowance:
    """CPU time allowance of one answer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left_s = limits.follow_cpu_s

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        """Books the CPU time of the `with` block, in which the process dies once the allowance is used up.

        Raises:
          TooMuchWorkError: the allowance is used up afterwards.
        """
        began = time.process_time()
        with cpu_limit(self._left_s):
            yield
        spent = time.process_time() - began
        self._left_s = min(self._left_s - spent + self._limits.token_cpu_s, self._limits.follow_cpu_s)
        if self._left_s <= 0:
            raise TooMuchWorkError


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Lets the system end this process after so much CPU time within the `with` block: native code heeds no other
    limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(limits: Limits) -> None:
    """Limits the stack, and what this process may add to its address space, where the system tells how large that
    is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(
        resource.RLIMIT_STACK, (limits.stack if hard == resource.RLIM_INFINITY else min(limits.stack, hard), hard)
    )
    size = _statm(0)
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, size + limits.memory))


def resident() -> int:
    """Returns the bytes of memory of this process that are not shared with a file; 0 where the system does not tell."""
    return max(_statm(1) - _statm(2), 0)


def _statm(field: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
    except OSError:
        return 0
