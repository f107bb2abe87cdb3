"""AIPerf, NVIDIA's load generator for servers of language models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import API_KEY, ServerProcess
from tokenizers import Tokenizer, models, pre_tokenizers

NUM_REQUESTS, NUM_TOKENS = 6, 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes for AIPerf's prompts, which would otherwise download one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("streaming", [True, False])
def test_profile(server: ServerProcess, tokenizer: Path, tmp_path: Path, endpoint: str, streaming: bool) -> None:
    """All requests succeed with the requested lengths."""
    command = [str(Path(sys.executable).parent / "aiperf"), "profile", "--model", "demo", "--url", server.url]
    command += ["--api-key", API_KEY, "--endpoint-type", endpoint, *(["--streaming"] if streaming else [])]
    command += ["--tokenizer", str(tokenizer), "--use-server-token-count", "--isl", "50", "--osl", str(NUM_TOKENS)]
    command += ["--request-count", str(NUM_REQUESTS), "--concurrency", "2", "--workers-max", "1", "--ui", "none"]
    command += ["--extra-inputs", f"min_tokens:{NUM_TOKENS}", "--output-artifact-dir", str(tmp_path / "out")]
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name)  # with them, AIPerf only accepts names of the hub, not folders
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    found = json.loads(path.read_text())
    assert found["request_count"]["avg"] == NUM_REQUESTS
    assert not found.get("error_summary")
    assert found["output_sequence_length"]["avg"] == NUM_TOKENS
