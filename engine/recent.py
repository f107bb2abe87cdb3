"""What requests that have ended lately said, in case somebody wants to keep their state."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_TOKENS: Final = 2**20
MAX_TEXTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Text:
    """Prompt and answer of a request; and its cache salt and tenant."""

    token_ids: tuple[int, ...]
    salt: str = ""
    tenant: str = ""


class RecentTexts:
    """The newest; the oldest make room as soon as there are too many, or too many tokens in them."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self._tokens = 0

    def keep(self, request_id: str, text: Text) -> None:
        """Takes a text in, in place of an earlier one of the same id."""
        self._drop(request_id)
        self._texts[request_id] = text
        self._tokens += len(text.token_ids)
        while len(self._texts) > MAX_TEXTS or self._tokens > MAX_TOKENS:
            self._drop(next(iter(self._texts)))

    def get(self, request_id: str) -> Text | None:
        return self._texts.get(request_id)

    def _drop(self, request_id: str) -> None:
        text = self._texts.pop(request_id, None)
        if text is not None:
            self._tokens -= len(text.token_ids)
