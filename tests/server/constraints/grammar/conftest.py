"""The demo model's tokenizer and its grammar compiler."""

import json
from pathlib import Path

import pytest
from roost import configs
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def demo_tokenizer() -> Tokenizer:
    directory = Path(configs.__path__[0]) / "demo"
    return load_tokenizer(directory, json.loads((directory / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="session")
def compiler(demo_tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(demo_tokenizer, demo_tokenizer.end_token_ids)
