"""Writes robustness.md: sustained load, survived faults and tried inputs, by one command.

    python tests/robust/robustness.py [--minutes 20] [--sections soak faults fuzz parsers neighbours …] [--seconds 60]

Each section returns rows of counts. Rows are kept in robustness.json, from which the page is written: sections that are
not run keep their previous result with its date. A `note`, a list of lines that somebody added to a section there, is
shown until the section is run again. Exits with 1 if anything failed; failures are in the table too. The
section `led` runs only if it is named, since it requires `pip install atheris`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from attacks import ATTACKS
from results_page import commit
from roost.server.commands.bench.report import machine, now, versions

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
KEPT, PAGE = BENCHMARKS / "robustness.json", BENCHMARKS / "robustness.md"


class Findings(NamedTuple):
    """Result of a section: rows of names and counts, and problems.

    Attributes:
      header: Names of the columns, if there are more than these two.
    """

    rows: Sequence[Sequence[str]]
    problems: Sequence[str]
    header: Sequence[str] = ("", "")


class Section(NamedTuple):
    """A part of the table, and the function that fills it."""

    title: str
    run: Callable[[argparse.Namespace], Findings]


KINDS = {
    "whole": "answers equal to their reference, to the last character",
    "streamed": "streams equal to their reference, some read slowly",
    "left": "streams left at a random event; what was read was right",
    "cancelled": "connections closed at a random time",
    "aborted": "requests aborted from outside",
    "hurried": "requests with too little time",
    "wrong": "bad requests, each answered with a 400 in OpenAI's shape",
    "refused": "requests refused with 429, and tried again when that said so",
}


def soak(options: argparse.Namespace) -> Findings:
    """Runs mixed load; see soak.py."""
    command = [sys.executable, str(HERE / "soak.py"), "--minutes", str(options.minutes), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return Findings([], [f"soak.py failed with status {done.returncode}"])
    result = json.loads(done.stdout)
    first, last = result["memory_mib"]
    rows = [
        ("minutes of mixed load, 16 clients for 4 slots and 8 places to wait", f"{result['seconds'] / 60:.1f}"),
        ("requests", f"{result['requests']:,}"),
        *((text, f"{result['by_kind'].get(kind, 0):,}") for kind, text in KINDS.items()),
        ("tokens generated", f"{result['tokens_generated']:,.0f}"),
        ("answers lost, cut short or different; slots leaked; gauges above 0", f"{len(result['problems'])}"),
        ("programs compiled after the start", f"{result['compiles']:.0f}"),
        ("memory, first and last third of the time (MiB, median)", f"{first:.0f}, {last:.0f}"),
    ]
    return Findings(rows, result["problems"])


def faults(_: argparse.Namespace) -> Findings:
    """Runs each fault of tests/e2e/test_faults.py on a server process."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = HERE.parent / "e2e" / "test_faults.py"
        command = [sys.executable, "-P", "-m", "pytest", str(tests), "-m", "robust", "-q", f"--junitxml={report}"]
        subprocess.run(command, stdout=sys.stderr)
        cases = list(ET.parse(report).iter("testcase"))
    rows, problems = [], []
    for case in cases:
        name = case.attrib["name"].removeprefix("test_").replace("_", " ")
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "survived")
        rows.append((name, outcome))
        if outcome in ("failure", "error"):
            problems.append(name)
    return Findings(rows, problems)


SENT = {
    "values": "good bodies with values, fields or structure changed",
    "text": "JSON with bytes cut, put in, swapped or doubled",
    "requests": "strange methods, paths, headers and types",
    "bytes": "bytes that are hardly HTTP",
}


