"""Contestant: llama.cpp through llama-cpp-python, with a Llama of the same size in Q8_0.

llama.cpp has no RecurrentGemma. The GGUF file is written here, with random weights. Batches are assembled by hand, like
llama.cpp's server does.
"""

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from models import LLAMA, Llama
from protocol import Command, answer_all, draw_prompts, versions

BATCH = 512
"""Maximum number of tokens in one call: the library's default."""


def write_gguf(path: Path, model: Llama) -> None:
    """Writes random weights of usual sizes, all matrices in Q8_0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(model.depth)
    writer.add_context_length(model.max_length)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.mlp_width)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    chance = np.random.default_rng(0)
    for name, shape in shapes(model).items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        values = chance.standard_normal(shape, np.float32) / np.sqrt(shape[1])
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes(model: Llama) -> dict[str, tuple[int, ...]]:
    """Yields the shapes of all tensors by llama.cpp's names; the unembedding is the embedding."""
    d, f, q, kv = model.width, model.mlp_width, model.heads * model.head_size, model.kv_heads * model.head_size
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (model.vocab_size, d), "output_norm.weight": (d,)}
    layer = {
        "attn_norm": (d,),
        "attn_q": (q, d),
        "attn_k": (kv, d),
        "attn_v": (kv, d),
        "attn_output": (d, q),
        "ffn_norm": (d,),
        "ffn_gate": (f, d),
        "ffn_up": (f, d),
        "ffn_down": (d, f),
    }
    for number in range(model.depth):
        found |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


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
    path = Path(wanted["folder"]) / "model.gguf"
    write_gguf(path, LLAMA)
    peer = Peer(path, wanted["rows"], wanted["length"], wanted["threads"])
    facts = {
        "parameters": peer.num_parameters,
        "dtype": "Q8_0",
        "versions": versions(("llama-cpp-python", "gguf")),
    }
    return facts, {"warm": peer.warm, "decode": peer.decode}


if __name__ == "__main__":
    answer_all(start)
