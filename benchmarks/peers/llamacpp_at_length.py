"""Contestant: llama.cpp at given context lengths, with a Llama of the same size.

Its sequences don't have to generate all the way to a length: one reads a prompt that long, and its KV cache is copied
to the others. Each has its own copy, as independent requests would, so a step costs what it would cost them.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
from llamacpp import Peer, write_gguf
from models import LLAMA
from protocol import Command, answer_all, draw_prompts, versions


class LongPeer(Peer):
    """A model whose sequences grow together."""

    def grow(self, rows: int, lengths: Sequence[int], window: int, seed: int) -> Mapping[str, Any]:
        """Returns the speed of some steps right in the middle of the last tokens before each length.

        Args:
          window: Number of steps. The last tokens before a length are as many, or an eighth of the length if that is
            more, as with Roost.
        """
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        ids = draw_prompts(1, max(lengths), LLAMA.vocab_size, seed)[0]
        done, rates = 0, []
        for length in lengths:
            begin = length - max(window, length // 8) // 2 - window // 2
            token = self.read_on(ids, done, begin)
            self.copy_first(rows)
            rates.append(self.rate([token] * rows, begin, window))
            llama_cpp.llama_memory_seq_rm(memory, 0, begin, -1)
            done = begin
        return {"tokens_per_s": rates}

    def read_on(self, ids: Sequence[int], begin: int, end: int) -> int:
        """Reads tokens of the first sequence, and returns the one that follows."""
        size = int(llama_cpp.llama_n_batch(self.context))
        for first in range(begin, end, size):
            last = min(first + size, end)
            self.run([(ids[place], place, 0, place == end - 1) for place in range(first, last)])
        return self.likeliest(last - first - 1)

    def copy_first(self, rows: int) -> None:
        """Gives every other sequence a copy of the first one's KV cache."""
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        buffer = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.context, buffer, size, 0)
        for row in range(1, rows):
            if not llama_cpp.llama_state_seq_set_data(self.context, buffer, size, row):
                raise RuntimeError("llama.cpp cannot copy a sequence")

    def rate(self, tokens: Sequence[int], position: int, steps: int) -> float:
        """Returns the tokens per second of all sequences over some steps, without the first one, which warms up."""
        began = 0.0
        for step in range(steps):
            self.run([(token, position + step, row, True) for row, token in enumerate(tokens)])
            tokens = [self.likeliest(row) for row in range(len(tokens))]
            began = began or time.perf_counter()
        return len(tokens) * (steps - 1) / (time.perf_counter() - began)


def converted(path: Path, kind: str) -> Path:
    """Returns a file with all matrices in another number format; the weights are random anyway."""
    target = path.with_name(f"{kind}.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot convert the weights to {kind}")
    return target


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    path = Path(wanted["folder"]) / "long.gguf"
    write_gguf(path, replace(LLAMA, max_length=wanted["length"]))
    peer = LongPeer(converted(path, wanted["kind"]), wanted["rows"], wanted["length"], wanted["threads"])
    facts = {"parameters": peer.num_parameters, "versions": versions(("llama-cpp-python", "gguf"))}
    return facts, {"warm": peer.warm, "grow": peer.grow}


if __name__ == "__main__":
    answer_all(start)
