"""Deltas as JSON, from which another replica restores the state of a response."""

from typing import Any

import orjson

from ....engine import TokenLogprobs
from ...constraints.tools import CallPiece
from ...generation.admission import Admission
from ...generation.delta import Delta


def pack_delta(delta: Delta) -> bytes:
    """Returns the JSON of a delta that is not the last of its choice."""
    calls = [[piece.index, piece.id, piece.name, piece.arguments] for piece in delta.calls]
    logprobs = [[entry.logprob, entry.top, entry.named] for entry in delta.logprobs]
    fields = {
        "text": delta.text,
        "calls": calls,
        "token_ids": delta.token_ids,
        "logprobs": logprobs,
        "num_cached": delta.num_cached,
        "num_sent": delta.num_sent,
    }
    return orjson.dumps({name: value for name, value in fields.items() if value})


def unpack_delta(own: Admission, packed: bytes) -> Delta:
    """Returns the delta from the result of `pack_delta`."""
    fields: dict[str, Any] = own.parse_stored(packed)
    return Delta(
        0,
        text=fields.get("text", ""),
        calls=tuple(CallPiece(*piece) for piece in fields.get("calls", ())),
        token_ids=tuple(fields.get("token_ids", ())),
        logprobs=tuple(
            TokenLogprobs(own, tuple((t, p) for t, p in top), tuple((t, p) for t, p in named))
            for own, top, named in fields.get("logprobs", ())
        ),
        num_cached=fields.get("num_cached", 0),
        num_sent=fields.get("num_sent", 0),
    )
