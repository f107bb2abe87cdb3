"""Valid requests that try to harm other tenants: one table for neighbours.py and tests/robust/test_neighbours.py.

    python tests/robust/attacks.py

As a program this is the attacker. It reads one JSON line per attack, `{"name", "host", "port", "key", "max_seconds"}`,
prepares the attack and prints `ready`. The next line starts the attack, the one after it ends it. The program then
prints the results of its requests as one JSON line. It is a separate process with low priority, so that its work does
not count as the server's. Every attack is bounded: after `max_seconds` at the latest the attacker closes all
connections.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from attacker import (
    ANY,
    BUSY,
    CHAT,
    COMPLETIONS,
    ENDLESS,
    ENDS,
    GENERATE,
    IMPORT,
    LARGE,
    MAX_BODY,
    PAUSE_S,
    REFUSED,
    RESPONSES,
    STATES,
    STOPS,
    TAKES,
    Attack,
    Attacker,
    Body,
    at_once,
    encoded,
    hold,
    posting,
    stored_item,
    token_ids,
)
from store_attacks import STORE_ATTACKS

type Change = Callable[[dict[str, Any], dict[str, str]], None]
"""Changes the arrays and the metadata of a state file in place."""


# --- states


async def saved_file(attacker: Attacker, num_tokens: int = 130) -> bytes:
    """Returns an own state as a file."""
    body = {"prompt": token_ids(num_tokens), "max_tokens": 4, "ignore_eos": True}
    answer = (await attacker.post(COMPLETIONS, body)).json
    state = (await attacker.post(STATES, {"request_id": answer["id"]})).json["id"]
    file = (await attacker.send("GET", f"{STATES}/{state}/export")).body
    await attacker.send("DELETE", f"{STATES}/{state}")
    return file


def altered(file: bytes, change: Change) -> bytes:
    """Returns a changed state file with a correct digest."""
    from roost.engine.types.snapshot import pack, unpack

    arrays, facts = unpack(file)
    held = {name: np.array(array) for name, array in arrays.items()}
    change(held, facts)
    facts.pop("format", None)
    facts.pop("signed", None)
    return pack(held, facts)


def importing(*changes: Change) -> Callable[[Attacker], Awaitable[None]]:
    """Returns an attack that imports changed states, and continues from accepted ones."""

    async def run(attacker: Attacker) -> None:
        file = await saved_file(attacker)
        files = [altered(file, change) for change in changes]
        await attacker.begin()
        for _ in range(2):
            for each in files:
                await go_on(attacker, each)

    return run


async def go_on(attacker: Attacker, file: bytes) -> None:
    reply = await attacker.post(IMPORT, file)
    if reply.status != 200:
        return
    for num_choices in (1, 8):
        body = {"prompt": [20, 21], "from_state": reply.json["id"], "n": num_choices, "max_tokens": 4}
        await attacker.post(COMPLETIONS, body)
    await attacker.send("DELETE", f"{STATES}/{reply.json['id']}")


def as_floats(arrays: dict[str, Any], _: dict[str, str]) -> None:
    arrays["tokens"] = arrays["tokens"].astype(np.float32)


def filled(name: str, value: float) -> Change:
    def fill(arrays: dict[str, Any], _: dict[str, str]) -> None:
        arrays[name] = np.full_like(arrays[name], value)

    return fill


def fact(name: str, value: str) -> Change:
    def put(_: dict[str, Any], facts: dict[str, str]) -> None:
        facts[name] = value

    return put


def only_tokens(count: int) -> Change:
    def replace(arrays: dict[str, Any], facts: dict[str, str]) -> None:
        arrays.clear()
        arrays["tokens"] = np.array(token_ids(count), np.int32)
        facts["length"] = "0"

    return replace


async def import_many(attacker: Attacker) -> None:
    """Keeps states of a million tokens each."""
    file = altered(await saved_file(attacker), only_tokens(2**20 - 1000))
    await attacker.begin()
    for _ in range(40):
        await attacker.post(IMPORT, file)
        await attacker.send("GET", STATES)
    for _ in range(20):
        await attacker.send("GET", STATES)
        await asyncio.sleep(PAUSE_S)
    for state in (await attacker.send("GET", STATES)).json["data"]:
        await attacker.send("DELETE", f"{STATES}/{state['id']}")


async def go_on_from_much(attacker: Attacker) -> None:
    """A state without a snapshot costs as much as its whole token history."""
    file = altered(await saved_file(attacker), only_tokens(300_000))
    await attacker.begin()
    reply = await attacker.post(IMPORT, file)
    if reply.status != 200:
        return
    body = {"prompt": [20, 21], "from_state": reply.json["id"], "max_tokens": 1}

    async def work() -> None:
        await attacker.hang_up(COMPLETIONS, body, 2)

    try:
        await at_once(4, work)
    finally:
        await asyncio.shield(attacker.send("DELETE", f"{STATES}/{reply.json['id']}"))


async def import_slowly(attacker: Attacker) -> None:
    file = await saved_file(attacker)
    attacker.statuses.clear()
    await hold(attacker, 8, lambda: attacker.trickle(IMPORT, file[:100], len(file)))


async def save_again_and_again(attacker: Attacker) -> None:
    """Saves a long sequence 16 times at once while it is generated."""
    body = {"prompt": token_ids(100_000), "max_tokens": 1, "ignore_eos": True}
    answer = (await attacker.post(COMPLETIONS, body)).json
    await attacker.begin()

    async def save() -> None:
        reply = await attacker.post(STATES, {"request_id": answer["id"]})
        if reply.status == 200:
            await attacker.send("DELETE", f"{STATES}/{reply.json['id']}")

    await at_once(16, save)


# --- grammars


def escaped_references() -> Body:
    """Returns a chain of 6,000 definitions, whose references a search for `$ref` does not find."""
    chain = ", ".join(f'"d{i}": {{"\\u0024ref": "#/$defs/d{i + 1}"}}' for i in range(6000))
    schema = f'{{"$defs": {{{chain}, "d6000": {{"type": "integer"}}}}, "\\u0024ref": "#/$defs/d0"}}'
    return {"prompt": "a", "max_tokens": 4, "grammar": f"start: %json {schema}\n"}


def chained_rules(separator: str) -> Callable[[], Body]:
    """Returns a chain of 6,000 rules of a Lark grammar."""

    def body() -> Body:
        rules = [f"a{i}: a{i + 1}" for i in range(6000)]
        grammar = separator.join(["start: a0", *rules, 'a6000: "a"', ""])
        return {"prompt": "a", "max_tokens": 4, "grammar": grammar}

    return body


def nested_grammars() -> Body:
    """Returns grammars nested 400 deep."""
    grammar = 'start: "a"'
    for _ in range(400):
        grammar = f"start: %lark {{\n{grammar}\n}}"
    return {"prompt": "a", "max_tokens": 4, "grammar": grammar}


def nested_json_text() -> Body:
    """Returns a schema 5,000 levels deep inside of a grammar's text, which the bound on bodies does not reach."""
    schema = '{"type":"array","items":' * 5_000 + "{}" + "}" * 5_000
    return {"prompt": "a", "max_tokens": 4, "grammar": f"start: %json {schema}\n"}


