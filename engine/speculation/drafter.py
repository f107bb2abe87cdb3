"""Drafts: tokens that followed an earlier occurrence of a row's last tokens, and how many of them are worth a try.

Letters in shapes: R rows, T maximum number of drafted tokens, H = `HISTORY`.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from ..types.speculation import HISTORY, Speculation
from .history import no_history, tokens_at

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

    history: Int32[Array, "R H"]
    depth: Int32[Array, " R"]


def zero_draft_state(rows: int) -> DraftState:
    """Returns the state of rows without tokens."""
    return new_draft_state(no_history(rows))


def new_draft_state(history: Int32[Array, "R H"]) -> DraftState:
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
    counts: Int32[Array, " R"]
    is_guessed: Bool[Array, " R"]
    starts: Int32[Array, " R"]
    num_forced: Int32[Array, " R"]


def propose(
    state: DraftState, positions: Int32[Array, " R"], limits: Int32[Array, " R"], settings: Speculation
) -> Drafts:
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
    drafts: Drafts = jax.lax.cond(jnp.any(limits > 0), search, lambda: nothing)
    return drafts


def with_forced(
    drafts: Drafts, forced: Int32[Array, "R T"], positions: Int32[Array, " R"], limits: Int32[Array, " R"]
) -> Drafts:
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


def _match_distances(
    history: Int32[Array, "R H"], positions: Int32[Array, " R"], settings: Speculation
) -> Int32[Array, " R"]:
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


def within(counts: Int32[Array, " R"], most: Int32[Array, ""]) -> Int32[Array, " R"]:
    """Returns numbers of drafted tokens, cut from the last rows on so that their sum is at most `most`."""
    before = jnp.cumsum(counts) - counts
    return jnp.clip(most - before, 0, counts)


def learn(
    depth: Int32[Array, " R"],
    drafts: Drafts,
    sampled: Int32[Array, " R"],
    accepted: Int32[Array, " R"],
    settings: Speculation,
) -> Int32[Array, " R"]:
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
