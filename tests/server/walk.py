"""Random walks through a constraint: any allowed token is taken, and end tokens are preferred."""

import functools
import random

import numpy as np
from roost.engine.types.output_constraint import Constraint, words_of_mask
from roost.server.text.tokenizer import Tokenizer

_CLOSERS = frozenset(b'"}],: 0123456789')


class TooLongError(Exception):
    """The text has become too long."""


@functools.cache
def _kinds(tokenizer: Tokenizer) -> tuple[frozenset[int], frozenset[int]]:
    """Returns ids without text, and ids that close something."""
    texts = {token_id: tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)}
    closers = (token_id for token_id, data in texts.items() if data and set(data) <= _CLOSERS)
    return frozenset(token_id for token_id, data in texts.items() if not data), frozenset(closers)


def allowed_ids(constraint: Constraint, vocab_size: int) -> list[int]:
    """Returns the allowed tokens, filled into a mask that was full of ones."""
    mask = np.full(words_of_mask(vocab_size), 2**32 - 1, np.uint32)
    constraint.fill_mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any(), "a bit beyond the vocabulary is set"
    ids: list[int] = np.flatnonzero(bits[:vocab_size]).tolist()
    assert ids, "nothing may come next"
    return ids


def walk(
    constraint: Constraint,
    tokenizer: Tokenizer,
    end_token_ids: tuple[int, ...],
    choose: random.Random,
    max_tokens: int = 150,
) -> str:
    """Returns a random text of the constraint.

    From a third of `max_tokens` on, tokens that close something are preferred.

    Raises:
      TooLongError: The text needs more than `max_tokens`.
    """
    data, (textless, closers) = b"", _kinds(tokenizer)
    for step in range(max_tokens):
        ids = allowed_ids(constraint, tokenizer.vocab_size)
        ends = [token_id for token_id in ids if token_id in end_token_ids]
        assert len(ends) in (0, len(end_token_ids)), "some end tokens are allowed, and others not"
        hurry = step > max_tokens // 3
        if ends and (len(ids) == len(ends) or hurry or choose.random() < 0.2):
            constraint.advance(choose.choice(ends))
            return data.decode()
        texts = [token_id for token_id in ids if token_id not in end_token_ids]
        assert textless.isdisjoint(texts), "a token without text is allowed"
        closing = [token_id for token_id in texts if token_id in closers]
        token_id = choose.choice(closing if closing and (hurry or choose.random() < 0.5) else texts)
        constraint.advance(token_id)
        data += tokenizer.token_bytes(token_id)
    raise TooLongError(data.decode(errors="replace"))


def spell(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Returns whether a text is allowed token by token, as the tokenizer encodes it, and may end there."""
    for token_id in tokenizer.encode(text, control_tokens=False):
        if token_id not in allowed_ids(constraint, tokenizer.vocab_size):
            return False
        constraint.advance(token_id)
    return tokenizer.end_token_ids[0] in allowed_ids(constraint, tokenizer.vocab_size)
