"""`roost batch`: its files, its runs over backends that fail, and lines on a model in this process."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from roost.server.client import Response
from roost.server.commands.main import app
from roost.server.features.batches import batch_lines
from roost.server.features.batches.batch_lines import BatchLine
from roost.server.features.batches.command.backends import NoResponseError
from roost.server.features.batches.command.line_files import InputFile, open_input, open_output
from roost.server.features.batches.command.run import BatchProgress, BatchRun
from roost.server.terminal.exits import CommandError
from typer.testing import CliRunner


def request(custom_id: str, url: str = "/v1/completions", **body: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": custom_id, **body}}
    return orjson.dumps(line) + b"\n"


def written(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_client_of_servers_does_not_import_jax() -> None:
    """It takes a second and more."""
    batch = "roost.server.features.batches.command"
    script = f"import sys, {batch}.run\nprint('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.fixture
def make_input(tmp_path: Path) -> Iterator[Callable[..., InputFile]]:
    with ExitStack() as stack:

        def make(*lines: bytes) -> InputFile:
            (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
            return stack.enter_context(open_input(tmp_path / "in.jsonl"))

        yield make


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Restores the signal handlers that a command replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Echo:
    """A backend that responds with the line's body, after its faults have been used up.

    Attributes:
      faults: What happens to the next lines instead of a response.
      sent: Ids of all lines, in the order in which they were sent.
    """

    concurrency = 3

    def __init__(self, *faults: Response | Exception) -> None:
        self.faults = list(faults)
        self.sent: list[str] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, line: BatchLine) -> Response:
        self.sent.append(line.custom_id)
        fault = self.faults.pop(0) if self.faults else None
        await asyncio.sleep(0)
        if isinstance(fault, Exception):
            raise fault
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return fault or Response(
            200, orjson.dumps({"echo": orjson.Fragment(line.body), "usage": usage}), {b"x-request-id": b"req_1"}
        )


async def run(
    backend: Any, source: InputFile, path: Path, is_stopping: Callable[[], bool] = lambda: False, **limits: float
) -> BatchProgress:
    with open_output(path, source.index) as output:
        batch = BatchRun(backend, source, output, is_stopping, **limits)
        await batch.run()
        return batch.progress


async def test_each_line_gets_one_output_line(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    source = make_input(request("a"), b"\n", b"{\n", request("b"), request("c", "/v1/other"))
    counts = await run(Echo(), source, tmp_path / "out.jsonl")
    assert (counts.num_lines, counts.num_failed) == (4, 2)
    assert (counts.prompt_tokens, counts.generated_tokens) == (4, 6)
    lines = {line["custom_id"]: line for line in written(tmp_path / "out.jsonl")}
    assert lines["b"] == {
        "id": "batch_req_4",
        "custom_id": "b",
        "response": {
            "status_code": 200,
            "request_id": "req_1",
            "body": {"echo": {"prompt": "b"}, "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
        },
        "error": None,
    }
    assert lines[None]["id"] == "batch_req_3"
    assert lines[None]["error"]["message"].startswith("line 3: the line is not valid JSON: ")
    assert lines["c"]["error"]["message"].startswith('line 5: url must be "/v1/chat/completions", ')


async def test_a_run_goes_on_after_a_torn_line(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    """The output is cut at every byte, as a killed process or a full disk may leave it."""
    source, path = make_input(request("a"), b"[]\n", request("b")), tmp_path / "out.jsonl"
    await run(Echo(), source, path)
    whole = path.read_bytes()
    expected = sorted(whole.splitlines())
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        num_kept = sum(line.endswith(b"null}\n") for line in whole[:size].splitlines(keepends=True))
        echo = Echo()
        await run(echo, source, path)
        assert sorted(path.read_bytes().splitlines()) == expected
        assert len(echo.sent) == 2 - num_kept


async def test_busy_and_lost_servers_get_a_line_again(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    faults: list[Response | Exception] = [
        Response(429, b"{}", {b"retry-after": b"0"}),
        Response(503, b"{}", {b"retry-after": b"0.01"}),
        NoResponseError("gone"),
    ]
    echo = Echo(*faults)
    counts = await run(echo, make_input(request("a"), request("b")), tmp_path / "out.jsonl")
    assert (counts.num_lines, counts.num_failed) == (2, 0)
    assert len(echo.sent) == 5


async def test_an_error_of_the_request_is_its_response(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    counts = await run(Echo(Response(400, b'{"error":{}}')), make_input(request("a")), tmp_path / "out.jsonl")
    assert counts.num_failed == 1
    assert written(tmp_path / "out.jsonl")[0]["response"]["status_code"] == 400


async def test_a_run_ends_when_nothing_responds(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    echo = Echo(*[NoResponseError("h:1: connection refused")] * 100)
    with pytest.raises(CommandError, match=r"no response for 0.1 s \(h:1: connection refused\); run the same command"):
        await run(echo, make_input(request("a")), tmp_path / "out.jsonl", give_up_s=0.1)


async def test_a_stopped_run_finishes_what_it_has_sent(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    source, echo = make_input(*(request(str(number)) for number in range(9))), Echo()
    await run(echo, source, tmp_path / "out.jsonl", lambda: len(echo.sent) >= 3)
    assert len(written(tmp_path / "out.jsonl")) == len(echo.sent) == 3


async def test_the_output_can_be_sorted(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    names = [str(number) for number in range(20)]
    source = make_input(*(request(name, prompt="same", max_tokens=random.Random(name).randrange(99)) for name in names))
    path = tmp_path / "out.jsonl"
    await run(Echo(), source, path)
    assert [line["custom_id"] for line in written(path)] != names
    with open_output(path, source.index) as output:
        output.sort()
    assert [line["custom_id"] for line in written(path)] == names
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_duplicates_are_named(make_input: Callable[..., InputFile]) -> None:
    with pytest.raises(CommandError, match=r"in\.jsonl: a custom_id must occur once: 'a' in lines 1 and 3$"):
        make_input(request("a"), request("b"), request("a", max_tokens=3))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"custom_id":"z","id":"batch_req_1"}\n', "line 1 is not of this input; give another file for the output"),
        (b"some text\n", "line 1 is not of this input"),
        (b'{"custom_id":"a","id":"1"}\n' * 2, "line 2 repeats an earlier line"),
    ],
)
def test_another_file_is_not_taken_for_the_output(
    make_input: Callable[..., InputFile], tmp_path: Path, lines: bytes, message: str
) -> None:
    (tmp_path / "out.jsonl").write_bytes(lines)
    source = make_input(request("a"))
    with pytest.raises(CommandError, match=message), open_output(tmp_path / "out.jsonl", source.index):
        pass
    assert (tmp_path / "out.jsonl").read_bytes() == lines


def test_two_runs_do_not_write_one_file(make_input: Callable[..., InputFile], tmp_path: Path) -> None:
    source = make_input(request("a"))
    with (
        open_output(tmp_path / "out.jsonl", source.index),
        pytest.raises(CommandError, match="another roost batch is writing it"),
        open_output(tmp_path / "out.jsonl", source.index),
    ):
        pass


def test_a_line_that_is_too_long_is_skipped(
    make_input: Callable[..., InputFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 200)
    source = make_input(request("a"), request("long" * 200), request("b"))
    first, long, last = (source.line(place) for place in range(3))
    assert (first.custom_id, long.custom_id, last.custom_id, source.number(2)) == ("a", None, "b", 3)
    assert str(long) == "the line is longer than 200 bytes"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stream": True}, "body.stream must be left out: a batch has whole responses"),
        ({"background": True}, "body.background must be left out: a batch has whole responses"),
    ],
)
def test_only_whole_responses_are_written(
    make_input: Callable[..., InputFile], body: dict[str, Any], message: str
) -> None:
    line: Any = make_input(request("a", **body)).line(0)
    assert (line.custom_id, str(line)) == ("a", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "3"], "--concurrency is for servers: give --url, or --slots"),
        (["--url", "http://127.0.0.1:1", "--model", "small"], "--model is for a model that is loaded here"),
        (["--url", "127.0.0.1:1"], "--url 127.0.0.1:1: it is not the URL of a server"),
        (["--url", "http://127.0.0.1:1"], "the server cannot be asked for its models: connection refused"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_options_that_do_not_fit_are_one_line(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(request("a"))
    result = CliRunner().invoke(app, ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), *arguments])
    assert result.exit_code == (1 if "connection" in message else 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no lines; each has a request"),
        (b'{"prompt": "a"}\n\n{"prompt": "b"}\n', "no line is a request; line 1: custom_id"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_a_file_without_a_request_is_refused_before_a_model_is_loaded(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    arguments = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--model", "nowhere"]
    result = CliRunner().invoke(app, ["batch", *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"roost: {tmp_path / 'in.jsonl'}: {message}")
    assert result.stderr.count("\n") == 1
