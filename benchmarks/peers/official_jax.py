"""Contestant: the official JAX sampler of the package `recurrentgemma`, at its best on a CPU.

Its scan is the associative one, since the default, unrolled 128 times, takes half a minute to compile for each prompt
length and is no faster. The sampler's two compiled halves are called like its own `__call__` does, to time them apart.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from models import GRIFFINS
from models import Griffin as Shape
from protocol import Command, answer_all, draw_prompts, versions
from recurrentgemma import jax as recurrentgemma

PAD, EOS, BOS = 0, 1, 2


class Vocabulary:
    """Tokenizer whose texts are token ids separated by blanks."""

    def pad_id(self) -> int:
        return PAD

    def eos_id(self) -> int:
        return EOS

    def bos_id(self) -> int:
        return BOS

    def EncodeAsIds(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def DecodeIds(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Peer:
    """A model with random weights, and its sampler."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.shape = shape
        kinds = {
            "recurrent": recurrentgemma.TemporalBlockType.RECURRENT,
            "attention": recurrentgemma.TemporalBlockType.ATTENTION,
        }
        config = recurrentgemma.GriffinConfig(
            vocab_size=shape.vocab_size,
            width=shape.width,
            mlp_expanded_width=shape.mlp_width,
            num_heads=shape.heads,
            lru_width=shape.width,
            block_types=tuple(kinds[block] for block in shape.block_types),
            embeddings_scale_by_sqrt_dim=True,
            attention_window_size=shape.window,
            logits_soft_cap=30.0,
            scan_type=recurrentgemma.ScanType.ASSOCIATIVE_NATIVE,
        )
        kind = jnp.dtype(dtype)
        self.model = recurrentgemma.Griffin(config, dtype=kind, param_dtype=kind, gradient_checkpointing=False)
        tokens, positions = jnp.zeros((1, 4), jnp.int32), jnp.arange(4)[None]
        self.params = jax.jit(self.model.init)(jax.random.key(0), tokens, positions)["params"]
        self.sampler: Any = recurrentgemma.Sampler(
            model=self.model, vocab=Vocabulary(), params=self.params, is_it_model=False
        )

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def read(self, prompts: Sequence[Sequence[int]], new: int, logits: bool = False) -> Any:
        """Runs the sampler's first half: prefills the prompts and samples one token of each."""
        padded = self.sampler._get_padded_tokens([jnp.asarray(ids, jnp.int32) for ids in prompts])
        lengths = jnp.asarray([len(ids) for ids in prompts])
        return jax.block_until_ready(
            self.sampler.prompt_processing_fn(self.params, padded, None, lengths, new, logits, False)
        )

    def go_on(self, state: Any) -> Any:
        """Runs the sampler's second half: all other tokens."""
        return jax.block_until_ready(self.sampler.sample_fn(self.params, state, False))

    def warm(self) -> None:
        self.go_on(self.read(draw_prompts(2, 16, self.shape.vocab_size, 0), 8))

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        prompts = draw_prompts(rows, prompt, self.shape.vocab_size, seed)
        start = time.perf_counter()
        state = self.read(prompts, new)
        first = time.perf_counter()
        self.go_on(state)
        end = time.perf_counter()
        return {
            "decode_tokens_per_s": rows * (new - 1) / (end - first),
            "prefill_tokens_per_s": rows * prompt / (first - start),
            "step_ms": 1e3 * (end - first) / (new - 1),
        }

    def agree(self, prompts: Sequence[Sequence[int]], new: int) -> Mapping[str, Any]:
        """Returns the tokens after each prompt alone and in one batch, and how many new tokens it returns."""
        texts = [" ".join(map(str, ids)) for ids in prompts]
        handed = self.sampler(texts, new, end_sampling_at_eos_token=False).tokens
        return {
            "alone": [self.say([ids], new)[0] for ids in prompts],
            "together": self.say(prompts, new),
            "handed_out": [len(tokens) for tokens in handed],
        }

    def say(self, prompts: Sequence[Sequence[int]], new: int) -> list[Mapping[str, Any]]:
        state = self.read(prompts, new, logits=True)
        logprobs = jax.nn.log_softmax(state.logits_buffer[:, 0].astype(jnp.float32))
        tokens = self.go_on(state).tokens_buffer
        values, ids = jax.lax.top_k(logprobs, 20)
        return [
            {"tokens": row.tolist(), "top": dict(zip(map(str, top.tolist()), best.tolist(), strict=True))}
            for row, top, best in zip(tokens, ids, values, strict=True)
        ]


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    peer = Peer(GRIFFINS[wanted["model"]], wanted["dtype"])
    facts = {
        "parameters": peer.num_parameters,
        "dtype": wanted["dtype"],
        "versions": versions(("recurrentgemma", "jax", "flax")),
    }
    return facts, {"warm": peer.warm, "decode": peer.decode, "agree": peer.agree}


if __name__ == "__main__":
    answer_all(start)
