"""Counts how many JSON schemas of MaskBench are enforced whole, dropped in part, or refused.

    python benchmarks/schemas.py FOLDER [--json]

FOLDER is `maskbench/data` of JSONSchemaBench (github.com/guidance-ai/jsonschemabench). Each schema is compiled as
`response_format` without `strict` for the demo model's tokens, and counted for the split in its file's name. The exit
status is 1 if FOLDER has no schemas.
"""

import argparse
import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from roost.engine import open_model
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_spec import GrammarError
from roost.server.constraints.output_constraint import schema_spec
from roost.server.errors.request_errors import request_warnings
from roost.server.text.served_model import open_tokenizer


async def unenforced(compiler: GrammarCompiler, schema: Mapping[str, Any]) -> list[str] | None:
    """Returns the keywords of a schema that aren't enforced; None if it is refused."""
    warnings: list[str] = []
    request_warnings.set(warnings)
    try:
        await compiler.compile(schema_spec("", schema))
    except GrammarError:
        return None
    return [warning.removeprefix(": ") for warning in warnings]


def split_of(path: Path) -> str:
    """Returns the split in a file's name: `Github_easy---o1.json` is of Github_easy, and `BFCL_java_1.json` of BFCL."""
    name, dashes, _ = path.name.partition("---")
    return name if dashes else name.partition("_")[0]


async def count(paths: Iterable[Path]) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Returns for each split how many schemas are enforced, dropped in part or refused, and counts dropped keywords."""
    tokenizer = open_tokenizer(open_model("demo"))
    compiler = GrammarCompiler(tokenizer, tokenizer.end_token_ids)
    splits, dropped = defaultdict[str, Counter[str]](Counter), Counter[str]()
    for path in paths:
        found = await unenforced(compiler, orjson.loads(path.read_bytes())["schema"])
        splits[split_of(path)]["refused" if found is None else "in part" if found else "whole"] += 1
        dropped.update(found or ())
    return splits, dropped


def as_table(splits: Mapping[str, Counter[str]]) -> Table:
    columns = ("whole", "in part", "refused")
    table = Table("split", "schemas", *columns, title="schemas that are enforced")
    for name, counts in (*splits.items(), ("all", sum(splits.values(), Counter[str]()))):
        table.add_row(name, str(counts.total()), *(str(counts[column]) for column in columns))
    return table


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--json", action="store_true", help="one line of JSON")
    options = arguments.parse_args()
    splits, dropped = asyncio.run(count(sorted(options.folder.glob("*.json"))))
    if options.json:
        print(orjson.dumps({"splits": splits, "dropped": dropped}).decode())
    elif splits:
        console = Console(width=120)
        console.print(as_table(splits))
        console.print("keywords dropped:", ", ".join(f"{name} {num}" for name, num in dropped.most_common()))
    return 0 if splits else 1


if __name__ == "__main__":
    sys.exit(main())