def nested_regex() -> Body:
    return {"prompt": "a", "max_tokens": 4, "regex": "(" * 8000 + "a" + ")" * 8000}


def nested_quantifiers() -> Body:
    pattern = "a"
    for _ in range(4000):
        pattern = f"({pattern})?"
    return {"prompt": "a", "max_tokens": 4, "regex": pattern}


def large_schema(seed: int) -> Body:
    """Returns a schema that takes seconds to compile: all properties are optional, so any may follow any."""
    schema = {"type": "object", "properties": {f"p{seed}_{i}": {"type": "integer"} for i in range(6000)}}
    return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 64, "json_schema": schema}


async def leave_grammars(attacker: Attacker) -> None:
    """Sends 24 large schemas, whose clients disconnect while they are compiled or wait."""
    bodies = [encoded(large_schema(seed)) for seed in range(24)]
    await attacker.begin()
    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(attacker.hang_up(CHAT, body, 0.5))
    number = itertools.count(len(bodies))
    await at_once(4, lambda: attacker.hang_up(CHAT, large_schema(next(number)), 0.5))


def ambiguous_grammar() -> Body:
    """Returns a grammar whose parser has more work for each further token."""
    grammar = 'start: s{100}\ns: "a" | "b" | s s | s s s\n'
    return {"prompt": "a", "max_tokens": 2000, "n": 8, "grammar": grammar}


def counted_regex() -> Body:
    """Returns a grammar where any two tokens lead to a state of their own."""
    return {"prompt": "a", "max_tokens": 2000, "n": 8, "regex": "(.{0,300}a.{0,300}b){100}"}


