"""Speculation: tokens that followed an earlier occurrence of a row's last tokens are drafted, verified and kept.

Rows verify several positions in a step, packed as pairs of a row and a position. A layer returns its states after each
position, of which the one after the last accepted token is kept.

Letters in shapes: R or B rows, T maximum number of drafted tokens, S positions: T + 1, H = `HISTORY`, M pairs, E RG-LRU
channels, K taps of the convolution. Each key head of a window has separate rows, as in kernels.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from ...kernels.arithmetic import first_rows, with_first_rows
from ...kernels.window_attention import (
    Rings,
    Vectors,
    for_each_head,
    heads_as_rows,
    num_key_heads,
    put_tokens,
    read_ring,
    rows_as_heads,
    write_ring,
    zero_ring,
)
from ..types.config import HISTORY, Speculation
from ..types.sampling_params import NO_TOKEN
from .layer_kinds import AttentionState, RecurrentState

type RowInts = Int32[Array, " R"]

type RowFlags = Bool[Array, " R"]

type Histories = Int32[Array, "R H"]
"""Last tokens of every row, the one at position p in column p mod H."""

_FIRST_DEPTH: Final = 2
"""Number of tokens of a draft after right guesses."""

_PATIENCE: Final = 2
"""Number of right guesses in a row, less one, before tokens are drafted again after a wrong one."""


class DraftState(NamedTuple):
    """State of each row that its next draft depends on.

    Attributes:
      history: Tokens to look drafts up in, the one at position p in column p mod H. A prediction takes positions
        before the last tokens of the prompt.
      depth: Maximum number of tokens of the next draft. At 0 or less, tokens are guessed but not verified: at -n, until
        n + 1 guesses in a row were right.
    """

    history: Histories
    depth: RowInts


def zero_draft_state(rows: int) -> DraftState:
    """Returns the state of rows without tokens."""
    return new_draft_state(jnp.full((rows, HISTORY), NO_TOKEN, jnp.int32))


def new_draft_state(history: Histories) -> DraftState:
    """Returns the state of rows for which nothing was guessed yet."""
    return DraftState(history, jnp.full(history.shape[0], _FIRST_DEPTH, jnp.int32))


class Drafts(NamedTuple):
    """Guessed tokens, and how many of them are drafted.

    Attributes:
      tokens: Tokens that may follow each row's last one.
      counts: Number of drafted tokens of each row.
      is_guessed: Whether there is a guess for each row.
      starts: Position of each row's first token in the history, if there is a guess.
      num_forced: Number of tokens of each row that are the only ones allowed at their place.
    """

    tokens: Int32[Array, "R T"]
    counts: RowInts
    is_guessed: RowFlags
    starts: RowInts
    num_forced: RowInts


def propose(state: DraftState, positions: RowInts, limits: RowInts, settings: Speculation) -> Drafts:
    """Returns the tokens after the latest of the longest matches of each row's last tokens.

    A match that reaches the last token is continued periodically.

    Args:
      state: Draft state of the rows.
      positions: Position of each row's last token.
      limits: Maximum number of drafted tokens of each row. Without room for one, nothing is guessed.
      settings: Lengths of matches and drafts.
    """

    def search() -> Drafts:
        distance = _match_distances(state.history, positions, settings)
        starts = positions + 1 - distance
        ahead = jnp.arange(settings.num_tokens) % jnp.maximum(distance, 1)[:, None]
        tokens = tokens_at(state.history, starts[:, None] + ahead)
        is_guessed = (distance > 0) & (limits > 0)
        most = jnp.clip(jnp.minimum(state.depth, limits), 0, settings.num_tokens)
        return Drafts(tokens, jnp.where(is_guessed, most, 0), is_guessed, starts, zeros)

    rows = limits.shape[0]
    tokens, zeros = jnp.zeros((rows, settings.num_tokens), jnp.int32), jnp.zeros(rows, jnp.int32)
    nothing = Drafts(tokens, zeros, jnp.zeros(rows, jnp.bool), zeros, zeros)
    return jax.lax.cond(jnp.any(limits > 0), search, lambda: nothing)


def with_forced(drafts: Drafts, forced: Int32[Array, "R T"], positions: RowInts, limits: RowInts) -> Drafts:
    """Returns drafts with the forced tokens of rows that have some.

    Args:
      drafts: Drafts of rows without forced tokens.
      forced: Forced tokens of each row, then `NO_TOKEN`.
      positions: Position of each row's last token.
      limits: Maximum number of drafted tokens of each row.
    """
    num_forced = jnp.sum(forced >= 0, axis=1, dtype=jnp.int32)
    is_forced = num_forced > 0
    return Drafts(
        tokens=jnp.where(is_forced[:, None], forced, drafts.tokens),
        counts=jnp.where(is_forced, jnp.minimum(num_forced, limits), drafts.counts),
        is_guessed=drafts.is_guessed & ~is_forced,
        starts=jnp.where(is_forced, positions + 1, drafts.starts),  # past the history, and so no prediction
        num_forced=num_forced,
    )


def _match_distances(history: Histories, positions: RowInts, settings: Speculation) -> RowInts:
    """Returns how far the latest of the longest matches ends before each row's last token; 0 without a match.

    Columns are compared as they lie, without a gather: that takes microseconds, and a gather as long as a layer.
    """
    longest = settings.max_match
    last = tokens_at(history, positions[:, None] - jnp.arange(longest))
    before = jnp.concatenate([history[:, HISTORY - longest + 1 :], history], axis=1)
    distance = (positions[:, None] - jnp.arange(HISTORY)) % HISTORY
    matches, lengths = distance > 0, jnp.zeros(history.shape, jnp.int32)
    for place in range(longest):
        own, start = last[:, place, None], longest - 1 - place
        is_known = distance < jnp.where(own >= 0, HISTORY - place, 0)  # further back, columns have later tokens
        matches &= (before[:, start : start + HISTORY] == own) & is_known
        lengths += matches
    # The longest, and the latest among equals, as one number: CPUs find maxima much faster than their places.
    rank = jnp.where(lengths >= settings.min_match, lengths * HISTORY + HISTORY - 1 - distance, -1)
    best = jnp.max(rank, axis=1)
    return jnp.where(best >= 0, HISTORY - 1 - best % HISTORY, 0)


def within(counts: RowInts, most: Int32[Array, ""]) -> RowInts:
    """Returns numbers of drafted tokens, cut from the last rows on so that their sum is at most `most`."""
    before = jnp.cumsum(counts) - counts
    return jnp.clip(most - before, 0, counts)


def learn(depth: RowInts, drafts: Drafts, sampled: RowInts, accepted: RowInts, settings: Speculation) -> RowInts:
    """Returns `DraftState.depth` after a round: drafts double while all of them are accepted, and end with a miss.

    Args:
      depth: Depth before the round.
      drafts: Drafts of the round.
      sampled: First token that the round sampled.
      accepted: Number of accepted tokens of each row.
      settings: Maximum number of drafted tokens.
    """
    is_right = drafts.tokens[:, 0] == sampled
    trial = jnp.where(depth < 0, depth + 1, jnp.maximum(depth, _FIRST_DEPTH))
    doubled = jnp.minimum(2 * depth, settings.num_tokens)
    grown = jnp.where(drafts.counts == 0, trial, jnp.where(accepted == drafts.counts, doubled, accepted))
    return jnp.where(drafts.is_guessed, jnp.where(is_right, grown, -_PATIENCE), depth)


def record(history: Histories, tokens: Int32[Array, "R T"], positions: RowInts, counts: RowInts) -> Histories:
    """Returns the histories with new tokens. The token at position p is in column p mod H.

    Every column is written, with its old value if it gets no new token: CPUs scatter much more slowly.

    Args:
      history: Tokens so far.
      tokens: New tokens of each row.
      positions: Position of each row's first new token.
      counts: Number of new tokens of each row.
    """
    ahead = (jnp.arange(HISTORY) - positions[:, None]) % HISTORY
    for place in range(tokens.shape[1]):
        history = jnp.where((ahead == place) & (place < counts[:, None]), tokens[:, place, None], history)
    return history


def tokens_at(history: Histories, positions: Int32[Array, "R N"]) -> Int32[Array, "R N"]:
    """Returns the tokens at some positions."""
    return jnp.take_along_axis(history, positions % HISTORY, axis=1)


class Accepted(NamedTuple):
    """Tokens that a round adds to each row.

    Attributes:
      counts: Number of accepted drafts of each row, one that ends the request included.
      last: Index of the last sampled token that is kept: the first that differs from the draft or ends the request, or
        the one after the whole draft.
    """

    counts: RowInts
    last: RowInts


def accept(drafts: Drafts, sampled: Int32[Array, "R S"], ends: Bool[Array, "R S"]) -> Accepted:
    """Returns how far the sampled tokens equal the drafts, and where the request ends.

    A token is sampled from the true distribution if all drafts before it were. So the first one that differs is the
    next token, and there is nothing to correct.

    Args:
      drafts: Drafted tokens.
      sampled: Tokens sampled at each position: the one at index i follows the first i drafts.
      ends: Whether the request ends with each token.
    """
    is_draft = jnp.arange(drafts.tokens.shape[1]) < drafts.counts[:, None]
    is_same = (sampled[:, :-1] == drafts.tokens) & is_draft
    goes_on = jnp.cumprod((is_same & ~ends[:, :-1]).astype(jnp.int32), axis=1)
    last = jnp.sum(goes_on, axis=1)
    same = jnp.cumprod(is_same.astype(jnp.int32), axis=1)
    not_after_end = jnp.pad(goes_on[:, :-1], ((0, 0), (1, 0)), constant_values=1)  # 1 for the token that ends the round
    return Accepted(jnp.sum(same * not_after_end, axis=1), last)


class Pairs(NamedTuple):
    """Pairs of a row and a position, row by row, and the row's positions in rising order. Padding comes last.

    Attributes:
      rows: Row of each pair; R in padding.
      offsets: Offset of each pair from its row's first position; 0 in padding, whose pairs are so all equal.
      starts: Index of each row's first pair.
      counts: Number of pairs of each row; 0 for idle rows.
    """

    rows: Int32[Array, " M"]
    offsets: Int32[Array, " M"]
    starts: RowInts
    counts: RowInts

    @classmethod
    def of(cls, counts: RowInts, size: int) -> "Pairs":
        """Returns the pairs of rows with these numbers of positions, whose sum is at most `size`."""
        ends, places = jnp.cumsum(counts), jnp.arange(size, dtype=jnp.int32)
        starts = ends - counts
        rows = jnp.sum(ends <= places[:, None], axis=1, dtype=jnp.int32)
        offsets = places - starts[jnp.minimum(rows, len(counts) - 1)]
        return cls(rows, jnp.where(rows < len(counts), offsets, 0), starts, counts)

    @property
    def is_used(self) -> Bool[Array, " M"]:
        """Whether each pair holds a token, rather than padding."""
        return self.rows < self.counts.shape[0]

    @property
    def depth(self) -> Int32[Array, ""]:
        """Largest number of pairs of a row."""
        return jnp.max(self.counts)

    def of_rows(self, x: Shaped[Array, "R *rest"]) -> Shaped[Array, "M *rest"]:
        """Returns the row of each pair; any row in padding."""
        return x[jnp.minimum(self.rows, x.shape[0] - 1)]

    def of_offsets(self, x: Shaped[Array, "S R *rest"]) -> Shaped[Array, "M *rest"]:
        """Returns the value of each pair, given the values of all rows at each offset; any value in padding."""
        rows, offsets = jnp.minimum(self.rows, x.shape[1] - 1), jnp.clip(self.offsets, 0, x.shape[0] - 1)
        return x[offsets, rows]

    def index_at(self, offset: Int32[Array, ""] | int) -> RowInts:
        """Returns the index of each row's pair at an offset; M for rows without one."""
        return jnp.where(offset < self.counts, self.starts + offset, self.rows.shape[0])

    def at(self, offset: Int32[Array, ""] | int, x: Shaped[Array, "M *rest"]) -> Shaped[Array, "R *rest"]:
        """Returns each row's value at an offset; any value for rows without one."""
        return x[jnp.minimum(self.index_at(offset), x.shape[0] - 1)]

    def by_row(self, x: Shaped[Array, "M *rest"], depth: int) -> Shaped[Array, "R {depth} *rest"]:
        """Returns the values of each row at the first `depth` offsets; any values past the row's last one."""
        index = self.starts[:, None] + jnp.arange(depth)
        return x[jnp.minimum(index, x.shape[0] - 1)]


