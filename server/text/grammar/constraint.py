"""A compiled grammar, and what follows one answer through it."""

import weakref

import numpy as np

from ....engine import RoostError
from ....engine.core.output_constraint import TokenMask
from ..grammar_worker.frames import Kind
from .process import GrammarProcess
from .spec import one_line


class GrammarFailedError(RoostError):
    """A grammar has become too complex on the way, or got a token that it had not allowed."""


class GrammarConstraint:
    """A `Constraint`. End tokens are allowed exactly where the grammar may end.

    Masks are computed in the grammar's process, from the moment on that the token before them is known.
    """

    def __init__(self, process: GrammarProcess) -> None:
        self._process = process
        self._follower = process.new_follower()
        self._has_asked = False
        weakref.finalize(self, process.drop, self._follower).atexit = False

    def advance(self, token_id: int) -> None:
        """Asks for the mask behind this token; `fill_mask` says if the token was not allowed."""
        self._process.ask(self._follower, token_id)
        self._has_asked = True

    def is_ready(self, wait_s: float) -> bool:
        """Whether `fill_mask` would return at once."""
        self._ask_first()
        return self._process.wait(self._follower, wait_s)

    def fill_mask(self, mask: TokenMask) -> None:
        """
        Raises:
          GrammarFailedError: it takes too much work to tell what may come next, or the last token was not allowed.
        """
        self._ask_first()
        result = self._process.result(self._follower)
        if result.kind is not Kind.MASK:
            reason = one_line(result.payload.decode())
            raise GrammarFailedError(f"the grammar cannot be followed any further: {reason}")
        mask[:] = np.frombuffer(result.payload, np.uint32)[: mask.size]

    def _ask_first(self) -> None:
        if not self._has_asked:
            self._process.ask(self._follower)
            self._has_asked = True


class Grammar:
    """Compiled once, for any number of answers.

    Args:
      process: has compiled it.
    """

    def __init__(self, process: GrammarProcess) -> None:
        self._process = process

    @property
    def is_alive(self) -> bool:
        """Whether answers can still keep to it."""
        return self._process.is_alive

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return self._process.num_bytes

    def constraint(self) -> GrammarConstraint:
        """For one more answer; costs next to nothing."""
        return GrammarConstraint(self._process)
