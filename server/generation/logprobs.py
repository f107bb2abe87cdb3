"""Log-probabilities in OpenAI's shapes (objects for chat and responses, lists for completions) and by token id."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypedDict

from ...engine import TokenLogprobs
from ..text.tokenizer import Tokenizer

_LEAST: Final = -9999.0
"""Replacement for minus infinity, which JSON does not have."""


class TopLogprob(TypedDict):
    """An alternative of a chat's token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A chat's token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's choice."""

    content: list[ChatTokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Log-probabilities of a completion's choice, as lists of equal length.

    The entries of a prompt's first token are null, since no token precedes it.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TokenNames:
    """Names of tokens in log-probabilities.

    Args:
      by_id: Whether a token is named by its id, such as `token_id:5`, rather than by its text.
    """

    def __init__(self, tokenizer: Tokenizer, *, by_id: bool = False) -> None:
        self.tokenizer = tokenizer
        self._by_id = by_id

    def __call__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._by_id else self.tokenizer.token_text(token_id)


def chat_logprobs(names: TokenNames, token_ids: Sequence[int], entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """Returns log-probabilities in the shape of chat completions."""
    content = [
        ChatTokenLogprob(
            **_top_logprob(names, token_id, entry.logprob),
            top_logprobs=[_top_logprob(names, *alternative) for alternative in alternatives(entry)],
        )
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]
    return ChatLogprobs(content=content, refusal=None)


def alternatives(entry: TokenLogprobs) -> list[tuple[int, float]]:
    """Returns the most likely tokens, best first, then the requested ids that are not among them."""
    return list(dict((*entry.top, *entry.named)).items())


class ResponseTopLogprob(TypedDict):
    """An alternative of a response's token."""

    token: str
    logprob: float
    bytes: list[int]


class ResponseTokenLogprob(ResponseTopLogprob):
    """A response's token with its alternatives."""

    top_logprobs: list[ResponseTopLogprob]


def response_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprobs]
) -> list[ResponseTokenLogprob]:
    """Returns log-probabilities in the shape of responses, in which control tokens have an empty list of bytes."""
    return [
        ResponseTokenLogprob(
            **_with_bytes(each), top_logprobs=[_with_bytes(alternative) for alternative in each["top_logprobs"]]
        )
        for each in chat_logprobs(TokenNames(tokenizer), token_ids, entries)["content"]
    ]


class IdLogprobs(TypedDict):
    """Log-probabilities by position.

    Attributes:
      own: Log-probability of each token; null if no token precedes it.
      top: [id, logprob] of the most likely tokens.
    """

    own: list[float | None]
    top: list[list[tuple[int, float]] | None]


def token_logprobs(entries: Sequence[TokenLogprobs | None]) -> IdLogprobs:
    """Returns log-probabilities by token id."""
    return IdLogprobs(
        own=[None if entry is None else max(entry.logprob, _LEAST) for entry in entries],
        top=[
            None if entry is None else [(token_id, max(logprob, _LEAST)) for token_id, logprob in alternatives(entry)]
            for entry in entries
        ],
    )


class PromptLogprob(TypedDict):
    """An entry in vLLM's shape. `rank` is null for a token that is not among the most likely ones."""

    logprob: float
    rank: int | None
    decoded_token: str


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], num_top: int
) -> list[dict[str, PromptLogprob] | None]:
    """Returns a prompt's log-probabilities by position and id; null for a token without a preceding one.

    Args:
      num_top: Number of most likely tokens at each position, to which the prompt's own token is added.
    """
    return [
        None if entry is None else _by_id(tokenizer, with_top(entry, num_top), token_id)
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]


def with_top(entry: TokenLogprobs, num_top: int) -> TokenLogprobs:
    """Returns the entry with at most this number of alternatives; the engine may have reported more."""
    return replace(entry, top=entry.top[:num_top])


def _by_id(tokenizer: Tokenizer, entry: TokenLogprobs, own_id: int) -> dict[str, PromptLogprob]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, start=1)}
    return {
        str(token_id): PromptLogprob(
            logprob=max(logprob, _LEAST), rank=ranks.get(token_id), decoded_token=tokenizer.token_text(token_id)
        )
        for token_id, logprob in {**dict(entry.top), own_id: entry.logprob}.items()
    }


def _with_bytes(entry: TopLogprob) -> ResponseTopLogprob:
    return ResponseTopLogprob(token=entry["token"], logprob=entry["logprob"], bytes=entry["bytes"] or [])


def _top_logprob(names: TokenNames, token_id: int, logprob: float) -> TopLogprob:
    data = names.tokenizer.token_bytes(token_id)
    return TopLogprob(
        token=names(token_id),
        logprob=max(logprob, _LEAST),
        bytes=list(data) if data else None,
    )


class CompletionLogprobsBuilder:
    """Builds the lists of one choice, piece by piece, and counts where each token begins in the text."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._tokenizer = names.tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def build(
        self,
        token_ids: Sequence[int],
        entries: Sequence[TokenLogprobs | None],
        pieces: Iterable[bytes] | None = None,
    ) -> CompletionLogprobs:
        """Returns the lists of the next tokens.

        Args:
          pieces: Bytes of a prompt's tokens in its text, if they differ from `token_bytes`; the text ends with them.
        """
        offsets = [self._advance(piece) for piece in pieces or map(self._tokenizer.token_bytes, token_ids)]
        if pieces is not None:
            self._offset += len(self._decoder.decode(b"", final=True))
        return CompletionLogprobs(
            tokens=[self._names(token_id) for token_id in token_ids],
            token_logprobs=[None if entry is None else max(entry.logprob, _LEAST) for entry in entries],
            top_logprobs=[self._top(*pair) for pair in zip(token_ids, entries, strict=True)],
            text_offset=offsets,
        )

    def _top(self, token_id: int, entry: TokenLogprobs | None) -> dict[str, float] | None:
        """Returns alternatives by text, with the token itself. Of several ids with the same text, the most likely is
        kept.
        """
        if entry is None:
            return None
        top: dict[str, float] = {}
        for alternative, logprob in (*alternatives(entry), (token_id, entry.logprob)):
            name = self._names(alternative)
            top[name] = max(logprob, top.get(name, _LEAST))
        return top

    def _advance(self, piece: bytes) -> int:
        """Returns the offset of a piece. A piece within a character has the character's offset."""
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def join_logprobs(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Returns the concatenated lists of both."""
    return CompletionLogprobs(
        tokens=first["tokens"] + second["tokens"],
        token_logprobs=first["token_logprobs"] + second["token_logprobs"],
        top_logprobs=first["top_logprobs"] + second["top_logprobs"],
        text_offset=first["text_offset"] + second["text_offset"],
    )
