"""Sends hundreds of thousands of bad requests to a real server, and checks every response.

    python tests/robust/fuzz.py [--requests 100000] [--seed 0] [--url http://127.0.0.1:8000] [--json]

Starts a server with a tiny random model, unless given one. Clients send valid bodies of every route with changed
values, fields and structure; their text with bytes cut, duplicated, swapped and inserted; wrong methods, paths, headers
and types; and bytes that are hardly HTTP. Every response must be a success or an error below 500 in the shape of the
route's API, with an id, within 20 seconds; a connection may be closed if no request can be recognised. Now and then,
and at the end, a valid request must get the same response as at first. Afterwards no slot may be in use, nothing may
have been compiled, and the server must exit with status 0 without a traceback in its log. The same seed makes the same
requests. Exits with 1 and lists the problems if there are any.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path += [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "e2e")]

from server_process import launched
from shared_programs import TINY

TIMEOUT_S = 20.0
"""Seconds a response may take. Compiling a grammar alone may take ten."""

PROBLEMS_KEPT = 50

USER = {"role": "user", "content": "ab"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", None]}}, "required": ["a"]}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 1,
    "n": 2,
    "stop": ["q", "zz"],
    "logit_bias": {"4": 1.5},
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "bad_words": ["cd"],
    "stop_token_ids": [5],
    "allowed_token_ids": [4, 5, 6],
    "min_tokens": 1,
    "timeout": 5.0,
    "priority": 1,
    "truncate_prompt_tokens": 5,
    "return_token_ids": True,
}
GOOD: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("/v1/chat/completions", {"model": "tiny-random", "messages": [USER], "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": [USER], "max_tokens": 2, "logprobs": True, "top_logprobs": 2, **SAMPLING}),
    ("/v1/chat/completions", {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 2}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "s"},
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    ("/v1/chat/completions", {"messages": [USER], "response_format": FORMAT}),
    ("/v1/completions", {"prompt": "ab", "max_tokens": 2, "echo": True, "logprobs": 2, "best_of": 2}),
    ("/v1/completions", {"prompt": ["a", "b"], "stream": True, **SAMPLING}),
    ("/v1/completions", {"prompt": [[4, 5], [6]], "structured_outputs": {"regex": "[ab]{1,3}"}}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"choice": ["a", "bc"]}, "max_tokens": 3}),
    ("/v1/completions", {"prompt": "a", "grammar": 'start: "a" | "b" start', "max_tokens": 3}),
    ("/v1/responses", {"input": "ab", "instructions": "s", "max_output_tokens": 2, "metadata": {"a": "b"}}),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
            ],
            "tools": [{"type": "function", **FUNCTION}],
            "text": {"format": {"type": "json_object"}},
            "stream": True,
        },
    ),
    ("/v1/responses", {"input": "a", "background": True, "previous_response_id": "resp_x"}),
    ("/v1/messages", {"messages": [USER], "max_tokens": 2, "system": "s", "stop_sequences": ["q"]}),
    (
        "/v1/messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]},
            ],
            "max_tokens": 2,
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
            "stream": True,
        },
    ),
    ("/v1/messages/count_tokens", {"messages": [USER], "tools": [{"name": "f", "input_schema": SCHEMA}]}),
    ("/generate", {"token_ids": [4, 5], "max_tokens": 2, "logprobs": 1, "prompt_logprobs": 1}),
    ("/v1/chat/completions/render", {"messages": [USER], "chat_template_kwargs": {"a": [1]}}),
    ("/v1/completions/render", {"prompt": ["a", "b"]}),
    ("/tokenize", {"messages": [USER], "continue_final_message": False}),
    ("/tokenize", {"prompt": "ab<eos>", "add_special_tokens": True}),
    ("/detokenize", {"tokens": [4, 5, 6]}),
    ("/abort_request", {"request_id": "x"}),
)
PROOF = ("/v1/completions", {"prompt": "abc", "max_tokens": 4, "temperature": 0, "return_token_ids": True})

SCHEMAS: Sequence[Any] = (
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"$ref": "http://127.0.0.1:1/x"},
    {"type": "string", "pattern": "(a*)*b"},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "x{1,100000}"},
    {"type": "string", "minLength": 10**9},
    {"type": "array", "minItems": 10**6, "items": {}},
    {"type": "object", "properties": {"": {}, "\u0000": {}}, "required": ["zz"]},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"enum": []},
    {"type": "nonsense"},
    {"not": {}},
    {"multipleOf": 0},
    {"minimum": 5, "maximum": 1, "type": "integer"},
    {"anyOf": [{"anyOf": [{"anyOf": [{}]}]}] * 20},
)
HOSTILE: Sequence[Any] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**40,
    0.0,
    -0.5,
    1e308,
    5e-324,
    "",
    " ",
    "a" * 5000,
    "\u0000",
    "\u202e\ufeff",
    "\ue0f00\ue0f1",
    "<bos><eos><start_of_turn>",
    "{{ 7*7 }}{% for x in range(10**9) %}{% endfor %}",
    "../../../../etc/passwd",
    "💥" * 300,
    "((((((((((a+)+)+)+)+)+)+)+)+)+)+$",
    "start: start",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": ""},
    {"type": "text"},
    {"a": {"a": {"a": {"a": {"a": 1}}}}},
    [1] * 1000,
    ["a"] * 300,
    "NaN",
    "user",
    *SCHEMAS,
)
NAMES = sorted(
    {name for _, body in GOOD for name in body} | {"functions", "suffix", "chat_template", "user", "x" * 300}
)
TEXTS = (
    b"NaN",
    b"Infinity",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\x00",
    b"[" * 300,
    b"{",
    b"}",
    b'"',
    b",",
    b"1e999",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "post", "")
PATHS = (
    "/",
    "/v1/models",
    "/v1/models/tiny-random",
    "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/responses/resp_x",
    "/v1/responses/%00",
    "/v1/responses/x/cancel",
    "/health",
    "/health/ready",
    "/metrics",
    "/load",
    "/server_info",
    "/openapi.json",
    "/docs",
    "/nowhere",
    "//health",
    "/health/",
    "/health?x=%zz&stream=true",
    "/v1/responses/x?stream=perhaps",
    "/debug/profile",
    "/debug/server_info",
    "/" + "a" * 3000,
    "/%ff%fe",
    "*",
    "http://other.example/health",
    "/../../etc/passwd",
)
TYPES = ("application/json", "application/json; charset=utf-16", "text/plain", "application/x-www-form-urlencoded")
TYPES = (*TYPES, "multipart/form-data; boundary=x", "application/vnd.api+json", "", "é", "text/" + "a" * 500)
HEADERS = (
    "Authorization: Bearer x",
    "Authorization: " + "a" * 4000,
    "x-api-key: é",
    "x-request-id: a b\tc",
    "x-request-id: " + "i" * 300,
    "x-client-request-id: %n%s",
    "traceparent: 00-00000000000000000000000000000000-0000000000000000-00",
    "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    "traceparent: zz",
    "Accept: application/openmetrics-text",
    "Accept-Encoding: gzip, br, *;q=0",
    "Content-Encoding: gzip",
    "Expect: 100-continue",
    "Upgrade: websocket\r\nConnection: upgrade",
    "Connection: close",
    "Connection: keep-alive, close, x",
    "Origin: null",
    "Host: ",
    "Range: bytes=0-1",
    "Cookie: " + "a=b; " * 50,
    "X-Forwarded-For: 1.2.3.4",
    *("A: b" * 10,),
)


@dataclass(frozen=True)
class Attempt:
    """Bytes to send.

    Attributes:
      kind: Kind of the attempt.
      data: The bytes.
      path: Path of the request, whose API determines the shape of an error.
      whole: Whether the bytes contain an HTTP request, so that a response is required.
    """

    kind: str
    data: bytes
    path: str
    whole: bool


def attempt(rng: random.Random) -> Attempt:
    """Returns the next attempt; most of them are valid HTTP, and many valid JSON."""
    kinds: Sequence[Callable[[random.Random], Attempt]] = (changed_value, changed_text, odd_request, raw_bytes)
    return rng.choices(kinds, (70, 10, 10, 10))[0](rng)


def changed_value(rng: random.Random) -> Attempt:
    path, body = changed_body(rng)
    return Attempt("values", request("POST", path, json.dumps(body).encode()), path, True)


def changed_body(rng: random.Random) -> tuple[str, Any]:
    """Returns a valid body with one to three changes."""
    path, good = rng.choice(GOOD)
    body: Any = json.loads(json.dumps(good))
    for _ in range(rng.choice((1, 1, 2, 3))):
        body = changed(body, rng, depth=rng.choice((1, 1, 2, 3, 5)))
    return path, body


def changed(value: Any, rng: random.Random, depth: int) -> Any:
    """Returns a value with something else in it, up to a depth."""
    if depth and isinstance(value, dict) and value:
        name = rng.choice(sorted(value))
        match rng.randrange(6):
            case 0:
                return {each: value[each] for each in value if each != name}
            case 1:
                return {**value, rng.choice(NAMES): hostile(rng)}
            case _:
                return {**value, name: changed(value[name], rng, depth - 1)}
    if depth and isinstance(value, list) and value:
        position = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                return value * rng.choice((2, 50))
            case 1:
                return [*value, hostile(rng)]
            case _:
                return [*value[:position], changed(value[position], rng, depth - 1), *value[position + 1 :]]
    return near(value, rng) if rng.random() < 0.3 else hostile(rng)


def hostile(rng: random.Random) -> Any:
    value = rng.choice(HOSTILE)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3, 250))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "type", "content", "items")): value}
    return value


def near(value: Any, rng: random.Random) -> Any:
    """Returns another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, -value, value * 1000, value + 0.5, 0))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return value[:cut] + rng.choice(("", "\n", "é", "\u0000", "💥", value)) + value[cut:]
    return value


