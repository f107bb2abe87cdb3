"""Contestant: `roost serve`, whose streams grow from a short prompt to a length; their speed is recorded on the way.

Server and client share the cores, so the client's work counts against Roost.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from protocol import Command, answer_all, draw_prompts, versions
from roost_http import RoostServer, Stream

PROMPT = 16
"""Tokens of each prompt."""

MORE = 1000
"""Tokens that streams are asked for beyond the last length, since those that started first are ahead."""


def reached(stream: Stream, length: int) -> float:
    """Returns the time at which a stream had this many tokens."""
    totals = zip(stream.times, accumulate(stream.counts), strict=True)
    return next(now for now, total in totals if total >= length)


def rate(streams: Sequence[Stream], first: int, last: int) -> float:
    """Returns the tokens per second of all streams, from when all are past `first` until one is at `last`."""
    begin, end = max(reached(each, first) for each in streams), min(reached(each, last) for each in streams)
    if begin >= end:
        raise RuntimeError(f"no moment at which all {len(streams)} streams are between {first} and {last} tokens")
    return sum(each.tokens(begin, end) for each in streams) / (end - begin)


class LongServer(RoostServer):
    """A `roost serve` process whose streams grow together."""

    def grow(self, rows: int, lengths: Sequence[int], window: int, seed: int) -> Mapping[str, Any]:
        """Generates up to the last length, and returns the speed over the last tokens before each length.

        Args:
          window: Least number of tokens before a length that count; it is an eighth of the length if that is more.
        """
        streams = self.run(self._grow(rows, max(lengths), seed))
        return {"tokens_per_s": [rate(streams, length - max(window, length // 8), length) for length in lengths]}

    async def _grow(self, rows: int, length: int, seed: int) -> Sequence[Stream]:
        short, done = set(range(rows)), asyncio.Event()

        def note(row: int, stream: Stream) -> None:
            if stream.total >= length:
                short.discard(row)
            if not short:
                done.set()

        streams = [Stream(partial(note, row)) for row in range(rows)]
        prompts = draw_prompts(rows, PROMPT, self.vocab_size, seed)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.stream(ids, length + MORE, stream.feed))
                for ids, stream in zip(prompts, streams, strict=True)
            ]
            await done.wait()
            for task in tasks:
                task.cancel()
        return streams


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    server = LongServer(wanted["arguments"], wanted["vocab_size"])
    return {"versions": versions(("roost", "jax"))}, {"warm": server.warm, "grow": server.grow}


if __name__ == "__main__":
    answer_all(start)
