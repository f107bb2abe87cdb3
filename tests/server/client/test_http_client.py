"""HTTP client, against servers that send parts, close connections, refuse and hang; and the parser of events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from roost.server.client import Address, ClientError, EventParser, HttpClient
from roost.server.commands.bench.report import RequestTrace
from roost.server.commands.bench.serve import StreamRecorder
from scripted_server import HEAD, USAGE, Script, chunk, error, event, scripted, streamed, text


@asynccontextmanager
async def client_of(script: Script, timeout_s: float = 30.0) -> AsyncIterator[HttpClient]:
    async with scripted(script) as address:
        client = HttpClient(address, "sesame", timeout_s)
        try:
            yield client
        finally:
            await client.close()


async def ask(client: HttpClient) -> RequestTrace:
    """Returns the trace of one stream, without its times."""
    recorder = StreamRecorder(due_s=0.0, sent_s=0.0)
    try:
        answer = await client.post("/v1/completions", {"prompt": [1]}, recorder.feed)
    except ClientError as failure:
        return recorder.fail(str(failure), 1.0)
    return recorder.finish(answer, 1.0)


async def trace_of(*pieces: bytes, closes: bool = False) -> RequestTrace:
    async with client_of(Script(pieces, closes)) as client:
        return await ask(client)


async def test_a_stream_becomes_a_trace() -> None:
    trace = await trace_of(streamed())
    assert trace.failure is None
    assert len(trace.token_times_s) == 2
    assert (trace.prompt_tokens, trace.output_tokens) == (5, 2)


async def test_requests_carry_what_they_must() -> None:
    script = Script([streamed()])
    async with client_of(script) as client:
        await ask(client)
    head, _, body = script.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer sesame" in head
    assert body == b'{"prompt":[1]}'


async def test_a_stream_that_comes_byte_by_byte_is_the_same() -> None:
    answer = streamed()
    trace = await trace_of(*(answer[place : place + 1] for place in range(len(answer))))
    assert trace.failure is None
    assert (len(trace.token_times_s), trace.output_tokens) == (2, 2)


async def test_connections_are_reused() -> None:
    script = Script([streamed()])
    async with client_of(script) as client:
        for _ in range(3):
            assert (await ask(client)).failure is None
    assert script.num_connections == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    script = Script([streamed()], closes=True)
    async with client_of(script) as client:
        for _ in range(3):
            assert (await ask(client)).failure is None
    assert script.num_connections == 3


async def test_parallel_requests_have_connections_of_their_own() -> None:
    script = Script([streamed()])
    async with client_of(script) as client:
        traces = await asyncio.gather(*(ask(client) for _ in range(8)))
    assert [trace.failure for trace in traces] == [None] * 8
    assert script.num_connections == 8


async def test_a_response_without_a_length_ends_with_its_connection() -> None:
    events = event(text("a")) + event(USAGE) + event(b"[DONE]")
    trace = await trace_of(b"HTTP/1.1 200 OK\r\n\r\n" + events, closes=True)
    assert (trace.failure, trace.output_tokens) == (None, 2)


async def test_an_interim_response_is_skipped() -> None:
    assert (await trace_of(b"HTTP/1.1 100 Continue\r\n\r\n", streamed())).failure is None


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b'{"error":{"message":"the queue is\\nfull"}}', "HTTP 429: the queue is full"),
        (b'{"object":"error","message":"busy"}', "HTTP 429: busy"),
        (b'{"detail":"no"}', "HTTP 429: no"),
        (b'{"error":"no"}', "HTTP 429: no"),
        (b"<html>", "HTTP 429"),
        (b"[]", "HTTP 429"),
        (b"", "HTTP 429"),
    ],
)
async def test_an_error_status_is_the_reason(body: bytes, failure: str) -> None:
    assert (await trace_of(error("429 Too Many Requests", body))).failure == failure


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"", "the server closed the connection without an answer"),
        (HEAD + chunk(event(text("a"))), "the server closed the connection in the middle of the answer"),
        (HEAD[:20], "the server closed the connection in the middle of the answer"),
        (b"220 mail.example.org ESMTP\r\n", "the answer is not HTTP/1.1"),
        (streamed(event(text("a"))), "the stream ended without [DONE]"),
        (streamed(event(b'{"error":{"message":"died"}}')), "error in the stream: died"),
        (streamed(event(b"{"), event(b"[DONE]")), "an event of the stream is not a completion chunk"),
        (streamed(event(b"[1]"), event(b"[DONE]")), "an event of the stream is not a completion chunk"),
        (streamed(event(b'{"choices":[7]}'), event(b"[DONE]")), "an event of the stream is not a completion chunk"),
    ],
)
async def test_a_stream_that_goes_wrong_is_a_failure(answer: bytes, failure: str) -> None:
    trace = await trace_of(answer, closes=True)
    assert trace.failure == failure


async def test_without_usage_the_tokens_are_not_known() -> None:
    trace = await trace_of(streamed(event(text("a")), event(b"[DONE]")))
    assert (trace.failure, trace.prompt_tokens, trace.output_tokens) == (None, None, None)


async def test_a_server_that_says_nothing_runs_into_the_timeout() -> None:
    async with client_of(Script([HEAD], hangs=True), timeout_s=0.05) as client:
        assert (await ask(client)).failure == "no end within the timeout of 0.05 s"


async def test_a_refused_connection_is_an_error() -> None:
    async with scripted(Script([])) as address:
        pass
    with pytest.raises(ClientError, match="connection refused"):
        await HttpClient(address).get("/v1/models")


async def test_a_mistake_in_the_sink_is_not_blamed_on_the_server() -> None:
    def sink(piece: bytes, now: float) -> None:
        raise KeyError("bug")

    async with client_of(Script([streamed()])) as client:
        with pytest.raises(KeyError, match="bug"):
            await client.post("/", {}, sink)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("http://example.org/v1/", Address("example.org", 80)),
        ("https://example.org/api/v1", Address("example.org", 443, True, "/api")),
        ("http://[::1]:9", Address("::1", 9)),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert Address.parse(url) == address


def test_an_ipv6_host_is_in_brackets() -> None:
    assert Address("::1", 9).authority == "[::1]:9"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:y", "http://x?a=b"])
def test_invalid_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|Port"):
        Address.parse(url)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_are_the_same_wherever_they_are_cut(line_end: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b"event: x",
        b"data: one",
        b"",
        b"data:two",
        b"data: lines",
        b"id: 1",
        b"",
        b"data: no end",
    ]
    stream = line_end.join(lines)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            parser = EventParser()
            pieces = stream[:first], stream[first:second], stream[second:]
            assert [data for piece in pieces for data in parser.feed(piece)] == [b"one", b"two\nlines"]
