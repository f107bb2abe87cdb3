"""Writes the Llama that llama.cpp runs: random weights in one of its types, and a vocabulary of made-up words.

Requires the peer's Python: `python llamacpp_model.py FILE.gguf`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from models import FOUR_BITS, LLAMA, RESERVED, Llama, vocabulary


def write_gguf(path: Path, model: Llama, dtype: str = "Q8_0") -> None:
    """Writes random weights of usual sizes, and the vocabulary.

    Args:
      dtype: Type of gguf for all matrices, or one of `FOUR_BITS`, in which llama.cpp quantizes and chooses a type for
        each matrix.

    Raises:
      RuntimeError: llama.cpp cannot quantize the model.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if dtype not in FOUR_BITS:
        write_matrices(path, model, gguf.GGMLQuantizationType[dtype])
        return
    halves = path.with_suffix(".f16.gguf")
    write_matrices(halves, model, gguf.GGMLQuantizationType.F16)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{dtype}")
    if llama_cpp.llama_model_quantize(str(halves).encode(), str(path).encode(), wanted):
        raise RuntimeError(f"llama.cpp cannot quantize {halves} to {dtype}")
    halves.unlink()


def write_matrices(path: Path, model: Llama, kind: gguf.GGMLQuantizationType) -> None:
    """Writes the file, all matrices in `kind` and vectors in float32."""
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
    add_vocabulary(writer, vocabulary(model.vocab_size))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}"])
    chance = np.random.default_rng(0)
    for name, shape in shapes(model).items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        values = chance.standard_normal(shape, np.float32) / np.sqrt(shape[1])
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, words: Sequence[str]) -> None:
    """Adds a vocabulary whose first ids are reserved, so that the server has a text for every token."""
    control = [gguf.TokenType.CONTROL] * RESERVED
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([*control, *[gguf.TokenType.NORMAL] * (len(words) - RESERVED)])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(False)


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


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), LLAMA)
