"""Resource limits of a grammar process; the system ends a process that exceeds them."""

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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


class TooMuchWorkError(Exception):
    """An output has used up its allowance of CPU time."""


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
          TooMuchWorkError: The allowance is used up afterwards.
        """
        began = time.process_time()
        available_s = self._left_s + max(num_tokens - 1, 0) * self._limits.token_cpu_s
        with cpu_limit(available_s):
            yield
        spent = time.process_time() - began
        self._left_s = min(available_s - spent + self._limits.token_cpu_s, self._limits.follow_cpu_s)
        if self._left_s <= 0:
            raise TooMuchWorkError


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
