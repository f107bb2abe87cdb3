"""Contestant: llama.cpp through llama-cpp-python, with a Llama of the same size.

llama.cpp has no RecurrentGemma. Batches are assembled by hand, like llama.cpp's server does.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llamacpp_model import write_gguf
from models import FOUR_BIT_LLAMA, FOUR_BITS, LLAMA
from protocol import Command, answer_all, draw_prompts, versions

BATCH = 512
"""Maximum number of tokens in one call: the library's default."""


class Peer:
    """A model, and a context with room for several sequences."""

    def __init__(self, path: Path, rows: int, length: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp cannot load the file")
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max, wanted.n_batch, wanted.n_ubatch = rows * length, rows, BATCH, BATCH
        wanted.n_threads = wanted.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, wanted)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    @property
    def num_parameters(self) -> int:
        return int(llama_cpp.llama_model_n_params(self.model))

    def warm(self) -> None:
        self.decode(2, 16, 8, 0)

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Prefills the prompts one after the other, then decodes all together, greedily."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = time.perf_counter()
        tokens = [self.read(row, ids) for row, ids in enumerate(draw_prompts(rows, prompt, LLAMA.vocab_size, seed))]
        first = time.perf_counter()
        for step in range(new - 1):
            self.run([(token, prompt + step, row, True) for row, token in enumerate(tokens)])
            tokens = [self.likeliest(row) for row in range(rows)]
        end = time.perf_counter()
        return {
            "decode_tokens_per_s": rows * (new - 1) / (end - first),
            "prefill_tokens_per_s": rows * prompt / (first - start),
            "step_ms": 1e3 * (end - first) / (new - 1),
        }

    def read(self, row: int, ids: Sequence[int]) -> int:
        """Prefills a prompt and returns the token after it."""
        for begin in range(0, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            self.run([(token, begin + place, row, begin + place == len(ids) - 1) for place, token in enumerate(part)])
        return self.likeliest(len(part) - 1)

    def run(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Runs tokens, each with its position, its sequence, and whether its logits are needed."""
        self.batch.n_tokens = len(entries)
        for place, (token, position, row, wanted) in enumerate(entries):
            self.batch.token[place] = token
            self.batch.pos[place] = position
            self.batch.n_seq_id[place] = 1
            self.batch.seq_id[place][0] = row
            self.batch.logits[place] = wanted
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")

    def likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        pointer = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(pointer, (LLAMA.vocab_size,)).argmax())


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    path = Path(wanted["folder"]) / f"{wanted['dtype']}.gguf"
    write_gguf(path, FOUR_BIT_LLAMA if wanted["dtype"] in FOUR_BITS else LLAMA, wanted["dtype"])
    peer = Peer(path, wanted["rows"], wanted["length"], wanted["threads"])
    facts = {
        "parameters": peer.num_parameters,
        "dtype": wanted["dtype"],
        "versions": versions(("llama-cpp-python", "gguf")),
    }
    return facts, {"warm": peer.warm, "decode": peer.decode}


if __name__ == "__main__":
    answer_all(start)
