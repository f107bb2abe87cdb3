"""`roost` with a fault: a program whose first argument names the fault, before the usual arguments.

The faults are in the stand-ins for the device, in the database or in the grammars' processes, so that HTTP, threads and
scheduling are real. With "drafts", drafted tokens never pause, however long they take.
"""

import importlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from roost.engine import AsyncEngine, ModelRunner, Request, builder
from roost.engine.async_engine import OutputSink
from roost.engine.scheduling.drafting import DraftSwitch
from roost.engine.worker import runner
from roost.server.__main__ import main
from roost.server.constraints import grammar_process
from roost.server.database.dialects import Connection, Sqlite
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.command.line_files import OutputFile
from roost.server.features.responses import adoption
from roost.server.features.responses.conversations import ConversationStore
from roost.server.features.responses.response_store import ResponseStore

CALLS_BEFORE = 3
"""Number of calls that succeed before the fault, so that streams are running."""

GATE = "FAULT_GATE"
"""Environment variable with the path of a file. If it is set, calls are counted once the file is there."""

MAX_PAGES = 95
"""Pages of 4 KiB of a database that is soon full; its empty tables take about two thirds of them."""


def fail(*_: Any) -> Any:
    raise RuntimeError("the device caught fire")


def hang(*_: Any) -> Any:
    time.sleep(3600)


def later(works: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Calls one function a few times, then another."""
    num_calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += GATE not in os.environ or os.path.exists(os.environ[GATE])
        return (works if num_calls <= CALLS_BEFORE else then)(*arguments)

    return call


def spoil(runner: ModelRunner) -> None:
    """Sets all parameters to NaN."""
    arrays = runner.executor.arrays
    spoilt = jax.tree.map(
        lambda leaf: jax.device_put(np.full_like(leaf, np.nan)) if leaf.dtype.kind == "f" else leaf,
        arrays.get("params"),
    )
    arrays.put("params", spoilt)


def after_loading(change: Callable[[ModelRunner], None]) -> None:
    """Calls a function on every runner once it is ready."""
    load = builder.load_runner

    def load_and_change(*arguments: Any) -> ModelRunner:
        runner = load(*arguments)
        change(runner)
        return runner

    builder.load_runner = load_and_change


def break_program(kind: str, then: Callable[..., Any]) -> Callable[[ModelRunner], None]:
    def change(runner: ModelRunner) -> None:
        compiled = runner.executor.compiled
        for label, program in compiled.items():
            if label.startswith(kind):
                compiled[label] = later(program, then)

    return change


def jump_clock() -> None:
    """Makes the time of day jump back and forth by ten years at each call."""
    real, direction = time.time, 1

    def jumping() -> float:
        nonlocal direction
        direction = -direction
        return real() + direction * 3e8

    time.time = jumping


def limit_database() -> None:
    """Leaves an SQLite database room for a few responses only."""
    connect = Sqlite.connect

    def connect_limited(self: Sqlite) -> Connection:
        connection = connect(self)
        connection.execute(f"PRAGMA max_page_count = {MAX_PAGES}")
        return connection

    Sqlite.connect = connect_limited


def slow_grammars() -> None:
    """Lets every mask come late."""
    folder = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    vars(grammar_process)["grammar_worker"] = importlib.import_module("slow_grammar_worker")


def die_of_seed(seed: int) -> None:
    """Kills the process when the engine gets a request with a seed.

    Suspects run alone to their ends. On a slow machine, others would join them otherwise, and share the blame.
    """
    vars(adoption)["_FIRST_ALONE_S"] = 3600.0
    submit = AsyncEngine.submit

    def submit_or_die(self: AsyncEngine, request: Request, sink: OutputSink) -> None:
        if request.params.seed == seed:
            os.kill(os.getpid(), signal.SIGKILL)
        submit(self, request, sink)

    AsyncEngine.submit = submit_or_die


def end_at_line(count: int, number: int) -> None:
    """Sends the process a signal when it writes a line of a batch; SIGKILL comes in the middle of the line."""
    append, numbers = OutputFile.append, itertools.count(1)

    def append_and_end(self: OutputFile, place: int, line: bytes) -> None:
        is_last = next(numbers) == count
        append(self, place, line[: len(line) // 2] if is_last and number == signal.SIGKILL else line)
        if is_last:
            os.kill(os.getpid(), number)

    OutputFile.append = append_and_end


def die_of_effects(moment: str, count: int) -> None:
    """Kills the process at the n-th of some moments in the life of a line of /v1/responses.

    Args:
      moment: "keeping" before the response is stored, "kept" after that, "ending" before the line is.
    """
    numbers = itertools.count(1)

    def dying(work: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*arguments: Any) -> Any:
            done = await work(*arguments) if moment == "kept" else None
            if next(numbers) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return done if moment == "kept" else await work(*arguments)

        return run

    places = ((ResponseStore, "keep"), (ConversationStore, "end"))
    for owner, name in ((BatchStore, "end"),) if moment == "ending" else places:
        setattr(owner, name, dying(getattr(owner, name)))


def install(fault: str) -> None:
    if fault == "full":
        limit_database()
    elif fault.startswith("line-"):
        end_at_line(*map(int, fault.removeprefix("line-").split("-")))
    elif fault.startswith("effect-"):
        _, moment, count = fault.split("-")
        die_of_effects(moment, int(count))
    elif fault == "grammar":
        slow_grammars()
    elif fault.startswith("seed-"):
        die_of_seed(int(fault.removeprefix("seed-")))
    elif fault == "drafts":
        DraftSwitch.is_on = lambda *_: True
    elif fault == "clock":
        jump_clock()
    elif fault == "numbers":
        after_loading(spoil)
    elif fault == "stuck":
        after_loading(break_program("decode", hang))
    elif fault == "read":
        runner._decoded = later(runner._decoded, fail)
    else:
        after_loading(break_program(fault, fail))


if __name__ == "__main__":
    install(sys.argv.pop(1))
    main()
