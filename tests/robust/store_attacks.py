"""Attacks on a server with `--store`: files, batches and background responses of one tenant beside those of another.

A part of the table of attacks.py. What an attack leaves behind is deleted by store_victim.py, but for responses, which
no list names: each attack deletes its own.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from attacker import (
    ANY,
    COMPLETIONS,
    CONVERSATIONS,
    LARGE,
    OK,
    REFUSED,
    RESPONSES,
    STOPS,
    TAKES,
    Attack,
    Attacker,
    Body,
    Reply,
    at_once,
    encoded,
    hold,
    stored_item,
    token_ids,
)

FILES, BATCHES = "/v1/files", "/v1/batches"

HEAVY_BYTES: Final = int(3.9 * 2**20)
"""Bytes of a heavy line, whose body may have 4 MiB."""

MAX_CONTAINERS: Final = 131_072
"""Maximum number of arrays and objects in a line."""

LATE: Final = 10**9
"""Number of an event that no log has."""

_NUM_REMOVED: Final = 16
"""Number of responses that are deleted at a time."""

_BOUNDARY: Final = "boundary-of-an-attack"

QUOTA: Final = frozenset({403})


# --- files and batches


def line(body: Body, number: int = 0) -> bytes:
    """Returns a line of an input file."""
    head = f'{{"custom_id":"{number}","method":"POST","url":"{COMPLETIONS}","body":'.encode()
    return head + encoded(body) + b"}\n"


def form(content: bytes) -> bytes:
    """Returns the body of an upload."""
    fields = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    fields += f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    return fields.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


async def upload(attacker: Attacker, content: bytes) -> str | None:
    """Returns the id of a new file; None if it was refused."""
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    return made(await attacker.post(FILES, form(content), content_type=kind))


async def create(attacker: Attacker, file_id: str, **more: Any) -> str | None:
    """Returns the id of a new batch; None if it was refused."""
    body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h", **more}
    return made(await attacker.post(BATCHES, body))


def made(reply: Reply) -> str | None:
    return str(reply.json["id"]) if reply.status == 200 else None


def batches_of(make: Callable[[], Sequence[bytes]], count: int = 2) -> Callable[[Attacker], Awaitable[None]]:
    """Returns an attack that uploads a file and runs a batch of it, again and again over several connections.

    Args:
      make: Returns the lines; called once, before the attack starts.
    """

    async def run(attacker: Attacker) -> None:
        content = b"".join(make())

        async def work() -> None:
            if (file_id := await upload(attacker, content)) is not None:
                await create(attacker, file_id)

        await hold(attacker, count, work)

    return run


def small_lines() -> Sequence[bytes]:
    return [line({"prompt": "The boat", "max_tokens": 4}, number) for number in range(2)]


async def small_batches(attacker: Attacker) -> None:
    """Uploads small files and runs batches of them in a loop, while everything is listed."""
    content = b"".join(small_lines())
    await attacker.begin()

    async def work() -> None:
        if (file_id := await upload(attacker, content)) is not None:
            await create(attacker, file_id)

    async def look() -> None:
        await attacker.send("GET", f"{FILES}?limit=10000")
        await attacker.send("GET", f"{BATCHES}?limit=100")

    async with asyncio.TaskGroup() as group:
        group.create_task(at_once(16, work))
        group.create_task(at_once(4, look))


def heavy_lines() -> Sequence[bytes]:
    """Returns lines that are as long as they may be: many empty arrays, half a million token ids, and a long text."""
    arrays = b"[" * 100 + b"[]" + b",[]" * (MAX_CONTAINERS - 110) + b"]" * 100
    filler = b"a" * (HEAVY_BYTES - len(arrays))
    nested = b'{"prompt":"a","max_tokens":1,"chat_template_kwargs":%b,"user":"%b"}' % (arrays, filler)
    ids = encoded({"prompt": token_ids(500_000), "max_tokens": 1})
    text = encoded({"prompt": "a" * HEAVY_BYTES, "max_tokens": 1})
    return [line(body, number) for number, body in enumerate((nested, ids, text))]


async def heavy_uploads(attacker: Attacker) -> None:
    """Uploads heavy lines and deletes them, again and again."""
    content = b"".join(heavy_lines())
    await attacker.begin()

    async def work() -> None:
        if (file_id := await upload(attacker, content)) is not None:
            await attacker.send("DELETE", f"{FILES}/{file_id}")

    await at_once(4, work)


def grammar_lines() -> Sequence[bytes]:
    """Returns 300 lines with a grammar each, which takes a fraction of a second to compile."""

    def body(number: int) -> Body:
        properties = {f"p{number}_{index}": {"type": "integer"} for index in range(600)}
        schema = {"name": "a", "schema": {"type": "object", "properties": properties}}
        return {"prompt": "a", "max_tokens": 64, "response_format": {"type": "json_schema", "json_schema": schema}}

    return [line(body(number), number) for number in range(300)]


def echoing_lines() -> Sequence[bytes]:
    """Returns lines whose answers are many times as long: prompts with log-probabilities of 20 tokens at each place."""
    body = {"echo": True, "logprobs": 20, "max_tokens": 1, "return_token_ids": True}
    return [line({"prompt": token_ids(3000, seed=number), **body}, number) for number in range(200)]


def long_text_lines() -> Sequence[bytes]:
    """Returns lines whose answers repeat a long prompt 32 times."""
    body = {"prompt": "the boat " * 20_000, "echo": True, "n": 32, "max_tokens": 1, "temperature": 1}
    return [line(body, number) for number in range(20)]


async def downloads(attacker: Attacker) -> None:
    """Downloads a file of 40 heavy lines over eight connections, every second time only in part."""
    filler = {"prompt": "a", "max_tokens": 1, "user": "a" * HEAVY_BYTES}
    file_id = await upload(attacker, b"".join(line(filler, number) for number in range(40)))
    if file_id is None:
        raise RuntimeError("the file to download was refused")
    await attacker.begin()
    turns, path = itertools.count(), f"{FILES}/{file_id}/content"

    async def work() -> None:
        leaves = next(turns) % 2
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3 if leaves else None):
                await attacker.send("GET", path)

    await at_once(8, work)


async def strange_batches(attacker: Attacker) -> None:
    """Sends metadata of megabytes, windows of years, and ids with strange characters."""
    file_id = await upload(attacker, b"".join(small_lines()))
    strange = ("file-%00", "file-%FF%FE", "file-' OR 1=1 --".replace(" ", "%20"), "file-" + "0" * 5000, "%2e%2e%2f")
    bodies: list[dict[str, Any]] = [
        {"metadata": {f"k{index}": "x" * 200_000 for index in range(16)}},
        {"metadata": {f"k{index}": "x" for index in range(100_000)}},
        {"completion_window": "9999d"},
        {"completion_window": "9" * 1_000_000 + "d"},
        *({"input_file_id": text} for text in ("\0", "\ud800", "file-" + "é" * 32, "x" * 3_000_000, " " * 37)),
    ]
    whole = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    posts = itertools.cycle([json.dumps({**whole, **body}).encode() for body in bodies])
    gets = itertools.cycle([f"{FILES}?after={text}" for text in strange] + [f"{BATCHES}?limit=1e9&order=up"])
    paths = itertools.cycle([f"{FILES}/{text}/content" for text in strange])
    await attacker.begin()

    async def work() -> None:
        await attacker.post(BATCHES, next(posts))
        await attacker.send("GET", next(gets))
        await attacker.send("GET", next(paths))

    await at_once(8, work)


# --- responses in the background


def background(num_tokens: int, **more: Any) -> Body:
    body = {"input": "Tell me a story.", "background": True, "ignore_eos": True, "max_output_tokens": num_tokens}
    return {**body, "temperature": 1, **more}


async def remove(attacker: Attacker, response_id: str) -> None:
    await attacker.send("POST", f"{RESPONSES}/{response_id}/cancel")
    await attacker.send("DELETE", f"{RESPONSES}/{response_id}")


async def followers(attacker: Attacker) -> None:
    """Follows a long response over 150 connections, each from its first event, and from one that never comes."""
    response_id = await streamed(attacker, background(20_000, stream=True))
    await attacker.begin()
    turns, path = itertools.count(), f"{RESPONSES}/{response_id}?stream=true"

    async def work() -> None:
        place = LATE if next(turns) % 10 == 0 else -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await attacker.send("GET", f"{path}&starting_after={place}")

    try:
        await at_once(150, work)
    finally:
        await asyncio.shield(remove(attacker, response_id))


async def streamed(attacker: Attacker, body: Body) -> str:
    """Begins a streamed response, leaves its stream, and returns its id."""
    reader, writer = await attacker.open()
    content = encoded(body)
    writer.write(attacker.head("POST", RESPONSES, len(content)) + content)
    await reader.readuntil(b'"resp_')
    response_id = f"resp_{(await reader.readuntil(b'"'))[:-1].decode()}"
    writer.transport.abort()
    return response_id


class Begun:
    """Background responses of an attack, which are all deleted at its end, those that are just begun included."""

    def __init__(self, attacker: Attacker) -> None:
        self._attacker = attacker
        self._ids = set[str]()
        self._tasks = set[asyncio.Task[str | None]]()

    async def begin(self, num_tokens: int) -> str | None:
        """Returns the id of a new response; None if it was refused."""
        task = asyncio.create_task(self._begin(num_tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def remove(self, response_id: str) -> None:
        await remove(self._attacker, response_id)
        self._ids.discard(response_id)

    async def remove_all(self) -> None:
        """Deletes all responses, some at a time."""
        await asyncio.gather(*self._tasks)
        left = iter(list(self._ids))

        async def remove_some() -> None:
            for response_id in left:
                await self.remove(response_id)

        await asyncio.gather(*(remove_some() for _ in range(_NUM_REMOVED)))

    async def _begin(self, num_tokens: int) -> str | None:
        response_id = made(await self._attacker.post(RESPONSES, background(num_tokens)))
        if response_id is not None:
            self._ids.add(response_id)
        return response_id


async def cancelled_responses(attacker: Attacker) -> None:
    """Begins durable responses, and cancels and deletes each at once."""
    await attacker.begin()
    begun = Begun(attacker)

    async def work() -> None:
        if (response_id := await begun.begin(2000)) is not None:
            await begun.remove(response_id)

    try:
        await at_once(32, work)
    finally:
        await asyncio.shield(begun.remove_all())


async def endless_responses(attacker: Attacker) -> None:
    """Begins endless durable responses, more than there are slots and places to wait, and cancels all at the end."""
    await attacker.begin()
    begun = Begun(attacker)
    try:
        await at_once(8, lambda: begun.begin(100_000))
    finally:
        await asyncio.shield(begun.remove_all())


# --- conversations


async def copied_items(attacker: Attacker) -> None:
    """Stores conversations of 20 references each: some are megabytes, and some are too much."""
    items = [await stored_item(attacker, num_bytes) for num_bytes in (190_000, 190_000, 3_900_000)]
    bodies = itertools.cycle([encoded({"items": [item] * 20}) for item in items])
    await attacker.begin()
    await at_once(12, lambda: attacker.post(CONVERSATIONS, next(bodies)))


# --- the table

STORE_ATTACKS: Final[Sequence[Attack]] = (
    Attack("small batches without end", STOPS, small_batches, ANY | QUOTA, needs_store=True),
    Attack("uploads of heavy lines", TAKES, heavy_uploads, LARGE | QUOTA, needs_store=True),
    Attack("batches of heavy lines", STOPS, batches_of(heavy_lines), LARGE | QUOTA, needs_store=True),
    Attack("a grammar for each of 300 lines", STOPS, batches_of(grammar_lines), LARGE | QUOTA, needs_store=True),
    Attack("lines with echoed log-probabilities", TAKES, batches_of(echoing_lines), LARGE | QUOTA, needs_store=True),
    Attack("lines that repeat long prompts", TAKES, batches_of(long_text_lines), LARGE | QUOTA, needs_store=True),
    Attack("downloads of heavy lines", STOPS, downloads, OK | {429, 503}, needs_store=True),
    Attack("150 followers of a response", STOPS, followers, OK | REFUSED | {429}, needs_store=True),
    Attack("responses that are cancelled at once", STOPS, cancelled_responses, ANY | {404}, needs_store=True),
    Attack("responses in every slot", STOPS, endless_responses, ANY | {404}, needs_store=True, fills_slots=True),
    Attack("conversations of 20 references", STOPS, copied_items, ANY | {404}, needs_store=True),
    Attack("strange ids, windows and metadata", TAKES, strange_batches, REFUSED | {404, 431}, needs_store=True),
)
