"""Text side of a model: tokenizer, chat template, detokenizer, stop strings, defaults."""
