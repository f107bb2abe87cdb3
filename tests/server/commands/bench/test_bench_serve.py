"""`roost bench serve` against the real routes over a fake engine, and against servers that fail."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_server import live
from rich.console import Group
from roost.server.client import Address, Response
from roost.server.commands.bench.report import RequestTrace, write_report
from roost.server.commands.bench.serve import Run, StreamRecorder, bench_serve, summarize, tables
from roost.server.commands.options import ServeBenchOptions
from roost.server.generation.service import Service
from roost.server.terminal.exits import CommandError
from scripted_server import USAGE, Script, error, event, scripted, streamed

OPTIONS = ServeBenchOptions(
    url="http://127.0.0.1:1",
    num_prompts=12,
    input_len="3:9",
    output_len="2:6",
    vocab_size=200,
    ignore_eos=True,
    warmup=0,
    timeout=30.0,
    seed=3,
)


def url_of(address: Address) -> str:
    return f"http://{address.authority}"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all at once"),
        pytest.param({"request_rate": 2000.0}, id="at a rate"),
        pytest.param({"concurrency": 3}, id="some at a time"),
        pytest.param({"endpoint": "chat"}, id="chat"),
    ],
)
async def test_tokens_are_what_the_engine_counted(
    service: Service, engine: FakeEngine, changes: dict[str, Any]
) -> None:
    async with live(service) as client:
        options = replace(OPTIONS, url=str(client.base_url), **changes)
        run = Run(options)
        await run.all()
    result = run.result()
    assert run.server["model"] == "counter"
    assert result["failures"] == {}
    assert result["requests"]["completed"] == 12
    assert result["input_tokens"] == sum(len(request.prompt_token_ids) for request in engine.requests)
    assert result["output_tokens"] == sum(request.params.max_tokens or 0 for request in engine.requests)
    assert result["ttft_ms"]["count"] == 12


async def test_the_same_seed_sends_the_same_requests(service: Service, engine: FakeEngine) -> None:
    async with live(service) as client:
        options = replace(OPTIONS, url=str(client.base_url), concurrency=1)
        for _ in range(2):
            await Run(options).all()
    asked = [(tuple(request.prompt_token_ids), request.params.max_tokens) for request in engine.requests]
    assert asked[:12] == asked[12:]
    assert len(set(asked)) == 12


async def test_failures_are_counted_by_their_reasons() -> None:
    async with scripted(Script([error("429 Too Many Requests", b'{"error":{"message":"full"}}')])) as address:
        run = Run(replace(OPTIONS, url=url_of(address), model="m"))
        await run.all()
    result = run.result()
    assert result["failures"] == {"HTTP 429: full": 12}
    assert (result["requests"]["completed"], result["requests"]["failed"]) == (0, 12)
    assert result["ttft_ms"] is None


async def test_a_failed_first_request_ends_the_benchmark() -> None:
    async with scripted(Script([error("400 Bad Request", b'{"message":"prompt must be text"}')])) as address:
        with pytest.raises(CommandError, match=r"HTTP 400: prompt must be text; see --vocab-size and --endpoint"):
            await Run(replace(OPTIONS, url=url_of(address), model="m", warmup=1)).all()


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        (error("401 No", b""), "--api-key"),
        (error("404 No", b""), "--model"),
        (error("200 OK", b'{"data":[]}'), "--model"),
        (error("200 OK", b"<html>"), "--model"),
    ],
)
async def test_a_server_that_tells_no_model_needs_an_option(answer: bytes, option: str) -> None:
    async with scripted(Script([answer])) as address:
        with pytest.raises(CommandError, match=option):
            await Run(replace(OPTIONS, url=url_of(address))).all()


@pytest.mark.parametrize(("ignore_eos", "length"), [(True, "2:6 out"), (False, "at most 2:6 out")])
def test_the_title_says_whether_lengths_are_limits(ignore_eos: bool, length: str) -> None:
    run = Run(replace(OPTIONS, model="m", ignore_eos=ignore_eos))
    assert run.title() == f"m, inf requests/s, 3:9 tokens in, {length}"


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(CommandError, match=r"cannot be reached: .*--url"):
        bench_serve(OPTIONS)


def trace(end_s: float, failure: str | None = None, output_tokens: int | None = 2) -> RequestTrace:
    return RequestTrace(0.0, [0.1, 0.2], end_s, 10, output_tokens, failure=failure)


def test_rates_count_successful_requests() -> None:
    traces = [trace(1.0), trace(4.0), trace(2.0, "HTTP 500")]
    result = summarize(traces, 4.0, 12, {"e2e": 2000.0})
    assert result["requests"] == {"planned": 12, "completed": 2, "failed": 1, "unfinished": 9, "without_usage": 0}
    assert (result["requests_per_s"], result["input_tokens_per_s"], result["output_tokens_per_s"]) == (0.5, 5.0, 1.0)
    assert result["goodput"] == {
        "objective": "e2e:2000",
        "requests": 1,
        "share": pytest.approx(1 / 3),
        "requests_per_s": 0.25,
    }


def test_tokens_are_unknown_without_usage() -> None:
    result = summarize([trace(1.0), trace(1.0, output_tokens=None)], 1.0, 12, {})
    assert result["output_tokens_per_s"] is None
    assert result["requests"]["without_usage"] == 1


def test_options_as_json_can_be_read_and_hide_the_key() -> None:
    run = Run(replace(OPTIONS, api_key="sesame", goodput=["itl:5.0"]))
    assert json.loads(json.dumps(run.options_as_json())) == {
        "url": "http://127.0.0.1:1",
        "model": None,
        "endpoint": "completions",
        "request_rate": None,
        "concurrency": None,
        "num_prompts": 12,
        "input_len": "3:9",
        "output_len": "2:6",
        "vocab_size": 200,
        "ignore_eos": True,
        "temperature": 0.0,
        "api_key": True,
        "warmup": 0,
        "timeout_s": 30.0,
        "goodput": "itl:5",
        "seed": 3,
    }


def test_tables_show_brackets_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    late = replace(trace(1.0, "HTTP 400: prompt[a] is wrong"), lag_s=0.5)
    result = summarize([late, trace(1.0, output_tokens=None)], 1.0, 12, {})
    write_report(tables("a title [bold]", result, interrupted=True), {}, None)
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    for words in ("a title [bold]", "1 × HTTP 400: prompt[a] is wrong", "`usage`", "500 ms late", "interrupted"):
        assert words in printed


async def test_a_whole_benchmark_leaves_its_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    async with scripted(Script([streamed()])) as address:
        status = await asyncio.to_thread(bench_serve, replace(OPTIONS, url=url_of(address), model="m", json=str(file)))
    document = json.loads(file.read_text())
    assert status == 0
    assert document["result"]["output_tokens"] == 24
    assert document["machine"]["cpus"] >= 1
    assert {"roost", "jax", "python"} <= document["versions"].keys()


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


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """The tables are shown before, so that nothing is lost."""
    with pytest.raises(CommandError, match=f"^--json {tmp_path}: Is a directory$"):
        write_report(Group(), {}, str(tmp_path))
