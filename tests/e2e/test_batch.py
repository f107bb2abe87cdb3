"""`roost batch` on a model in its own process and on a server; and batches of killed processes."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from roost.server.features.batches.command.line_files import InputFile, open_input, open_output
from roost.server.features.batches.command.local_backend import LocalBatch
from roost.server.features.batches.command.run import BatchProgress, BatchRun
from roost.server.settings import load_settings
from server_process import API_KEY, MAX_QUEUE, PROGRAM, SHAPES, ServerProcess, run_here, start
from shared_programs import compiled_once

FAULTY = str(Path(__file__).parent / "faulty_server.py")


def request(custom_id: str, url: str = "/v1/completions", **body: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def requests(count: int) -> list[bytes]:
    """Returns lines for all endpoints, greedy and seeded."""
    lines = []
    for number in range(count):
        sampling: dict[str, Any] = {"temperature": 0} if number % 2 else {"seed": number}
        tokens, text = number % 7 + 2, f"the number {number} is a number of many"
        lines.append(
            (
                request(f"c{number}", prompt=text, max_tokens=tokens, **sampling),
                request(
                    f"m{number}",
                    "/v1/chat/completions",
                    messages=[{"role": "user", "content": text}],
                    max_tokens=tokens,
                    **sampling,
                ),
                request(f"r{number}", "/v1/responses", input=text, max_output_tokens=tokens, **sampling),
                request(
                    f"a{number}",
                    "/v1/messages",
                    messages=[{"role": "user", "content": text}],
                    max_tokens=tokens,
                    **sampling,
                ),
            )[number % 4]
        )
    return lines


def contents(path: Path) -> dict[str, Sequence[Any]]:
    """Returns what each line says, without ids and times, by `custom_id`. No line may occur twice."""
    found: dict[str, Sequence[Any]] = {}
    for line in map(orjson.loads, path.read_bytes().splitlines()):
        body = line["response"]["body"]
        texts = [choice["text"] if "text" in choice else choice["message"] for choice in body.get("choices", ())]
        output = [item["content"][0]["text"] for item in body.get("output", ())]
        output += [block["text"] for block in body.get("content", ())]
        assert line["custom_id"] not in found
        found[line["custom_id"]] = line["response"]["status_code"], texts, output
    return found


async def test_lines_run_on_a_model_in_this_process(tiny_config: Path, tmp_path: Path) -> None:
    """The result is the same if a part of the lines ran before."""
    settings = load_settings({"model": f"random:{tiny_config}", "slots": SHAPES[1], "prefill_chunk": SHAPES[3]})
    (tmp_path / "in.jsonl").write_bytes(b"".join([*requests(14), request("wrong", prompt="a", max_tokens=-1)]))
    whole, half = tmp_path / "whole.jsonl", tmp_path / "half.jsonl"
    backend = LocalBatch(settings, lambda: False)
    with compiled_once("tiny"):
        await backend.start()
    try:
        with open_input(tmp_path / "in.jsonl") as source:
            counts = await run(backend, source, whole)
            half.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:5]))
            await run(backend, source, half)
    finally:
        await backend.close()
    assert (backend.concurrency, counts.num_lines, counts.num_failed) == (8, 15, 1)
    assert counts.generated_tokens <= sum(number % 7 + 2 for number in range(14))
    assert contents(whole) == contents(half)


async def run(backend: LocalBatch, source: InputFile, path: Path) -> BatchProgress:
    with open_output(path, source.index) as output:
        batch = BatchRun(backend, source, output, lambda: False)
        await batch.run()
        return batch.progress


def test_a_server_runs_more_lines_than_it_takes_at_a_time(server: ServerProcess, tmp_path: Path) -> None:
    """Lines that find its queue full are sent again."""
    lines = requests(4 * MAX_QUEUE)
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    arguments = ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--sort", "--url"]
    ended = run_here(*arguments, f"{server.url},http://127.0.0.1:9", ROOST_API_KEY=API_KEY)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.startswith(f"{len(lines)} lines; ")
    found = contents(tmp_path / "out.jsonl")
    assert list(found) == [orjson.loads(line)["custom_id"] for line in lines]
    assert {status for status, _, _ in found.values()} == {200}


@pytest.mark.robust
@pytest.mark.timeout(1200)
def test_a_batch_that_is_killed_gives_what_an_undisturbed_one_gives(tmp_path: Path) -> None:
    """The demo model. It dies in the middle of lines. Ctrl-C once in the end lets lines end that have begun."""
    (tmp_path / "in.jsonl").write_bytes(b"".join(requests(400)))

    def ended(name: str, program: Sequence[str] = PROGRAM) -> tuple[int, str]:
        """Runs the batch, and returns the status of its process and what it wrote."""
        process = start("batch", str(tmp_path / "in.jsonl"), str(tmp_path / name), *SHAPES, program=program)
        _, err = process.communicate(timeout=600)
        return process.returncode, err

    status, err = ended("whole.jsonl")
    assert status == 0, err
    chance, out = random.Random(7), tmp_path / "out.jsonl"
    for end in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        status, err = ended("out.jsonl", (FAULTY, f"line-{chance.randrange(1, 80)}-{end:d}"))
        assert status == (130 if end == signal.SIGINT else -end), err
    assert err.endswith("lines left; run the same command again to continue\n")
    status, err = ended("out.jsonl")
    assert status == 0, err
    assert contents(out) == contents(tmp_path / "whole.jsonl")
    assert len(contents(out)) == 400


def test_a_batch_whose_lines_all_fail_fails(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(request("a", prompt="a", max_tokens=-1) + request("b", max_tokens=1))
    arguments = ("batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--url", server.url)
    ended = run_here(*arguments, ROOST_API_KEY=API_KEY)
    assert (ended.exit_code, ended.stderr.split(";")[0]) == (1, "2 lines, 2 of them with errors")