class Kept(NamedTuple):
    """Positions of each row whose tokens are kept.

    Attributes:
      starts: First position of each row.
      counts: Number of positions of each row that were computed; 0 for idle rows.
      last: Offset of the last position that is kept; any for idle rows.
    """

    starts: Int32[Array, " B"]
    counts: Int32[Array, " B"]
    last: Int32[Array, " B"]


class RecurrentStates(NamedTuple):
    """States of a recurrent layer after each position; those past a row's last position are that row's last one.

    Attributes:
      before: State of all slots before the first position; the first slots are the rows.
      h: State of the RG-LRU.
      conv: State of the convolution.
    """

    before: RecurrentState
    h: Float32[Array, "S B E"]
    conv: Float[Array, "S K1 B E"]

    @classmethod
    def zeros(cls, before: RecurrentState, rows: int, steps: int) -> "RecurrentStates":
        """Returns room for the states after `steps` positions of the first rows."""
        h, conv = first_rows(before.h, rows, 1), first_rows(before.conv, rows, 1, axis=1)
        return cls(before, *(jnp.zeros((steps, *x.shape), x.dtype) for x in (h, conv)))

    @property
    def first(self) -> RecurrentState:
        """State of the rows before their first position."""
        rows = self.h.shape[1]
        return RecurrentState(first_rows(self.before.h, rows, 1), first_rows(self.before.conv, rows, 1, axis=1))

    def put(self, step: Int32[Array, ""], state: RecurrentState) -> "RecurrentStates":
        """Returns the states with the one after a position."""
        return self._replace(h=self.h.at[step].set(state.h), conv=self.conv.at[step].set(state.conv))

    def keep(self, kept: Kept) -> RecurrentState:
        """Returns the state of all slots, each row's being the one after its last kept position."""
        rows, last = jnp.arange(self.h.shape[1]), jnp.clip(kept.last, 0, jnp.maximum(kept.counts - 1, 0))
        conv = jnp.moveaxis(jnp.moveaxis(self.conv, 2, 1)[last, rows], 0, 1)
        return RecurrentState(
            with_first_rows(self.before.h, self.h[last, rows], 1), with_first_rows(self.before.conv, conv, 1, axis=1)
        )


