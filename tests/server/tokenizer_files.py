"""Generates files of tiny tokenizers."""

import io
from typing import Any

import sentencepiece
import tokenizers

PROSE = """The river was low that summer, and the children walked across it.
Nobody in the village had seen 1, 2 or 37 boats there before.
user
model
"Will it rain?" asked the model of the user. It rained on the 4th day.
A letter came with the news: the bridge would be built after all.
"""


def train_sentencepiece(**options: Any) -> bytes:
    """Returns a tiny Gemma-like model: BPE with byte fallback, turn marks and the newline as user-defined pieces."""
    gemma_like: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 400,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n", "<table>"],
        "byte_fallback": True,
        "split_digits": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.splitlines() * 20), model_writer=model, **(gemma_like | options)
    )
    return model.getvalue()


def hf_json(
    decoder: tokenizers.decoders.Decoder | None = None,
    normalizer: tokenizers.normalizers.Normalizer | None = None,
    pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None = None,
) -> bytes:
    """Returns a tokenizer.json as converted from a Gemma-like SentencePiece model."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + list("▁thequickbrownfxjmpsvlazydg")
    pieces = [*names, *dict.fromkeys(letters), "th", "the", "▁the"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: token_id for token_id, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("▁", "the")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizer or tokenizers.normalizers.Replace(" ", "▁")
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder or tokenizers.decoders.ByteFallback()
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in names[:6]])
    tokenizer.add_tokens([tokenizers.AddedToken("\n", normalized=False)])
    tokenizer.enable_truncation(max_length=8)
    return tokenizer.to_str().encode()
