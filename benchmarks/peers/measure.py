"""Runs the plan: loads the contestants of a stage, and lets them work in turn while the others are suspended."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contestants import Contestant, ContestantError
from environments import ENVIRONMENTS, HERE, CannotInstall, prepare, say
from models import GRIFFINS
from plan import PACE, Entrant, Ref, Task, entrants, pairs_of, tasks

LOAD_SECONDS = RUN_SECONDS = 1200.0


@dataclass
class Options:
    """Options of a measurement.

    Attributes:
      families: Families of rows.
      index: pip's options for finding torch.
      logs: Folder for the contestants' stderr.
    """

    families: Sequence[str]
    rounds: int
    quick: bool
    threads: int
    index: Sequence[str]
    work: Path
    cache: Path
    logs: Path


@dataclass
class Found:
    """Measurements so far.

    Attributes:
      entrants: Facts by contestant, or under `failure` why it takes no part.
      runs: Results by task and contestant, one for each round; None for a failed one.
      failures: Reasons by task and contestant.
    """

    entrants: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)


def expected_seconds(options: Options) -> float:
    """Returns the approximate seconds of everything on a machine like the author's."""
    every, work = entrants("", 1), tasks("", "")
    pairs = pairs_of(options.families)
    loading = sum(every[name].seconds for name in {name for _, name in pairs})
    rounds = options.rounds if not options.quick else 0.3
    return loading + sum(
        work[task].seconds[name] * ((1 if work[task].once else rounds) + every[name].rehearses) for task, name in pairs
    )


def measure(options: Options, found: Found) -> None:
    """Runs all tasks; `found` can be read at any time, also after an interruption."""
    write_configs(options.work)
    every = entrants(str(options.work), options.threads)
    work = tasks(str(options.work), str(options.cache))
    pairs = pairs_of(options.families)
    for stage in dict.fromkeys(every[name].stage for _, name in pairs):
        mine = [(task, name) for task, name in pairs if every[name].stage == stage]
        Stage(options, found, {name: every[name] for _, name in mine}, work).run(mine)


def write_configs(work: Path) -> None:
    """Writes a `config.json` for each model in Hugging Face's format."""
    for name, shape in GRIFFINS.items():
        path = work / name / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(shape.hf_config("float32"), indent=2))


class Stage:
    """Contestants that are loaded at the same time, and suspended unless it is their turn."""

    def __init__(self, options: Options, found: Found, every: Mapping[str, Entrant], work: Mapping[str, Task]) -> None:
        self.options = options
        self.found = found
        self.every = every
        self.work = work
        self.alive: dict[str, Contestant] = {}

    def run(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Loads all contestants, runs every task in rounds, and ends them."""
        try:
            for name in self.every:
                self.load(name)
            self.rehearse(pairs)
            for number in range(self.options.rounds):
                for task, name in pairs:
                    if number == 0 or not self.work[task].once:
                        self.turn(task, name, number)
        finally:
            for contestant in self.alive.values():
                contestant.close()

    def load(self, name: str) -> None:
        entrant, began = self.every[name], time.perf_counter()
        facts = self.found.entrants[name] = {"title": entrant.title}
        say(f"loading {entrant.title}")
        try:
            contestant = self.alive[name] = self.spawn(name, self.interpreter(entrant))
            facts |= contestant.load(LOAD_SECONDS)
            facts["load_s"] = time.perf_counter() - began
            facts["loaded"] = contestant.memory()
            contestant.pause()
        except (CannotInstall, ContestantError, OSError) as error:
            self.lose(name, str(error))

    def interpreter(self, entrant: Entrant) -> Path:
        if entrant.environment is None:
            return Path(sys.executable)
        return prepare(ENVIRONMENTS[entrant.environment], self.options.index)

    def spawn(self, name: str, interpreter: Path) -> Contestant:
        entrant, options = self.every[name], self.options
        threads = str(options.threads)
        compiled = options.work / "compiled" / name.replace(" ", "-")
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "ROOST_COMPILE_CACHE": str(compiled),
            "VLLM_CACHE_ROOT": str(compiled),
        }
        client = sys.executable if entrant.is_served else str(interpreter)
        wanted = {**entrant.wanted, "python": str(interpreter)} if entrant.is_served else entrant.wanted
        return Contestant(
            [client, str(HERE / entrant.script)], wanted, environment, options.logs / f"{name.replace(' ', '-')}.log"
        )

    def rehearse(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Runs tasks that compile before anything counts, which also fills the folder of compiled programs."""
        for task, name in pairs:
            if self.every[name].rehearses or self.work[task].command == "start":
                self.turn(task, name, None)

    def turn(self, task: str, name: str, number: int | None) -> None:
        """Runs a task once, and records the result if it has a number."""
        contestant = self.alive.get(name)
        if contestant is None or name in self.found.failures.get(task, {}):
            return
        say(f"{'rehearsal' if number is None else f'round {number + 1}'}: {task}, {self.every[name].title}")
        try:
            arguments = self.arguments(task, number or 0)
            contestant.go_on()
            contestant.do("warm", RUN_SECONDS)
            result = contestant.do(self.work[task].command, RUN_SECONDS, **arguments)
            memory = contestant.memory()
            contestant.pause()
        except ContestantError as error:
            self.found.failures.setdefault(task, {})[name] = str(error)
            say(f"{self.every[name].title} failed: {error}")
            if contestant.is_gone:
                self.lose(name, str(error))
            else:
                contestant.pause()
            return
        result |= {"peak_gb": memory["peak_bytes"] / 1e9, "resident_gb": memory["resident_bytes"] / 1e9}
        if number is not None:
            self.found.runs.setdefault(task, {}).setdefault(name, []).append(result)

    def arguments(self, task: str, number: int) -> Mapping[str, Any]:
        work = self.work[task]
        seed = {"seed": number} if work.seeded else {}
        rate = {"rate": arrival_rate(self.found.runs, work.paced_by)} if work.paced_by else {}
        return {**work.arguments, **(work.quick if self.options.quick else {}), **seed, **rate}

    def lose(self, name: str, reason: str) -> None:
        """Continues without a contestant."""
        say(f"{self.every[name].title} takes no further part: {reason}")
        self.found.entrants[name]["failure"] = reason
        contestant = self.alive.pop(name, None)
        if contestant is not None:
            contestant.close()


def arrival_rate(runs: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], peers: Sequence[Ref]) -> float:
    """Returns `PACE` of the largest of the peers' newest capacities.

    Raises:
      ContestantError: None was measured.
    """
    found = [runs.get(ref.task, {}).get(ref.entrant, []) for ref in peers]
    capacities = [measured[-1][ref.field] for ref, measured in zip(peers, found, strict=True) if measured]
    if not capacities:
        raise ContestantError("needs the capacity of a peer, and none was measured")
    return PACE * max(capacities)


def pin(threads: int) -> None:
    """Limits this process and its children to a number of cores, if the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