def states_explosion() -> Body:
    """Returns a grammar whose full automaton has 2^24 states."""
    return {"prompt": "a", "max_tokens": 2000, "n": 8, "regex": "([a-z ]*a[a-z ]{24}){50}"}


# --- load on the event loop


def many_stop_strings() -> Body:
    stop = [f"{i:02}" + "ab" * 2040 for i in range(64)]
    return {"prompt": "a", "n": 128, "max_tokens": 1, "stop": stop}


def many_bad_words() -> Body:
    words = [f"{i:03} " + "ab " * 1364 for i in range(128)]
    return {"prompt": "a", "n": 128, "max_tokens": 16, "bad_words": words}


def repeated_ids() -> Body:
    ids = [8 + i % 2000 for i in range(700_000)]
    return {"prompt": "a", "n": 8, "max_tokens": 500, "ignore_eos": True, "allowed_token_ids": ids}


def many_biases() -> Body:
    body = {"prompt": "a", "n": 32, "max_tokens": 500, "ignore_eos": True, "repetition_penalty": 1.5}
    return {**body, "logit_bias": {str(8 + i): 1.5 for i in range(300)}, "logprobs": 20, "stream": True}


def echoes() -> Body:
    return {"prompt": "the boat " * 100_000, "echo": True, "n": 128, "max_tokens": 1, "temperature": 1}


def echoed_ids() -> Body:
    return {"prompt": token_ids(60_000), "echo": True, "logprobs": 20, "max_tokens": 1, "return_token_ids": True}


def prompt_logprobs() -> Body:
    return {"token_ids": token_ids(60_000), "prompt_logprobs": 20, "max_tokens": 1}


def million_prompts() -> Body:
    return {"prompt": ["a"] * 1_000_000}


def million_prompts_to_run() -> Body:
    return {"prompt": ["a"] * 1_000_000, "max_tokens": 1}


def truncated_text() -> Body:
    """Tokenizes a text of 4 MB, of which eight tokens are used."""
    return {"prompt": "the boat " * 440_000, "truncate_prompt_tokens": 8, "max_tokens": 1}


def many_spaces() -> Body:
    return {"prompt": "▁" * 1_300_000}


def many_ids() -> Body:
    return {"tokens": token_ids(800_000)}


def many_messages() -> Body:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(16_383)]}


def unknown_fields() -> Body:
    return {"prompt": "a", "max_tokens": 1, **{f"unknown field {i}": i for i in range(140_000)}}


def long_mistake() -> Body:
    """Provokes an error message that would be as large as its value."""
    return {"prompt": "a", "response_format": {"type": "x" * 3_900_000}}


def nested_tools() -> Body:
    parameters = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(700)}}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(120)]
    return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "tools": tools}


# --- load on the engine and its slots


def long_prompt() -> Body:
    return {"token_ids": token_ids(200_000), "max_tokens": 1}


def unknown_prompt() -> Body:
    return {"token_ids": token_ids(600_000), "max_tokens": 1}


def forked_prompt() -> Body:
    return {"token_ids": token_ids(50_000), "n": 128, "max_tokens": 2}


def endless() -> Body:
    return {"prompt": "The boat", **ENDLESS}


def endless_choices() -> Body:
    return {"prompt": "The boat", "n": 128, **ENDLESS}


async def ask_and_leave(attacker: Attacker) -> None:
    """Sends requests whose clients disconnect at once: each takes a slot for a moment."""
    body = encoded({"prompt": token_ids(5000), "n": 4, **ENDLESS})
    await attacker.begin()
    await at_once(24, lambda: attacker.hang_up(COMPLETIONS, body, 0.05))


async def read_no_streams(attacker: Attacker) -> None:
    """Opens streams with large output, and reads nothing."""
    body = encoded({"prompt": "The boat", "n": 8, "logprobs": 20, "return_token_ids": True, **ENDLESS})
    await hold(attacker, 8, lambda: attacker.read_nothing(COMPLETIONS, body))


async def salts(attacker: Attacker) -> None:
    """Sends short prompts with their own salts: each is a root of the prefix cache."""
    await attacker.begin()
    turns = itertools.count()

    async def work() -> None:
        ids = token_ids(70, seed=next(turns))
        await attacker.post(GENERATE, {"token_ids": ids, "max_tokens": 1, "cache_salt": attacker.salt})

    await at_once(16, work)


