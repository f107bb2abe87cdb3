"""What is asked of a server that speaks OpenAI's API."""

import random
from collections.abc import Mapping
from typing import Any

import orjson

from ...client.http_client import Answer, ClientError, HttpClient
from ...terminal.failure import CommandError
from ..prompts import draw_text, draw_token_ids
from .options import Options
from .stream_recorder import http_failure


def request_body(options: Options, model: str, chance: random.Random) -> Mapping[str, Any]:
    """What one request asks for."""
    length, max_tokens = options.input_len.draw(chance), options.output_len.draw(chance)
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
        return {**body, "messages": [{"role": "user", "content": draw_text(length, chance)}]}
    if options.prompt_text:
        return {**body, "prompt": draw_text(length, chance)}
    # Whoever takes ids gives them, too, so that tokens without text are seen.
    return {**body, "prompt": draw_token_ids(length, options.vocab_size, chance), "return_token_ids": True}


async def server_version(client: HttpClient) -> str | None:
    """What Roost and vLLM tell at /version; None where there is no such place."""
    try:
        answer = await client.get("/version")
    except ClientError as error:
        raise CommandError(f"the server cannot be reached: {error}; see --url") from None
    found = _json(answer)
    version = found.get("version") if isinstance(found, dict) else None
    return None if version is None else str(version)


async def first_model(client: HttpClient) -> str:
    """
    Raises:
      CommandError: the server does not tell of a model.
    """
    try:
        answer = await client.get("/v1/models")
        return str(_json(answer)["data"][0]["id"])
    except ClientError as error:
        raise CommandError(f"the server cannot be asked for its models: {error}; see --url") from None
    except (KeyError, IndexError, TypeError):
        reason = http_failure(answer) if answer.status != 200 else "it lists none"
        raise CommandError(f"the server does not tell its models ({reason}); name one with --model") from None


def _json(answer: Answer) -> Any:
    try:
        return orjson.loads(answer.body) if answer.status == 200 else {}
    except orjson.JSONDecodeError:
        return {}
