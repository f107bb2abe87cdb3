"""Generates for each row of a JSONL file on many chips with Ray Data, and goes on after a crash.

    pip install 'ray[data]'
    python examples/ray_data.py IN.jsonl OUT --model demo --actors 2
    python examples/ray_data.py IN.jsonl OUT --url http://replica-1:8000 --url http://replica-2:8000

Rows are objects with `id` and `prompt`. OUT becomes a folder of JSONL files with `id` and `text`, one for each batch,
each written at once. The same command again leaves out the rows that are there; Ray itself repeats the batches of an
actor that dies.

With `--model`, each actor has a model on a chip of its own: `--resources '{"TPU": 1}'` on TPUs, `--gpus 1` on NVIDIA
GPUs. With `--url`, actors send their batches to servers.
"""

import argparse
import hashlib
import json
import os
import random
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from roost import LLM, SamplingParams


class LocalModel:
    """Generates on a model in this process."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self.llm = LLM(model)
        self.params = SamplingParams(max_tokens=max_tokens)

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Returns the text after each prompt."""
        outputs = self.llm.generate(prompts, self.params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


class Servers:
    """Generates on servers, one of which gets each batch. The server's `ROOST_API_KEY` is used if it is set."""

    def __init__(self, urls: Sequence[str], max_tokens: int) -> None:
        self.urls = urls
        self.max_tokens = max_tokens

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Returns the text after each prompt."""
        body = json.dumps({"prompt": prompts, "max_tokens": self.max_tokens}).encode()
        headers = {"content-type": "application/json"}
        if key := os.environ.get("ROOST_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        while True:
            request = urllib.request.Request(f"{random.choice(self.urls)}/v1/completions", body, headers)
            try:
                with urllib.request.urlopen(request) as response:
                    return [choice["text"] for choice in json.load(response)["choices"]]
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503):  # the queue is full, or the server is starting or shutting down
                    raise
                time.sleep(float(error.headers.get("retry-after", 1)))


class WriteTexts:
    """Actor that generates for batches and writes each into a file of its own.

    Args:
      folder: Folder of the files.
      urls: Servers to ask; none runs `model` in this process.
    """

    def __init__(self, folder: str, model: str, urls: Sequence[str], max_tokens: int) -> None:
        self.folder = Path(folder)
        self.backend = Servers(urls, max_tokens) if urls else LocalModel(model, max_tokens)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ids = [str(each) for each in batch["id"]]
        texts = self.backend.texts([str(prompt) for prompt in batch["prompt"]])
        lines = [json.dumps({"id": row_id, "text": text}) for row_id, text in zip(ids, texts, strict=True)]
        write_whole(self.folder / f"{hashlib.sha256(json.dumps(ids).encode()).hexdigest()}.jsonl", "\n".join(lines))
        return {"id": batch["id"]}


def write_whole(path: Path, text: str) -> None:
    """Writes a file, which is there whole or not at all. A batch that is repeated replaces its file."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text + "\n")
    Path(file.name).replace(path)


def finished_ids(folder: Path) -> Iterator[str]:
    """Yields the ids of the rows that are done."""
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            yield json.loads(line)["id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--url", action="append", default=[], help="server to ask instead; may be given several times")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
    parser.add_argument("--resources", type=json.loads, default={}, help="other resources of each actor, as JSON")
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    done = frozenset(finished_ids(options.output))
    rows = [json.loads(line) for line in options.input.read_text().splitlines()]
    rows = [row for row in rows if str(row["id"]) not in done]
    print(f"{len(done)} rows are done, {len(rows)} are left")
    if not rows:
        return
    ray.init(ignore_reinit_error=True)
    written = ray.data.from_items(rows).map_batches(
        WriteTexts,
        fn_constructor_args=(str(options.output.resolve()), options.model, options.url, options.max_tokens),
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        batch_size=options.batch_size,
        num_gpus=options.gpus,
        resources=options.resources,
    )
    print(f"{written.count()} rows were written to {options.output}")


if __name__ == "__main__":
    main()