async def one_id(attacker: Attacker) -> None:
    """Sends requests that share one request id, while it is aborted."""
    body = {"prompt": "The boat", "n": 2, **ENDLESS}
    await attacker.begin()
    request_id = f"same-{attacker.salt}"

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(attacker.hang_up(COMPLETIONS, body, 0.3))
            group.create_task(attacker.send("POST", COMPLETIONS, {"prompt": "a"}, x_request_id=request_id))
            group.create_task(attacker.post("/abort_request", {"request_id": request_id}))

    await at_once(8, work)


# --- memory


def tool_schemas() -> Body:
    """Sends properties, each of which becomes several Python objects."""
    properties = {f"p{i}": {"type": "integer"} for i in range(90_000)}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": properties}}
    return {"input": "a", "max_output_tokens": 1, "tool_choice": "none", "tools": [tool]}


def large_metadata() -> Body:
    return {"input": "a", "max_output_tokens": 1, "metadata": {f"k{i}": "x" * 200_000 for i in range(16)}}


def empty_arrays() -> Body:
    """Sends values, each of which takes thirty times its three bytes once parsed."""
    return b'{"prompt": "a", "max_tokens": 1, "chat_template_kwargs": [' + b"[]," * 1_390_000 + b"[]]}"


async def empty_arrays_in_streams(attacker: Attacker) -> None:
    """Keeps a parsed body for as long as a stream."""
    arrays = b"[]," * 1_390_000
    body = b'{"prompt": "a", "max_tokens": 1000000, "ignore_eos": true, "stream": true, "user": ['
    body += arrays + b"[]]}"
    await hold(attacker, 33, lambda: attacker.post(COMPLETIONS, body))


async def large_slow_streams(attacker: Attacker) -> None:
    """Opens endless streams, each with a body of 4 MiB: one more than there is room for."""
    body = encoded({"prompt": "The boat", "user": "x" * (MAX_BODY - 200), **ENDLESS}).ljust(MAX_BODY)
    await hold(attacker, 33, lambda: attacker.post(COMPLETIONS, body))


async def slow_bodies(attacker: Attacker) -> None:
    """Sends 33 bodies of 4 MiB, one more than there is room for, whose last 3 bytes come slowly."""
    content = b'{"prompt": "'.ljust(MAX_BODY - 3, b"a")
    await hold(attacker, 33, lambda: attacker.trickle(COMPLETIONS, content, MAX_BODY))


async def slow_heads(attacker: Attacker) -> None:
    """Opens 300 connections that never end their headers."""

    async def half_a_head() -> None:
        _, writer = await attacker.open()
        try:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-long: ")
            attacker.sent.put_nowait(None)
            while True:
                writer.write(b"a" * 100)
                await asyncio.sleep(1)
        except OSError:
            attacker.statuses[0] += 1
        finally:
            writer.transport.abort()

    await hold(attacker, 300, half_a_head)


async def pipeline(attacker: Attacker) -> None:
    """Sends thousands of requests on one connection, and reads no response."""
    one = f"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {attacker.key}\r\n\r\n".encode()

    async def flood() -> None:
        _, writer = await attacker.open()
        try:
            writer.write(one * 5000)
            await asyncio.wait_for(writer.drain(), 5)
            await asyncio.sleep(3600)
        except (OSError, TimeoutError):
            attacker.statuses[0] += 1
        finally:
            writer.transport.abort()

    await attacker.begin()
    await at_once(4, flood)


def packed_messages(count: int) -> Callable[[], Body]:
    """Returns a maker of a body whose compaction item stands for so many messages."""

    def make() -> Body:
        items = json.dumps([{"role": "user", "content": "hi"}] * count, separators=(",", ":"))
        content = b64encode(items.encode()).decode()
        return {"input": [{"type": "compaction", "encrypted_content": f"roost1.{content}"}]}

    return make


async def references(attacker: Attacker) -> None:
    """Names an item of a megabyte a thousand times, and as often as is allowed."""
    item = await stored_item(attacker, 1_000_000)
    bodies = itertools.cycle([encoded({"input": [item] * count}) for count in (1000, 1000, 1000, 4)])
    await attacker.begin()
    await at_once(12, lambda: attacker.post(f"{RESPONSES}/input_tokens", next(bodies)))


