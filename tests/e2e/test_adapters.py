"""`--lora` serves what `roost convert --lora` writes, bit for bit, and the model's id, root and parent say so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from roost import LLM, SamplingParams
from roost.engine import CheckpointError
from roost.server.model_hub import find_model, huggingface
from safetensors.numpy import save_file
from server_process import PROGRAM, SHAPES, SLOTS, serving
from shared_programs import compiled_once

HF = str(Path(__file__).parents[1] / "golden" / "tiny-a" / "hf")
PROMPT = [2, 5, 7, 11]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "pirate"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "hf"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    matrix = "base_model.model.model.layers.0.mlp_block.up_proj"
    factors = {f"{matrix}.lora_A.weight": (2, 64), f"{matrix}.lora_B.weight": (192, 2)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_it_is_served_as_it_is_converted(adapter: Path, tmp_path: Path) -> None:
    merged = str(tmp_path / "merged")
    command = (sys.executable, *PROGRAM, "convert", HF, merged, "--dtype", "float32", "--lora", f"{adapter}=0.5")
    subprocess.run(command, check=True, capture_output=True)
    fields: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "seed": 7}
    with (
        serving(HF, "--dtype", "float32", "--lora", f"{adapter}=0.5", *SHAPES, programs="golden") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        (model,) = client.get("/v1/models").json()["data"]
        body = {"prompt": PROMPT, "logprobs": 1, "return_token_ids": True, **fields}
        (served,) = client.post("/v1/completions", json=body).json()["choices"]
    assert (model["id"], model["root"], model["parent"]) == ("pirate", "pirate", "hf")
    with compiled_once("golden"):
        llm = LLM(merged, slots=SLOTS, prefill_chunk=128)
    with llm:
        ((own,),) = (
            each.outputs for each in llm.generate({"prompt_token_ids": PROMPT}, SamplingParams(logprobs=1, **fields))
        )
    assert list(own.token_ids) == served["token_ids"]
    assert own.logprobs is not None
    logprobs = [entry[token].logprob for entry, token in zip(own.logprobs, own.token_ids, strict=True)]
    assert logprobs == served["logprobs"]["token_logprobs"]


def test_adapters_are_found_as_models_are(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetched(repo: str, revision: str | None) -> Path:
        asked.append((repo, revision))
        return adapter

    monkeypatch.setattr(huggingface, "fetch", fetched)
    source = find_model(HF, [f"{adapter}=-0.5", "someone/pirate@main=2", str(adapter)])
    assert [(each.name, each.scale) for each in source.adapters] == [("pirate", -0.5), ("pirate", 2.0), ("pirate", 1.0)]
    assert asked == [("someone/pirate", "main")]
    (tmp_path / "a=b").symlink_to(adapter)
    assert find_model(HF, [str(tmp_path / "a=b")]).adapters[0].scale == 1.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing/here/at/all", "nothing/here/at/all: no such directory; --lora takes a folder by PEFT or owner/name"),
        ("some/adapter=much", "some/adapter=much: what follows = must be a number, such as some/adapter=0.5"),
        (f"{HF}=nan", "the scale must be a number, got nan"),
        (HF, r"adapter_config.json: cannot be read \(No such file or directory\); --lora takes a folder by PEFT"),
    ],
)
def test_what_is_no_adapter_is_one_line(reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_model(HF, [reference])
