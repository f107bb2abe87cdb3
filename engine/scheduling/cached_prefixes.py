"""Restores prompts from the prefix cache, and inserts the snapshots that prefilling them leaves."""

from collections.abc import Sequence

from ..core.request import FinishReason, TokenOutput
from ..core.snapshot import BlockState, Snapshot
from ..prefix_cache.cache import PrefixCache
from ..prefix_cache.prefix_key import PrefixKey
from .plan import FinishedState
from .prefetch import Fetch
from .running_request import RunningRequest


class CachedPrefixes:
    """Use of the prefix cache by running requests. Only memory is searched: files were read while a request waited.

    Args:
      cache: The prefix cache; None restores only snapshots that come with a request.
    """

    def __init__(self, cache: PrefixCache | None) -> None:
        self._cache = cache

    def restore(self, running: RunningRequest, fetch: Fetch | None) -> None:
        """Restores the longest known prefix of a request's prompt, unless its prompt tokens are scored or it is a fork.

        Args:
          running: Request that just got its slot, or whose parent has ended.
          fetch: Search on disk for the same request, if there was one.
        """
        if self._cache is not None:
            running.key = _key_of(running, fetch)
        if running.parent is not None or running.request.params.prompt_logprobs is not None:
            return
        snapshots = (self._look_up(running, fetch), _own_snapshot(running))
        longest = max(filter(None, snapshots), key=lambda snapshot: snapshot.length, default=None)
        if longest is not None:
            running.restore_from(longest)

    def insert(self, running: RunningRequest, block_states: Sequence[BlockState]) -> None:
        """Inserts the states that a chunk has left, as long as all states of the request were finite.

        The request may have ended: its states are computed, and another request may use them.
        """
        running.is_finite = running.is_finite and all(state.is_finite for state in block_states)
        if self._cache is not None and running.key is not None and running.is_finite:
            running.last_snapshot = self._cache.insert_chunk(running.key, running.last_snapshot, block_states)

    def finished_state(self, running: RunningRequest, output: TokenOutput) -> FinishedState | None:
        """Returns the state that an ended request has left in its slot, if an inexact cache takes it in.

        The last token was sampled, but never processed. After the first token, the state is that of the prompt.
        """
        is_whole = output.finish_reason is not FinishReason.ERROR and len(running.token_ids) > 1
        if not is_whole or self._cache is None or not self._cache.is_inexact:
            return None
        request = running.request
        tokens = request.prompt_token_ids + tuple(running.token_ids[:-1])
        return FinishedState(PrefixKey.of(tokens, request.cache_salt), running.slot)

    def _look_up(self, running: RunningRequest, fetch: Fetch | None) -> Snapshot | None:
        if self._cache is None or running.key is None:
            return None
        return self._cache.match_prefix(running.key, None if fetch is None else fetch.found)


def _key_of(running: RunningRequest, fetch: Fetch | None) -> PrefixKey:
    """Returns the key of a request's prompt, with the parent's or the search's bytes where there are any."""
    request, parent = running.request, running.parent
    if parent is not None and parent.key is not None:
        return PrefixKey(request.cache_salt, parent.key.tokens)
    if running.key is not None:
        return running.key
    return PrefixKey.of(request.prompt_token_ids, request.cache_salt) if fetch is None else fetch.key


def _own_snapshot(running: RunningRequest) -> Snapshot | None:
    """Returns the snapshot that came with the request, if it leaves at least one token to prefill."""
    snapshot = running.request.state
    is_useful = snapshot is not None and snapshot.length < len(running.request.prompt_token_ids)
    return snapshot if is_useful else None