async def conversation(attacker: Attacker) -> None:
    """Extends a conversation by a megabyte with each stored response."""
    await attacker.begin()
    previous = None
    for number in range(40):
        items = [{"role": "user", "content": f"{number} " + "a" * 60_000} for _ in range(16)]
        body = {"input": items, "max_output_tokens": 1, "truncation": "auto", "previous_response_id": previous}
        reply = await attacker.post(RESPONSES, body)
        previous = reply.json["id"] if reply.status == 200 else None
        await asyncio.sleep(PAUSE_S)


async def background_work(attacker: Attacker) -> None:
    """Stores streams whose events are kept and never read."""
    body = {"input": "Tell me a story.", "background": True, "stream": True, "ignore_eos": True}
    logprobs = {"include": ["message.output_text.logprobs"], "top_logprobs": 20, "max_output_tokens": 100_000}
    await attacker.begin()
    ids = list[str]()

    async def begin() -> None:
        reply = await attacker.post(RESPONSES, {**body, **logprobs, "stream": False})
        if reply.status == 200:
            ids.append(reply.json["id"])

    try:
        for _ in range(60):
            await begin()
            await asyncio.sleep(PAUSE_S)
        await asyncio.Event().wait()
    finally:
        await asyncio.shield(_cancel_all(attacker, ids))


async def _cancel_all(attacker: Attacker, ids: Sequence[str]) -> None:
    for response_id in ids:
        await attacker.send("POST", f"{RESPONSES}/{response_id}/cancel")
        await attacker.send("DELETE", f"{RESPONSES}/{response_id}")


# --- the table

