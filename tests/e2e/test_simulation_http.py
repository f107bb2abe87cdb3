"""`roost serve --simulate`: every client path works at speed, and all of it says that it simulates."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, serving

PACE = "step_ms=2,prefill_tokens_per_s=1e6,output_tokens=20"
ASK: list[Any] = [{"role": "user", "content": "Say something."}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 20}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def simulated(tiny_config: Path) -> Iterator[ServerProcess]:
    with serving(f"random:{tiny_config}", "--simulate", PACE, "--slots", "64") as server:
        yield server


@pytest.fixture
def client(simulated: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=simulated.url, timeout=120) as client:
        yield client


def chat(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"messages": ASK, "temperature": 0, **fields})
    response.raise_for_status()
    return response.json()


def test_all_of_it_says_that_it_simulates(client: httpx.Client, simulated: ServerProcess) -> None:
    info = client.get("/server_info").json()
    assert (info["simulated"], info["model"], info["slots"]) == (PACE, "tiny-random-simulated", 64)
    assert info["fingerprint"].startswith("fp_simulated_")
    assert f'roost_simulated{{device="{PACE}"}} 1.0' in client.get("/metrics").text
    log = simulated.log.read_text()
    assert f"simulating {PACE}: no model runs" in log
    assert f"device      {PACE} (simulated)" in log
    assert "compiling" not in log


def test_a_text_is_the_same_each_time_and_ends(client: httpx.Client) -> None:
    first = chat(client, max_tokens=500)
    assert first["choices"][0]["finish_reason"] == "stop"
    assert chat(client, max_tokens=500)["choices"] == first["choices"]
    other = chat(client, max_tokens=50, temperature=1, seed=3, ignore_eos=True)
    assert other["choices"][0]["message"]["content"] != first["choices"][0]["message"]["content"]
    assert other["usage"]["completion_tokens"] == 50


def test_streams_have_the_text_and_the_pace(client: httpx.Client) -> None:
    body = {"messages": ASK, "temperature": 0, "max_tokens": 100, "ignore_eos": True}
    start, texts = time.monotonic(), []
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                texts += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    assert time.monotonic() - start > 99 * 0.002
    assert "".join(texts) == chat(client, max_tokens=100, ignore_eos=True)["choices"][0]["message"]["content"]


def test_stop_strings_schemas_and_log_probabilities_work(client: httpx.Client) -> None:
    text = chat(client, max_tokens=40, ignore_eos=True)["choices"][0]["message"]["content"]
    stop = text[20:24]
    stopped = chat(client, max_tokens=40, ignore_eos=True, stop=stop)["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (text[: text.index(stop)], "stop")
    schema = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    made = json.loads(chat(client, max_tokens=200, response_format=schema)["choices"][0]["message"]["content"])
    assert made["kind"] in ("cat", "dog")
    assert 0 <= made["age"] <= 20
    entries = chat(client, max_tokens=5, ignore_eos=True, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert [len(entry["top_logprobs"]) for entry in entries["content"]] == [2] * 5


def test_a_prompt_that_comes_again_is_a_cache_hit(client: httpx.Client) -> None:
    prompt = {"prompt": "again and again " * 20, "max_tokens": 2}
    first, second = (client.post("/v1/completions", json=prompt).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"]
