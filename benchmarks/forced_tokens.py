"""Counts how many tokens of outputs under a JSON schema are forced, and how many a draft of them would have had right.

    python benchmarks/forced_tokens.py FOLDER [--schemas 50] [--tokens 256]

FOLDER is `maskbench/data` of JSONSchemaBench (github.com/guidance-ai/jsonschemabench). The demo model answers at
temperature 1 under schemas chosen at random. Then each output is followed once more: wherever the grammar forces the
next text, the first tokens of that text, as llguidance spells it, are compared with the output's.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from llguidance import LLMatcher
from roost import LLM, SamplingParams, StructuredOutputsParams
from roost.engine import open_model
from roost.server.constraints.grammar_process import exact_token_ids, vocabulary_of
from roost.server.constraints.grammar_spec import GrammarError
from roost.server.constraints.grammar_worker.follow import WorkerTokenizer, compile_grammar
from roost.server.constraints.grammar_worker.protocol import GrammarFailure
from roost.server.constraints.output_constraint import schema_spec
from roost.server.text.served_model import open_tokenizer

PROMPT = "Write an example as JSON:\n"
DRAFT = 7
"""Maximum number of tokens of a draft."""


class Counts(NamedTuple):
    """Numbers of tokens.

    Attributes:
      tokens: Tokens of the outputs.
      forced: Tokens before which the grammar forced the text.
      drafted: Tokens of the drafts at all of these places.
      right: Drafted tokens that the output has, up to the first that it has not.
    """

    tokens: int = 0
    forced: int = 0
    drafted: int = 0
    right: int = 0


def matcher_of(schema: dict[str, Any], tokenizer: WorkerTokenizer) -> LLMatcher | None:
    """Returns a matcher of a schema as the server compiles it; None if it refuses the schema."""
    try:
        spec = schema_spec("", schema)
        return compile_grammar(tokenizer.library, spec.notation, spec.source)
    except (GrammarError, GrammarFailure):
        return None


def places(matcher: LLMatcher, token_ids: Sequence[int]) -> Iterator[Counts]:
    """Yields the counts of each token of an output."""
    for place, token_id in enumerate(token_ids):
        draft, following = matcher.compute_ff_tokens()[:DRAFT], token_ids[place : place + DRAFT]
        right = next((n for n, pair in enumerate(zip(draft, following, strict=False)) if pair[0] != pair[1]), None)
        drafted = min(len(draft), len(following))
        yield Counts(1, bool(draft), drafted, drafted if right is None else right)
        if not matcher.try_consume_tokens([token_id]):  # an end token
            return


def schemas(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields all schemas of a folder, in an order that is always the same."""
    paths = sorted(folder.glob("*.json"))
    random.Random(1).shuffle(paths)
    return (orjson.loads(path.read_bytes())["schema"] for path in paths)


def count(found: Iterable[dict[str, Any]], num_schemas: int, num_tokens: int) -> Counts:
    """Returns the sums over outputs under the first schemas that the server takes."""
    tokenizer = open_tokenizer(open_model("demo"))
    worker_tokenizer = WorkerTokenizer(vocabulary_of(tokenizer, tokenizer.end_token_ids))
    worker_tokenizer.tokenize = partial(exact_token_ids, tokenizer)
    llm, total, seed = LLM("demo"), Counts(), 0
    for schema in found:
        if seed == num_schemas:
            break
        if (matcher := matcher_of(schema, worker_tokenizer)) is None:
            continue
        params = SamplingParams(
            temperature=1.0, seed=seed, max_tokens=num_tokens, structured_outputs=StructuredOutputsParams(json=schema)
        )
        (answer,) = llm.generate(PROMPT, params, use_tqdm=False)
        for each in places(matcher, answer.outputs[0].token_ids):
            total = Counts(*(a + b for a, b in zip(total, each, strict=True)))
        seed += 1
    return total


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--schemas", type=int, default=50)
    arguments.add_argument("--tokens", type=int, default=256)
    options = arguments.parse_args()
    total = count(schemas(options.folder), options.schemas, options.tokens)
    if not total.drafted:
        print(f"{options.folder}: no schema forces any text", file=sys.stderr)
        return 1
    print(f"forced: {total.forced} of {total.tokens} tokens, {total.forced / total.tokens:.0%}")
    print(f"drafts: {total.right} of {total.drafted} tokens right, {total.right / total.drafted:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