def changed_text(rng: random.Random) -> Attempt:
    """Returns JSON that is broken, or nearly so."""
    path, body = rng.choice(GOOD) if rng.random() < 0.7 else changed_body(rng)
    data = bytearray(json.dumps(body).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = rng.choice(TEXTS)
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                data[at:at] = data[at : at + 20]
            case 4:
                del data[at : at + 5]
    return Attempt("text", request("POST", path, bytes(data)), path, True)


def odd_request(rng: random.Random) -> Attempt:
    """Returns well-formed HTTP with an unusual request."""
    known = [path for path, _ in GOOD]
    path = rng.choice((*PATHS, *known))
    method = rng.choice(METHODS[:-3] if rng.random() < 0.9 else METHODS)
    body = json.dumps(rng.choice(GOOD)[1]).encode() if rng.random() < 0.5 else b""
    headers = rng.sample(HEADERS, rng.randrange(4))
    data = request(method, path, body, rng.choice(TYPES), headers)
    return Attempt("requests", data, path, whole=method in METHODS[:-3] and path.startswith("/"))


def raw_bytes(rng: random.Random) -> Attempt:
    """Returns bytes that may not be HTTP. The client sends nothing more, so the server need not wait."""
    path, body = rng.choice(GOOD)
    data = bytearray(request("POST", path, json.dumps(body).encode()))
    match rng.randrange(5):
        case 0:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            data = data.replace(b"Content-Length: ", rng.choice((b"Content-Length: -", b"Content-Length: 9", b"X: ")))
        case 3:
            chunks = rng.choice((b"5\r\nabc\r\n0\r\n\r\n", b"zz\r\n\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n"))
            data = bytearray(request("POST", path, b"", extra=["Transfer-Encoding: chunked"]) + chunks)
        case 4:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
    return Attempt("bytes", bytes(data), path, whole=False)


def request(method: str, path: str, body: bytes, kind: str = "application/json", extra: Sequence[str] = ()) -> bytes:
    chunked = any(line.startswith("Transfer-Encoding") for line in extra)
    length = [] if chunked or not body else [f"Content-Length: {len(body)}"]
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *extra, *length, "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + body


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    head_only: bool


@dataclass
class Found:
    """Results of all attempts."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def problem(self, text: str, made: Attempt | None = None) -> None:
        self.num_problems += 1
        if len(self.problems) < PROBLEMS_KEPT:
            sent = "" if made is None else f", to {made.kind}: {made.data[:2000]!r}"
            self.problems.append(text + sent)


async def send(host: str, port: int, data: bytes, *, ends: bool) -> Answer | None:
    """Sends one request on its own connection; returns None if the server closes it without a response.

    Args:
      ends: Whether the client closes its side after sending.

    Raises:
      TimeoutError: The response did not arrive, or not completely.
      ValueError: The response is not HTTP.
    """
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port, limit=2**24)
        try:
            writer.write(data)
            if ends:
                with contextlib.suppress(OSError):
                    writer.write_eof()
            return await read_answer(reader, data.startswith(b"HEAD "))
        except ConnectionError:
            return None
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader, head_only: bool) -> Answer | None:
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise ValueError(f"half a head: {error.partial[:200]!r}") from None
            return None
        status_line, *lines = head.split("\r\n")[:-2]
        if re.fullmatch(r"HTTP/1\.1 [1-5]\d\d .*", status_line) is None:
            raise ValueError(f"no status line: {status_line[:200]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(status_line.split()[1])
        if status >= 200:
            body = b"" if head_only or status in (204, 304) else await read_body(reader, headers)
            return Answer(status, headers, body, head_only)


async def read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return body


def judge(made: Attempt, answer: Answer | None) -> str | None:
    """Returns the problem of a response, if there is one."""
    if answer is None:
        return "no answer to a whole request" if made.whole else None
    if answer.status == 504 and b'"code":"request_timeout"' in answer.body:
        return None  # the request had a short timeout
    if answer.status >= 500:
        return f"status {answer.status}: {answer.body[:300]!r}"
    if not answer.headers.get("x-request-id"):
        return f"status {answer.status} without an id"
    if answer.status < 400 or answer.head_only:
        return None
    return wrong_shape(made.path, answer)


def wrong_shape(path: str, answer: Answer) -> str | None:
    """Returns the problem of an error's shape. Errors of requests without a known path have OpenAI's shape."""
    try:
        content = json.loads(answer.body)
        error = content["error"]
        is_openai = error.keys() == {"message", "type", "param", "code"} and content.keys() == {"error"}
        is_anthropic = path.startswith("/v1/messages") and {"type", "message"} == error.keys()
        fine = (is_openai or is_anthropic) and isinstance(error["message"], str) and bool(error["message"])
        fine = fine and "Traceback" not in error["message"] and "\n" not in error["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        fine = False
    return None if fine else f"status {answer.status} in the wrong shape: {answer.body[:300]!r}"


async def client(made_by: random.Random, host: str, port: int, left: list[int], found: Found) -> None:
    """Runs attempts one after the other until none are left."""
    while left[0] > 0:
        left[0] -= 1
        made = attempt(made_by)
        found.kinds[made.kind] += 1
        try:
            answer = await send(host, port, made.data, ends=not made.whole)
        except (TimeoutError, ValueError, OSError, asyncio.IncompleteReadError) as error:
            found.problem(f"{type(error).__name__}: {error}", made)
            continue
        found.statuses["closed" if answer is None else str(answer.status)] += 1
        if (wrong := judge(made, answer)) is not None:
            found.problem(wrong, made)


async def proof(host: str, port: int) -> Any:
    """Returns the response to a valid request."""
    path, body = PROOF
    answer = await send(host, port, request("POST", path, json.dumps(body).encode()), ends=False)
    if answer is None or answer.status != 200:
        raise ValueError(f"a good request was answered {answer}")
    return json.loads(answer.body)["choices"]


async def gauges(host: str, port: int) -> dict[str, float]:
    answer = await send(host, port, request("GET", "/metrics", b""), ends=False)
    assert answer is not None
    pairs = (line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def run(url: str, num_requests: int, seed: int, num_clients: int) -> Found:
    """Runs all attempts with several clients."""
    host, port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
    found, left = Found(), [num_requests]
    expected = await proof(host, port)
    clients = [client(random.Random(f"{seed}-{index}"), host, port, left, found) for index in range(num_clients)]
    work = asyncio.gather(*clients)
    while not work.done():
        await asyncio.wait([work], timeout=5)
        print(f"\r{num_requests - left[0]:,} requests, {found.num_problems} problems", end="", file=sys.stderr)
        with contextlib.suppress(TimeoutError):
            await prove(host, port, expected, found)
    print(file=sys.stderr)
    await work
    await settle(host, port, found)
    return found


async def prove(host: str, port: int, expected: Any, found: Found) -> None:
    try:
        if await proof(host, port) != expected:
            found.problem("a good request got another answer than at first")
    except (ValueError, OSError) as error:
        found.problem(f"a good request failed: {error}")


async def settle(host: str, port: int, found: Found) -> None:
    """Checks that no request is left on the server."""
    async with asyncio.timeout(30):
        while True:
            now = await gauges(host, port)
            if not now["roost_num_requests_running"] and not now["roost_num_requests_waiting"]:
                break
            await asyncio.sleep(0.3)
    if now["roost_compiles_since_ready_total"]:
        found.problem("something was compiled")


@contextlib.contextmanager
def own_server(found: list[str]) -> Iterator[str]:
    """Runs a server with a tiny model during the `with` block, and adds its problems to `found`."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(TINY))
        shapes = ("--slots", "8", "--prefill-chunk", "128")
        limits = ("--max-queue", "4096", "--max-tokens-limit", "8", "--served-model-name", "tiny-random")
        with launched(f"random:{config}", *shapes, *limits, JAX_PLATFORMS="cpu") as server:
            yield server.url
            if server.process.poll() is not None:
                found.append(f"the server ended with status {server.process.returncode}")
            server.process.send_signal(signal.SIGTERM)
            if status := server.ends(30):
                found.append(f"the server left with status {status}")
            if "Traceback" in (written := server.log.read_text(errors="replace")):
                found.append("a trace in the log: " + written[written.index("Traceback") :][:3000])


def fuzz(options: argparse.Namespace) -> dict[str, Any]:
    began, server_problems = time.monotonic(), list[str]()
    with contextlib.nullcontext(options.url) if options.url else own_server(server_problems) as url:
        found = asyncio.run(run(url, options.requests, options.seed, options.clients))
    return {
        "requests": sum(found.kinds.values()),
        "by_kind": dict(sorted(found.kinds.items())),
        "by_status": dict(sorted(found.statuses.items())),
        "seconds": round(time.monotonic() - began, 1),
        "seed": options.seed,
        "num_problems": found.num_problems + len(server_problems),
        "problems": found.problems + server_problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--url", help="of a server that runs already, with a tiny model")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    result = fuzz(options)
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['requests']:,} requests {result['by_kind']}: {result['by_status']} in {result['seconds']} s")
        print("\n".join(result["problems"]) or "nothing was wrong")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
