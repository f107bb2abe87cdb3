"""What llguidance accepts for a schema."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "coerce_one_of": True}


class Bytes:
    """Vocabulary of all bytes for llguidance."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))


def named(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Returns cases of `pytest.mark.parametrize` whose ids come first."""
    return [pytest.param(*values, id=name) for name, *values in cases]


def opened(schema: Any) -> Any:
    """Returns a schema whose objects say that they allow other properties, which is JSON Schema's default."""
    if isinstance(schema, list):
        return list(map(opened, schema))
    if not isinstance(schema, dict):
        return schema
    says = {"additionalProperties": True} if {"properties", "if"} & schema.keys() else {}
    return says | {key: opened(value) for key, value in schema.items()}


def orders(value: Any) -> Iterator[Any]:
    """Yields a value with its properties in every order, since the grammar requires the schema's order."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for values in itertools.product(*(list(orders(value[name])) for name in names)):
                yield dict(zip(names, values, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*(list(orders(item)) for item in value)))
    else:
        yield value


def accepts(schema: Any, value: Any) -> bool:
    """Returns whether llguidance accepts a value with its properties in their order."""
    matcher = matcher_of(schema)
    return matcher is not None and _takes(matcher, value)


def allows(schema: Any, value: Any) -> bool:
    """Returns whether llguidance accepts a value in any order of properties."""
    matcher = matcher_of(schema)
    return matcher is not None and any(_takes(matcher, each) for each in orders(value))


def random_text(schema: Any, choose: random.Random, max_bytes: int = 500) -> str:
    """Returns a random text of a schema's grammar, which closes strings soon and fails where nothing may come next."""
    matcher, text = matcher_of(schema), bytearray()
    assert matcher is not None
    while not matcher.is_stopped():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(257) if mask >> byte & 1]
        assert not matcher.is_error(), (bytes(text), matcher.get_error())
        byte = choose.choice([ord('"')] if ord('"') in allowed and choose.random() < 0.7 else allowed)
        matcher.consume_token(byte)
        text += bytes([byte]) if byte < 256 else b""
        assert len(text) < max_bytes, bytes(text)
    assert matcher.is_accepting(), bytes(text)
    return text.decode()


def matcher_of(schema: Any) -> LLMatcher | None:
    """Returns a matcher at the start of a schema's grammar; None if no value fits the schema."""
    if schema is None:
        return None
    source = "start: %json " + json.dumps({**schema, "x-guidance": STYLE}) + "\n"
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    if matcher.is_error():
        assert "nsatisfiable" in matcher.get_error(), (matcher.get_error(), schema)
        return None
    return matcher


def _takes(matcher: LLMatcher, value: Any) -> bool:
    data, trial = json.dumps(value, ensure_ascii=False).encode(), matcher.deep_copy()
    return trial.try_consume_tokens(list(data)) == len(data) and bool(trial.is_accepting())
