"""Text side of a model: tokenizer, chat template, grammars, defaults."""
