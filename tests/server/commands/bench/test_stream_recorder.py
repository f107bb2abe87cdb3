"""Traces of streamed responses."""

from roost.server.client.http_client import Response
from roost.server.commands.bench.serve import StreamRecorder
from scripted_server import USAGE, event


def test_tokens_are_chunks_with_text_or_ids() -> None:
    recorder = StreamRecorder(due_s=1.0, sent_s=1.5)
    chunks = [
        b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
        b'{"choices":[{"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":""},"token_ids":[7]}]}',
        b'{"choices":[{"delta":{},"finish_reason":"stop"}]}',
        USAGE,
        b"[DONE]",
    ]
    for seconds, data in enumerate(chunks, 2):
        recorder.feed(event(data), float(seconds))
    trace = recorder.finish(Response(200, b""), 9.0)
    assert trace.token_times_s == [3.0, 4.0]
    assert (trace.last_s, trace.end_s, trace.lag_s) == (5.0, 7.0, 0.5)
