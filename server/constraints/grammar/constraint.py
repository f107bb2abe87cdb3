"""A compiled grammar, and the constraint that follows one output through it."""

import weakref
from collections.abc import Sequence

import numpy as np

from ....engine import ConstraintLostError, RoostError
from ....engine.types.output_constraint import Forced, TokenMask, mask_of_ids
from ..grammar_worker.frames import Kind
from .process import GrammarProcess
from .spec import one_line


class GrammarFailedError(RoostError):
    """A grammar cannot be followed further: it became too complex, or received a token that it had not allowed."""


class GrammarConstraint:
    """A `Constraint` of one output. End tokens are allowed exactly where the grammar may end.

    Masks are computed in the grammar's process. The first call of `is_ready` after new tokens requests the next one,
    unless the tokens were forced, and the masks after them known.

    Args:
      process: Process that has compiled the grammar.
    """

    def __init__(self, process: GrammarProcess) -> None:
        self._process = process
        self._follower = process.new_follower()
        self._unsent: list[int] = []
        self._is_requested = False
        self._known: Forced | None = None  # after all tokens
        weakref.finalize(self, process.drop, self._follower).atexit = False

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
        self._request()
        return self._process.wait(self._follower, wait_s)

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
        self._request()
        result = self._process.result(self._follower)
        if result.kind is not Kind.MASK:
            if self._process.was_killed:
                raise ConstraintLostError("the system has ended the process of the grammar: send the request again")
            reason = one_line(result.payload.decode())
            raise GrammarFailedError(f"the grammar cannot be followed any further: {reason}")
        words = np.frombuffer(result.payload, np.uint32)
        end = 1 + int(words[0])
        return Forced(tuple(words[1:end].tolist()), words[end:])

    def _request(self) -> None:
        """Requests the mask after all tokens, unless it was already requested."""
        if not self._is_requested:
            self._process.request_mask(self._follower, self._unsent)
            self._unsent.clear()
            self._is_requested = True


class Grammar:
    """A compiled grammar, which any number of outputs may follow.

    Args:
      process: Process that has compiled the grammar.
    """

    def __init__(self, process: GrammarProcess) -> None:
        self._process = process

    @property
    def is_alive(self) -> bool:
        """Whether the grammar's process is running."""
        return self._process.is_alive

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the grammar holds."""
        return self._process.num_bytes

    def constraint(self, generated: Sequence[int] = ()) -> GrammarConstraint:
        """Returns the constraint of one more output, after the tokens that were already generated."""
        constraint = GrammarConstraint(self._process)
        for token_id in generated:
            constraint.advance(token_id)
        return constraint