def fuzz(_: argparse.Namespace) -> Findings:
    """Sends bad requests; see fuzz.py."""
    command = [sys.executable, str(HERE / "fuzz.py"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return Findings([], [f"fuzz.py failed with status {done.returncode}"])
    result = json.loads(done.stdout)
    statuses = ", ".join(f"{count:,} {status}" for status, count in result["by_status"].items())
    rows = [
        ("bad requests to a server process", f"{result['requests']:,}"),
        *((text, f"{result['by_kind'].get(kind, 0):,}") for kind, text in SENT.items()),
        ("what came of them (504: as asked for)", statuses),
        ("wrong statuses or shapes, hangs, crashes, traces, requests left inside", f"{result['num_problems']}"),
        ("seconds", f"{result['seconds']:.0f}"),
    ]
    return Findings(rows, result["problems"])


def parsers(_: argparse.Namespace) -> Findings:
    """Reads broken files; see fuzz_parsers.py."""
    return _broken_files()


def led(options: argparse.Namespace) -> Findings:
    """Reads broken files that atheris makes, guided by coverage."""
    return _broken_files("--atheris", str(options.seconds))


def _broken_files(*arguments: str) -> Findings:
    command = [sys.executable, str(HERE / "fuzz_parsers.py"), "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return Findings([], [f"fuzz_parsers.py failed with status {done.returncode}"])
    result = json.loads(done.stdout)
    rows = [
        ("broken files", f"{result['files']:,}"),
        ("for the parsers of", ", ".join(result["targets"])),
        ("errors that are none of ours, crashes", f"{len(result['problems'])}"),
        ("seconds", f"{result['seconds']:.0f}"),
    ]
    return Findings(rows, result["problems"])


def neighbours(_: argparse.Namespace) -> Findings:
    """Runs attacks of one tenant beside another; see neighbours.py."""
    return _attacked(needs_store=False)


def store_neighbours(_: argparse.Namespace) -> Findings:
    """Runs attacks on files, batches and background responses; see store_attacks.py."""
    return _attacked(needs_store=True)


def _attacked(*, needs_store: bool) -> Findings:
    names = [attack.name for attack in ATTACKS if attack.needs_store == needs_store]
    command = [sys.executable, str(HERE / "neighbours.py"), "--json", "--only", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return Findings([], [f"neighbours.py failed with status {done.returncode}"])
    result = json.loads(done.stdout)
    return Findings(result["rows"], result["problems"], result["header"])


SECTIONS: Mapping[str, Section] = {
    "soak": Section("Load held", soak),
    "faults": Section("Faults survived", faults),
    "fuzz": Section("Inputs tried", fuzz),
    "parsers": Section("Files tried", parsers),
    "neighbours": Section("Neighbours", neighbours),
    "store-neighbours": Section("Neighbours of a store", store_neighbours),
    "led": Section("Files tried, led by the code that they reach", led),
}


def page(kept: Mapping[str, Any]) -> str:
    """Returns the page of all kept results."""
    lines = [
        "# Robustness",
        "",
        "    python tests/robust/robustness.py",
        "",
        "**What**: whether a server stays right under load, faults, broken input and hostile neighbours.",
        "",
        "**How**, by the scripts of [tests/robust](../tests/robust): `soak.py` holds mixed load against answers known",
        "before. A test of [test_faults.py](../tests/e2e/test_faults.py) survives if it passes. `fuzz.py` and",
        "`fuzz_parsers.py` send and load broken input. `neighbours.py` lets one client work as usual while another",
        "one runs the attacks of `attacks.py`, and of `store_attacks.py` on a server with a database.",
        "",
        "**Reading**: a count of errors that is not 0, or a line **Wrong**, is a goal that was missed. Each section",
        "says when and with which tree it was measured. Roost has changed since, unless that is the present tree.",
    ]
    for name, section in SECTIONS.items():
        if name not in kept:
            continue
        found = kept[name]
        where = ", ".join(filter(None, (found["date"], f"tree {found['tree']}", found["machine"], found["versions"])))
        lines += ["", f"## {section.title}", "", f"{where}.", *found.get("note", ()), ""]
        header = found.get("header", ["", ""])
        lines += [_line(header), f"| --- |{' ---: |' * (len(header) - 1)}", *map(_line, found["rows"])]
        lines += [f"\n**Wrong**: {problem}" for problem in found["problems"]]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def describe(findings: Findings) -> dict[str, Any]:
    """Returns the kept result of a section."""
    here, installed = machine(), versions()
    return {
        "date": now()[:10],
        "tree": commit(),
        "machine": f"{here['cpus']} cores of {here['cpu']}",
        "versions": ", ".join(f"{name} {installed[name]}" for name in ("python", "jax") if name in installed),
        "header": findings.header,
        "rows": findings.rows,
        "problems": findings.problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of the soak")
    parser.add_argument("--seconds", type=int, default=60, help="of each parser's files that are led")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[name for name in SECTIONS if name != "led"])
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for name in options.sections:
        kept[name] = describe(SECTIONS[name].run(options))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(page(kept))
    return 1 if any(kept[name]["problems"] for name in options.sections) else 0


if __name__ == "__main__":
    sys.exit(main())
