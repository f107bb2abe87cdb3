"""Request bodies that the benchmark sends."""

import random
from collections.abc import Mapping
from typing import Any

from ..workload import draw_text, draw_token_ids
from .options import ServeBenchOptions


def request_body(options: ServeBenchOptions, model: str, rng: random.Random) -> Mapping[str, Any]:
    """Returns the body of one request, with a random prompt and lengths."""
    length, max_tokens = options.input_len.draw(rng), options.output_len.draw(rng)
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.endpoint == "chat":
        return {**body, "messages": [{"role": "user", "content": draw_text(length, rng)}]}
    if options.prompt_text:
        return {**body, "prompt": draw_text(length, rng)}
    # Servers that accept token ids also return them, so that tokens without text are counted.
    return {**body, "prompt": draw_token_ids(length, options.vocab_size, rng), "return_token_ids": True}
