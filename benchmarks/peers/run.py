"""Measures Roost and its peers with the same tasks on this machine, in turn.

    python benchmarks/peers/run.py [--only NAME …] [--quick] [--json FILE] [--results benchmarks/RESULTS.md]

Run it with Roost's own Python (`.venv/bin/python`). The first run creates an environment for every peer under
`build/peers`, from locked requirements; torch is installed by name, from where pip finds it: pass `--index-url` with an
index of builds for CPUs, if pip's default has others. A peer that cannot be installed or crashes loses its own rows
only. All contestants of a stage are loaded once; while one is timed, the others are suspended.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from environments import HERE, WORK, lock_all, say
from measure import Found, Options, expected_seconds, measure, pin
from page import draw, draw_targets, markdown, tables
from plan import FAMILIES
from rich.console import Console
from roost.server.commands.bench.report import opening

sys.path.append(str(HERE.parent))
from results_page import commit

BUSY = 0.5
"""Load average from which on timings are unreliable."""

FEATURES = ("amx_tile", "amx_int8", "amx_bf16", "avx512f", "avx512_bf16", "avx512_vnni", "avx2")
"""Features of processors that these programs use."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME",
                           help=f"some rows: {', '.join(FAMILIES)}")  # fmt: skip
    arguments.add_argument("--rounds", type=int, default=2, help="of each piece of work (2)")
    arguments.add_argument("--threads", type=int, default=2, help="cores that everybody gets (2)")
    arguments.add_argument("--quick", action="store_true", help="a smoke run: short, one round, numbers mean nothing")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    arguments.add_argument("--from-json", type=Path, metavar="FILE", help="show that, and measure nothing")
    arguments.add_argument("--results", type=Path, metavar="FILE.md", help="a page; beside it, its pictures")
    arguments.add_argument("--index-url", metavar="URL", help="where pip finds torch for a CPU")
    arguments.add_argument("--lock", action="store_true", help="resolve requirements/*.txt anew, with uv; nothing else")
    options = arguments.parse_args()
    if options.rounds < 1 or options.threads < 1:
        arguments.error("--rounds and --threads must be at least 1")
    if options.lock:
        lock_all()
        return 0
    check(arguments, options)
    document = orjson.loads(options.from_json.read_bytes()) if options.from_json else run(options)
    if options.json and not options.from_json:
        options.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(document):
        console.print(table)
    if options.results:
        write_page(document, options.results)
    return 130 if document["interrupted"] else 0


def check(arguments: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks, before anything slow, for problems that would fail the run later."""
    for file in (options.json, options.results):
        if file is not None and not file.resolve().parent.is_dir():
            arguments.error(f"{file}: give a file in a folder that exists")


def run(options: argparse.Namespace) -> Mapping[str, Any]:
    """Measures; after Ctrl-C it returns what there is so far."""
    with tempfile.TemporaryDirectory(prefix="roost-peers-") as folder:
        wanted = Options(
            families=options.only,
            rounds=1 if options.quick else options.rounds,
            quick=options.quick,
            threads=options.threads,
            index=["--index-url", options.index_url] if options.index_url else [],
            work=WORK,
            cache=Path(folder),
            logs=WORK,
        )
        kept = {"families": wanted.families, "rounds": wanted.rounds, "quick": wanted.quick, "threads": wanted.threads}
        document = opening("peers", kept)
        document["machine"] = {**document["machine"], "features": features()}
        document["tree"] = commit()
        if document["machine"]["load_average"] > BUSY:
            say(f"this machine is busy (load average {document['machine']['load_average']:.1f}): timings say little")
        say(f"this takes about {expected_seconds(wanted) / 60:.0f} minutes, and more where environments are missing")
        pin(wanted.threads)
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # contestants are ended, and the measurements so far are reported
        found, began, interrupted = Found(), time.perf_counter(), False
        try:
            measure(wanted, found)
        except KeyboardInterrupt:
            interrupted = True
        except Exception:  # a bug of Roost must not lose earlier measurements
            traceback.print_exc()
            interrupted = True
    return {**document, "seconds": time.perf_counter() - began, "interrupted": interrupted, **asdict(found)}


def features() -> list[str]:
    """Returns this processor's relevant features; none if the system does not report them."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return [name for name in FEATURES if name in flags]


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Writes the page, and its pictures in files next to it that have its name."""
    pictures = {
        "tokens per second": (f"{path.stem}.svg", draw(document)),
        "time between tokens against throughput": (f"{path.stem}-targets.svg", draw_targets(document)),
    }
    figures = {}
    for title, (name, svg) in pictures.items():
        if svg is not None:
            path.with_name(name).write_text(svg)
            figures[title] = name
    path.write_text(markdown(document, figures))


if __name__ == "__main__":
    sys.exit(main())
