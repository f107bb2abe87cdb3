"""One stream per request: the choices that run on the engine, merged for one reader."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from ...engine import AsyncEngine, EngineDeadError
from ..errors import request_aborted
from ..observability.metrics import Metrics
from ..text.tokenizer import Tokenizer
from .choice_decoder import ChoiceDecoder
from .choice_stream import ChoiceStream
from .choices import Choice
from .delta import Delta, DeltaJoiner
from .mailbox import Mailbox
from .sent_responses import SentResponse


class Generation:
    """Choices that run side by side; an iterator over their deltas in the order in which they come.

    Deltas of a choice that come while an earlier one waits for the reader are joined with it: a reader that falls
    behind gets fewer, larger ones. A reader that is cancelled while it waits loses nothing. A generation has to be
    closed, which frees the slots of all unfinished choices.

    Attributes:
      sent: What the reader has taken.
    """

    def __init__(self, sent: SentResponse) -> None:
        self.sent = sent
        self._inbox: Mailbox[ChoiceStream | Exception] = Mailbox()
        self._choices: list[ChoiceStream] = []

    @classmethod
    def start(
        cls,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        metrics: Metrics,
        request_id: str,
        choices: Sequence[Choice],
        sent: SentResponse | None = None,
    ) -> "Generation":
        """Submits choices to the engine.

        Args:
          request_id: Id of all choices together.
          sent: Record of what the client receives; None makes one.
        """
        generation = cls(SentResponse.of(len(choices)) if sent is None else sent)
        for choice in choices:
            generation._start(engine, metrics, request_id, choice, ChoiceDecoder(choice, tokenizer))
        return generation

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Delta:
        """Returns the next delta; see `next_within`."""
        delta = await self.next_within(None)
        assert delta is not None
        return delta

    async def next_within(self, timeout_s: float | None) -> Delta | None:
        """Returns the next delta, or None after the timeout, which is the same in all calls; None waits forever.

        Raises:
          StopAsyncIteration: All choices have ended.
          ApiError: The request was aborted, or the client reads too slowly.
          Exception: Any error of a choice.
        """
        if not self._inbox and not any(choice.is_open for choice in self._choices):
            raise StopAsyncIteration
        item = await self._inbox.get(timeout_s)
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        delta = item.take()
        self.sent.num_tokens[delta.index] = delta.num_sent
        return delta

    def abort(self) -> int:
        """Ends the unfinished choices, and returns their number. The reader gets an `ApiError`."""
        unfinished = [choice for choice in self._choices if choice.is_open]
        for choice in unfinished:
            choice.close()
        if unfinished:
            self._inbox.put(request_aborted())
        return len(unfinished)

    def close(self) -> None:
        """Ends the unfinished choices."""
        self._inbox.close()
        for choice in self._choices:
            choice.close()

    def _start(
        self, engine: AsyncEngine, metrics: Metrics, request_id: str, choice: Choice, decoder: ChoiceDecoder
    ) -> None:
        request = choice.request(request_id)
        record = metrics.track_request(request)
        stream = ChoiceStream(decoder, record, self._inbox, partial(engine.abort, request.id))
        self._choices.append(stream)
        try:
            engine.submit(request, stream)
        except (EngineDeadError, ValueError) as error:
            stream.put(error)


async def collect(generation: Generation) -> list[Delta]:
    """Returns all choices whole, in order of their index, once they have ended."""
    choices: defaultdict[int, DeltaJoiner] = defaultdict(DeltaJoiner)
    async for delta in generation:
        choices[delta.index].add(delta)
    return [choices[index].take() for index in sorted(choices)]
