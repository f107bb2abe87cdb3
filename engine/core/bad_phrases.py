"""Bans phrases of several tokens."""

from collections.abc import Iterable, Iterator

from .output_constraint import ALL_ALLOWED, TokenMask


class PhraseIndex:
    """Aho-Corasick automaton over phrases without their last tokens.

    Its state is the longest suffix of the generated tokens that is a prefix of a phrase. A token costs one amortised
    transition, and a visit to each phrase whose last token may come next. The index never changes, and the choices of a
    request share it.

    Args:
      phrases: Phrases of two or more tokens.
    """

    def __init__(self, phrases: Iterable[tuple[int, ...]]) -> None:
        self._edges: dict[tuple[int, int], int] = {}
        self._last_tokens: list[list[int]] = [[]]
        self._depths = [0]
        for *prefix, last in phrases:
            self._last_tokens[self._add(prefix)].append(int(last))
        self._shorter = [0] * len(self._depths)
        """Suffix links: for each state, that of the next shorter suffix."""
        self._next_banning = [0] * len(self._depths)
        """For each state, that of the next shorter suffix that bans a token."""
        self._link()

    def step(self, state: int, token_id: int) -> int:
        """Returns the state after one more token; generation starts in state 0."""
        while state and (state, token_id) not in self._edges:
            state = self._shorter[state]
        return self._edges.get((state, token_id), 0)

    def banned(self, state: int) -> Iterator[int]:
        """Yields the tokens that would complete a phrase in this state."""
        while state:
            yield from self._last_tokens[state]
            state = self._next_banning[state]

    def _add(self, prefix: Iterable[int]) -> int:
        state = 0
        for token_id in map(int, prefix):
            edge = (state, token_id)
            if edge not in self._edges:
                self._edges[edge] = len(self._depths)
                self._depths.append(self._depths[state] + 1)
                self._last_tokens.append([])
            state = self._edges[edge]
        return state

    def _link(self) -> None:
        for (parent, token_id), state in sorted(self._edges.items(), key=lambda edge: self._depths[edge[1]]):
            shorter = self.step(self._shorter[parent], token_id) if parent else 0
            self._shorter[state] = shorter
            self._next_banning[state] = shorter if self._last_tokens[shorter] else self._next_banning[shorter]


class BadPhrases:
    """Constraint that bans the last token of a phrase once the other tokens have been generated.

    Args:
      index: Automaton of the phrases.
    """

    def __init__(self, index: PhraseIndex) -> None:
        self._index = index
        self._state = 0

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = ALL_ALLOWED
        for token_id in self._index.banned(self._state):
            if token_id < 32 * len(mask):
                mask[token_id >> 5] &= ~(1 << (token_id & 31)) & ALL_ALLOWED

    def is_ready(self, wait_s: float) -> bool:
        return True

    def advance(self, token_id: int) -> None:
        self._state = self._index.step(self._state, token_id)
