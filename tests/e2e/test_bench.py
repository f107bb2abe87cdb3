"""`roost bench` as a process, on a small random model and against a real server."""

import json
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from server_process import API_KEY, MODEL, SHAPES, SLOTS, ServerProcess, start

GROWTH = Path(__file__).parents[2] / "benchmarks" / "growth.py"


def bench(*arguments: str) -> dict[str, Any]:
    """Runs the benchmark and returns its JSON."""
    return document_of(start("bench", *arguments, "--json", "-"))


def document_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return json.loads(out)


def counters(server: ServerProcess) -> dict[str, float]:
    """Returns the server's token counters."""
    request = urllib.request.Request(f"{server.url}/metrics", headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = [line.split() for line in answer.read().decode().splitlines() if line.startswith("roost_")]
    return {words[0]: float(words[-1]) for words in lines}


def counters_at_rest(server: ServerProcess) -> dict[str, float]:
    """Returns the counters once no request of an earlier test runs, such as one whose client has left."""
    while (found := counters(server))["roost_slots_used"] or found["roost_num_requests_waiting"]:
        pass
    return found


@pytest.mark.parametrize("load", [("--concurrency", str(SLOTS)), ("--request-rate", "200")])
def test_tokens_add_up_to_what_the_server_counted(server: ServerProcess, load: tuple[str, str]) -> None:
    before = counters_at_rest(server)
    lengths = "--input-len", "20:90", "--output-len", "100:150", "--ignore-eos"  # of many dispatches, not of one
    how = "--num-prompts", "12", "--warmup", "0", "--api-key", API_KEY, "--goodput", "e2e:60000"
    document = bench("serve", "--url", server.url, *load, *lengths, *how)
    after = counters(server)
    result = document["result"]
    assert result["failures"] == {}
    assert result["requests"]["completed"] == result["goodput"]["requests"] == 12
    names = "roost_prompt_tokens_total", "roost_state_cache_hit_tokens_total"
    assert result["input_tokens"] == sum(after[name] - before[name] for name in names)
    assert result["output_tokens"] == after["roost_generation_tokens_total"] - before["roost_generation_tokens_total"]
    assert 0 < result["itl_ms"]["count"] <= result["output_tokens"] - 12
    assert document["server"]["model"] == MODEL
    assert API_KEY not in json.dumps(document)


def test_ctrl_c_prints_what_was_measured(server: ServerProcess) -> None:
    before = counters_at_rest(server)["roost_generation_tokens_total"]
    options = "--concurrency", "1", "--num-prompts", "100000", "--output-len", "2", "--input-len", "8", "--ignore-eos"
    process = start("bench", "serve", "--url", server.url, "--api-key", API_KEY, *options, "--json", "-")
    while counters(server)["roost_generation_tokens_total"] < before + 20:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    document = json.loads(out)
    assert document["interrupted"]
    assert document["result"]["requests"]["completed"] > 0
    assert document["result"]["failures"] == {}
    assert "interrupted" in err
    assert "Traceback" not in err


def test_the_engine_alone(tiny_config: Path) -> None:
    lengths = "--input-len", "70", "--output-len", "12", "--repeat", "2"
    document = bench("engine", f"random:{tiny_config}", *SHAPES, *lengths, "--num-prompts", "6")
    workloads = document["result"]["workloads"]
    tokens = {name: [run["generated_tokens"] for run in found["runs"]] for name, found in workloads.items()}
    assert (tokens["prefill"], tokens["mixed"]) == ([6, 6], [72, 72])
    assert all(count >= SLOTS * 12 for count in tokens["decode"])
    assert workloads["mixed"]["median"]["prompt_tokens"] == 6 * 70
    assert workloads["decode"]["median"]["decode_step_ms"]["p99"] > 0
    assert document["model"]["slots"] == SLOTS
    assert document["device"]["kind"] == "cpu"


def test_growth(tiny_config: Path) -> None:
    options = "--concurrency", "1", "--max-length", "300", "--prefill-chunk", "64", "--json", "-"
    document = document_of(start(f"random:{tiny_config}", *options, program=(str(GROWTH),)))
    assert [stretch["length"] for stretch in document["result"]["stretches"]] == [128, 256, 300]
    assert all(stretch["tokens_per_s"] > 0 for stretch in document["result"]["stretches"])
