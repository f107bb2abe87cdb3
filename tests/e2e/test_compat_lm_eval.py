"""lm-eval over HTTP on a local task: its numbers equal the engine's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from roost import LLM, SamplingParams
from server_process import API_KEY, MODEL, ServerProcess

pytestmark = pytest.mark.compat

DOCUMENTS = [
    {"context": "the boat went", "good": " home", "bad": " to the moon"},
    {"context": "one and one is", "good": " two", "bad": " three hundred"},
    {"context": "a", "good": " b", "bad": " zzz"},
]

SCORED = """\
task: roost_scored
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{[good, bad]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

GENERATED = """\
task: roost_generated
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{good}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    for name, text in (("scored", SCORED), ("generated", GENERATED)):
        (tmp_path / f"{name}.yaml").write_text(text.format(data=data))
    return tmp_path


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"x-api-key": API_KEY}, timeout=60) as client:
        yield client


def evaluate(tasks: Path, task: str, model: str, address: str, *options: str, **arguments: Any) -> list[dict[str, Any]]:
    """Runs lm-eval as users do, and returns its results per document."""
    given = {"model": MODEL, "base_url": address, **arguments}
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task, "--include_path", str(tasks)]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
    command += ["--output_path", str(tasks / "out"), "--log_samples", *options]
    home = {"HF_HOME": str(tasks / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **home, "OPENAI_API_KEY": API_KEY}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    (samples,) = (tasks / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def loglikelihood(client: httpx.Client, context: str, continuation: str) -> float:
    """Returns the engine's own log-likelihoods by token ids."""

    def ids(text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        return client.post("/tokenize", json=body).raise_for_status().json()["tokens"]

    body = {"token_ids": ids(context + continuation), "prompt_logprobs": 0, "max_tokens": 0}
    choice = client.post("/generate", json=body).raise_for_status().json()["choices"][0]
    return float(sum(choice["prompt_logprobs"]["own"][len(ids(context)) :]))


def test_loglikelihoods_are_the_engines(tasks: Path, server: ServerProcess, client: httpx.Client) -> None:
    address = f"{server.url}/v1/completions"
    samples = evaluate(tasks, "roost_scored", "local-completions", address, auth_token=API_KEY)
    assert len(samples) == len(DOCUMENTS)
    for sample in samples:
        doc = sample["doc"]
        assert [each["arg_1"] for each in sample["arguments"].values()] == [doc["good"], doc["bad"]]
        got = [response[0] for response in sample["filtered_resps"]]
        wanted = [loglikelihood(client, doc["context"], doc[name]) for name in ("good", "bad")]
        assert [float(value) for value in got] == pytest.approx(wanted, abs=1e-4)


def test_chat_generates(tasks: Path, server: ServerProcess, client: httpx.Client) -> None:
    address = f"{server.url}/v1/chat/completions"
    samples = evaluate(tasks, "roost_generated", "local-chat-completions", address, "--apply_chat_template")
    for sample in samples:
        body = {
            "messages": [{"role": "user", "content": sample["doc"]["context"]}],
            "max_tokens": 6,
            "temperature": 0,
            "stop": ["\n\n"],
        }
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        assert sample["resps"] == [[answer["choices"][0]["message"]["content"]]]


def test_a_model_without_a_server_scores_alike(tasks: Path, tiny_config: Path) -> None:
    """`examples/lm_eval_model.py` gives lm-eval the numbers of `LLM`."""
    example = Path(__file__).parents[2] / "examples" / "lm_eval_model.py"
    home = {"HF_HOME": str(tasks / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-P", str(example), "run", "--model", "roost", "--tasks", "roost_scored,roost_generated"]
    command += ["--model_args", f"model=random:{tiny_config},slots=4,prefill_chunk=128"]
    command += ["--include_path", str(tasks), "--output_path", str(tasks / "out"), "--log_samples"]
    run = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    (scored,) = (tasks / "out").rglob("samples_roost_scored_*.jsonl")
    (generated,) = (tasks / "out").rglob("samples_roost_generated_*.jsonl")
    with LLM(f"random:{tiny_config}", slots=4, prefill_chunk=128) as llm:
        for sample in map(json.loads, scored.read_text().splitlines()):
            doc = sample["doc"]
            wanted = llm.score([(doc["context"], doc["good"]), (doc["context"], doc["bad"])])
            assert [float(response[0]) for response in sample["filtered_resps"]] == [each.logprob for each in wanted]
        for sample in map(json.loads, generated.read_text().splitlines()):
            params = SamplingParams(max_tokens=6, temperature=0.0, stop=["\n\n"])
            assert sample["resps"] == [[llm.generate(sample["doc"]["context"], params)[0].outputs[0].text]]
