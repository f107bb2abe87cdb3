"""The victim's batches on a server with `--store`, and what an attacker leaves in its database."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

NUM_LINES: Final = 20
MAX_BATCH_S: Final = 2.0
"""Seconds that a batch of the victim may take in any case."""

URL: Final = "/v1/chat/completions"

FINISHED: Final = ("stop", "length")
"""Reasons with which requests end that were computed to their end."""

_GIVE_UP_S: Final = 60.0
_POLL_S: Final = 0.05
_NUM_CANCELLED: Final = 16
"""Number of batches that are cancelled at a time."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch of the victim.

    Attributes:
      seconds: Time from its upload to the last byte of its output.
      num_tokens: Tokens that the engine processed for anybody meanwhile.
    """

    seconds: float
    num_tokens: int


class StoreVictim:
    """Runs a batch of short lines, and knows the outputs of an idle server.

    Attributes:
      num_ended: Number of lines that have ended.

    Args:
      replicas: Clients with the victim's key, one for each replica; the first gets the requests.
      bodies: Bodies of requests, which the lines repeat in turn.
    """

    def __init__(self, replicas: Sequence[httpx.AsyncClient], bodies: Sequence[Mapping[str, Any]]) -> None:
        self.num_ended = 0
        self._client = replicas[0]
        self._replicas = replicas
        turns = zip(range(NUM_LINES), itertools.cycle(bodies), strict=False)
        self._input = b"".join(map(_line, *zip(*turns, strict=True)))
        self._outputs: Mapping[str, str] = {}

    async def learn(self) -> None:
        """Runs the batch once, and keeps its outputs."""
        self._outputs = await self._outputs_of(await self._ended())

    async def run(self) -> BatchRun:
        """Runs the batch.

        Raises:
          ValueError: It has another output than on an idle server, or does not end.
          httpx.HTTPError: A request failed.
        """
        num_tokens, began = await self._num_tokens(), time.perf_counter()
        outputs = await self._outputs_of(await self._ended())
        seconds = time.perf_counter() - began
        if outputs != self._outputs:
            raise ValueError("a batch has other outputs than on an idle server")
        return BatchRun(seconds, await self._num_tokens() - num_tokens)

    async def num_finished(self) -> int:
        """Returns how many requests of the victim the engines have run to their end."""
        return sum(
            [await metric(each, _requests_of("victim", reason)) for each in self._replicas for reason in FINISHED]
        )

    async def _ended(self) -> Mapping[str, Any]:
        """Uploads the lines, and returns their batch once it has ended."""
        form = {"files": {"file": ("in.jsonl", self._input)}, "data": {"purpose": "batch"}}
        file_id = (await self._call("POST", "/v1/files", **form))["id"]
        body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
        batch = await self._call("POST", "/v1/batches", json=body)
        give_up_at = time.monotonic() + _GIVE_UP_S
        while batch["status"] == "in_progress":
            if time.monotonic() > give_up_at:
                raise ValueError(f"a batch has not ended within {_GIVE_UP_S:.0f} s: {batch['request_counts']}")
            await asyncio.sleep(_POLL_S)
            batch = await self._call("GET", f"/v1/batches/{batch['id']}")
        return batch

    async def _outputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, str]:
        """Returns the texts of a batch by `custom_id`, and deletes its files."""
        if (counts := batch["request_counts"]) != {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}:
            raise ValueError(f"a batch ended with {counts}")
        response = await self._client.get(f"/v1/files/{batch['output_file_id']}/content")
        lines = [json.loads(line) for line in response.raise_for_status().text.splitlines()]
        self.num_ended += len(lines)
        for file_id in (batch["input_file_id"], batch["output_file_id"]):
            await self._call("DELETE", f"/v1/files/{file_id}")
        return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}

    async def _num_tokens(self) -> int:
        names = ("roost_prompt_tokens_total", "roost_generation_tokens_total")
        return sum([await metric(each, name) for each in self._replicas for name in names])

    async def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        response = await self._client.request(method, path, **more)
        if response.status_code != 200:
            raise ValueError(f"{method} {path.split('/')[2]} of the victim got {response.text[:150]}")
        return response.json()


def _line(number: int, body: Mapping[str, Any]) -> bytes:
    return json.dumps({"custom_id": f"{number}", "method": "POST", "url": URL, "body": body}).encode() + b"\n"


def _requests_of(tenant: str, reason: str) -> str:
    return f'roost_tenant_requests_total{{reason="{reason}",tenant="{tenant}"}}'


async def metric(client: httpx.AsyncClient, name: str) -> int:
    """Returns a metric; 0 if the server does not have it."""
    text = (await client.get("/metrics")).raise_for_status().text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return 0 if found is None else int(float(found[1]))


async def cancel_batches(client: httpx.AsyncClient) -> None:
    """Cancels all batches of a tenant that are in progress."""
    turns = asyncio.Semaphore(_NUM_CANCELLED)

    async def cancel(batch_id: str) -> None:
        async with turns:
            (await client.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()

    after = ""
    while True:
        page = (await client.get(f"/v1/batches?limit=100{after}")).raise_for_status().json()
        await asyncio.gather(*(cancel(each["id"]) for each in page["data"] if each["status"] == "in_progress"))
        if not page["has_more"]:
            return
        after = f"&after={page['last_id']}"