ATTACKS: Final[Sequence[Attack]] = (
    Attack("state with float tokens", "1", importing(as_floats), REFUSED | BUSY),
    Attack(
        "state of NaN or Inf",
        "2",
        importing(*(filled(name, value) for name in ("h", "conv", "window") for value in (np.nan, np.inf))),
        REFUSED | BUSY,
    ),
    Attack(
        "state with a strange length",
        ENDS,
        importing(*(fact("length", text) for text in ("9" * 5000, "²", "٦٤", "-64", "128.0", "0064"))),
        ANY,
    ),
    Attack("schema with escaped references", "3", posting(COMPLETIONS, escaped_references), ANY),
    Attack("chain of rules", ENDS, posting(COMPLETIONS, chained_rules("\n"), chained_rules("\r")), ANY),
    Attack("grammars in grammars", ENDS, posting(COMPLETIONS, nested_grammars), ANY),
    Attack("deep schema in a grammar", ENDS, posting(COMPLETIONS, nested_json_text), ANY),
    Attack("deep regex", ENDS, posting(COMPLETIONS, nested_regex, nested_quantifiers), ANY),
    Attack("one request id for many", ENDS, one_id, ANY | {404, 409}),
    Attack("prompt of 200,000 tokens", "9", posting(GENERATE, long_prompt, holds=True), ANY),
    Attack("8 prompts of 200,000 tokens", "9", posting(GENERATE, long_prompt, count=8, holds=True), ANY),
    Attack("128 choices of a long prompt", STOPS, posting(GENERATE, forked_prompt, count=2, holds=True), ANY),
    Attack("going on from 300,000 tokens", STOPS, go_on_from_much, ANY | {507}),
    Attack("tool schemas in stored responses", "10", posting(RESPONSES, tool_schemas, count=2), LARGE),
    Attack("metadata in stored responses", TAKES, posting(RESPONSES, large_metadata, count=2), LARGE),
    Attack("conversation of megabytes", TAKES, conversation, ANY),
    Attack("a thousand references to a long item", TAKES, references, ANY),
    Attack(
        "compaction items of 58,000 messages",
        TAKES,
        posting(f"{RESPONSES}/input_tokens", packed_messages(58_000), packed_messages(16_000), count=12),
        ANY,
    ),
    Attack("background responses", TAKES, background_work, ANY | {404, 409}),
    Attack("40 imports of a million tokens", "11", import_many, ANY | {507}),
    Attack("33 endless streams of large bodies", "12", large_slow_streams, LARGE),
    Attack("bodies that never end", "12", slow_bodies, LARGE | {408}),
    Attack("bodies of empty arrays", "12", posting(COMPLETIONS, empty_arrays, count=16, salted=False), LARGE),
    Attack("endless streams of empty arrays", "12", empty_arrays_in_streams, LARGE),
    Attack("stop strings for 128 choices", "13", posting(COMPLETIONS, many_stop_strings), ANY),
    Attack("bad words for 128 choices", STOPS, posting(COMPLETIONS, many_bad_words, holds=True), ANY),
    Attack("allowed ids, 700,000", "14", posting(COMPLETIONS, repeated_ids, holds=True), LARGE),
    Attack("biases and logprobs, 32 choices", STOPS, posting(COMPLETIONS, many_biases, holds=True), ANY),
    Attack("abandoned grammars", "15", leave_grammars, ANY),
    Attack("ambiguous grammar", STOPS, posting(COMPLETIONS, ambiguous_grammar, count=2, holds=True), ANY),
    Attack("counted regex", STOPS, posting(COMPLETIONS, counted_regex, count=2, holds=True), ANY),
    Attack("regex of 2^24 states", STOPS, posting(COMPLETIONS, states_explosion, count=2, holds=True), ANY),
    Attack("echo for 128 choices", "16", posting(COMPLETIONS, echoes), LARGE),
    Attack("echo with logprobs", "16", posting(COMPLETIONS, echoed_ids, holds=True), ANY),
    Attack("logprobs of a long prompt", "16", posting(GENERATE, prompt_logprobs, holds=True), ANY),
    Attack("a million prompts, rendered", "16", posting("/v1/completions/render", million_prompts), LARGE),
    Attack("a million prompts", "16", posting(COMPLETIONS, million_prompts_to_run), REFUSED | BUSY | {0}),
    Attack("texts of spaces", "16", posting("/tokenize", many_spaces, count=2), LARGE),
    Attack("text of 4 MB, truncated", STOPS, posting(COMPLETIONS, truncated_text, count=4), LARGE),
    Attack("800,000 ids to text", STOPS, posting("/detokenize", many_ids), LARGE),
    Attack("16,383 messages", STOPS, posting("/v1/chat/completions/render", many_messages, count=2), ANY),
    Attack("140,000 unknown fields", STOPS, posting(COMPLETIONS, unknown_fields), LARGE),
    Attack("a mistake of 4 MB", STOPS, posting(COMPLETIONS, long_mistake, count=2), REFUSED | BUSY | {0}),
    Attack("120 large tools", STOPS, posting(CHAT, nested_tools), LARGE),
    Attack("16 savers of a long text", "17", save_again_and_again, ANY | {404, 507}),
    Attack("slow imports", "18", import_slowly, ANY | {0, 408}),
    Attack("endless requests in every slot", "19", posting(COMPLETIONS, endless, count=64, holds=True), ANY),
    Attack("endless choices in every slot", "19", posting(COMPLETIONS, endless_choices, count=3, holds=True), ANY),
    Attack("requests that are left at once", STOPS, ask_and_leave, ANY),
    Attack("streams that nobody reads", TAKES, read_no_streams, ANY | {0}),
    Attack("unknown prompts of 600,000 tokens", "23", posting(GENERATE, unknown_prompt, count=2, holds=True), LARGE),
    Attack("a salt for each prompt", "23", salts, ANY),
    Attack("headers that never end", STOPS, slow_heads, ANY | {0, 408}),
    Attack("pipelined requests", TAKES, pipeline, ANY | {0}),
    *STORE_ATTACKS,
)


# --- the attacker's process


async def read_line() -> bytes:
    """Returns a line of stdin; None at its end."""
    return await asyncio.to_thread(sys.stdin.buffer.readline)


def say(text: str) -> None:
    print(text, flush=True)


async def attack(order: Mapping[str, Any]) -> None:
    """Runs the command of one line."""
    began = asyncio.Event()

    async def go() -> None:
        say("ready")
        await read_line()
        began.set()

    chosen = next(each for each in ATTACKS if each.name == order["name"])
    attacker = Attacker(order["host"], order["port"], order["key"], go)
    running = asyncio.ensure_future(chosen.run(attacker))
    waiting = asyncio.ensure_future(began.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    stop = asyncio.ensure_future(read_line()) if waiting.done() else None
    if stop is not None:
        await asyncio.wait([stop], timeout=order["max_seconds"])
    statuses = {str(status): count for status, count in sorted(attacker.statuses.items())}
    for task in (running, waiting):
        task.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    if stop is not None:
        await stop
    problem = next((repr(task.exception()) for task in done if not task.cancelled() and task.exception()), None)
    say(json.dumps({"statuses": statuses, "problem": problem}))


async def main() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    while line := await read_line():
        await attack(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())