class AttentionStates(NamedTuple):
    """State of an attention layer after all positions, and what its rings held before.

    Attributes:
      state: State after all positions.
      old: Keys and values of the positions' ring rows.
    """

    state: AttentionState
    old: "OldRows"

    def keep(self, kept: Kept) -> AttentionState:
        """Returns rings that have the keys of kept positions only."""
        heads = num_key_heads(self.state.rings[0])
        starts, counts, last = (for_each_head(x, heads) for x in kept)
        offsets = jnp.arange(self.old[0].shape[1])
        undone = (offsets > last[:, None]) & (offsets < counts[:, None])
        positions = jnp.where(undone, starts[:, None] + offsets, -1)
        rings = write_ring(heads_as_rows(self.state.rings, heads), *self.old, positions, starts)
        return AttentionState(rows_as_heads(rings, heads))


type OldRows = tuple[Vectors, Vectors]
"""Keys and values of several positions of each row."""

type VerifiedStates = RecurrentStates | AttentionStates
"""States of one layer after several positions."""


def no_rows(rings: Rings, rows: int, depth: int) -> OldRows:
    """Returns room for the entries of rings at `depth` positions of the first rows."""
    zeros = zero_ring(rows, depth, rings[0].shape[-1], rings[0].dtype)
    return zeros, zeros


def read_rows(rings: Rings, old: OldRows, positions: Int32[Array, " B"], offset: Int32[Array, ""]) -> OldRows:
    """Returns `old` with the rings' entries of one position of each row, at its offset."""
    keys, values = read_ring(rings, positions)
    return put_tokens(old[0], keys, offset), put_tokens(old[1], values, offset)
