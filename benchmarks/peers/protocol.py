"""Protocol of contestants: a line of JSON in, a line of JSON out. Requires the standard library only.

The first line names the model to load, and its reply reports what was loaded. Each line after it is a command,
`{"do": NAME, …}`, and its reply is `{"result": …}` or `{"error": "one line"}`.
"""

import ctypes
import importlib.metadata
import json
import os
import platform
import random
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ANSWERS = "PEERS_ANSWERS"
"""Environment variable with the descriptor for replies, which libraries' output on stdout must not mix with."""

PR_SET_PDEATHSIG = 1

Command = Callable[..., Any]
Start = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Command]]]
"""Loads a model; returns facts about it, and the commands by name."""


def answer_all(start: Start) -> None:
    """Loads, then runs every command until there are no more, and exits with all children."""
    wake_with_the_end_of_our_parent()
    answers = os.fdopen(int(os.environ[ANSWERS]), "w")
    commands: Mapping[str, Command] = {}

    def begin(**wanted: Any) -> Mapping[str, Any]:
        nonlocal commands
        facts, commands = start(wanted)
        return facts

    for line in sys.stdin:
        words = json.loads(line)
        name = words.pop("do", None)
        command = begin if name is None else commands.get(name)
        answers.write(json.dumps(answer(name, command, words)) + "\n")
        answers.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def wake_with_the_end_of_our_parent() -> None:
    """Ends a suspended process whose parent was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def answer(name: str, command: Command | None, words: Mapping[str, Any]) -> Mapping[str, Any]:
    """Runs a command; an exception becomes its reply, since the next command may work."""
    if command is None:
        return {"error": f"there is no command {name!r}"}
    try:
        return {"result": command(**words)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {one_line(str(error))}"}


def one_line(text: str, length: int = 160) -> str:
    """Returns the start of a text without line breaks."""
    return " ".join(text.split())[:length]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def draw_prompts(rows: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Returns arbitrary token ids, the same for every contestant, without ids that vocabularies reserve."""
    chance = random.Random(f"{rows} {length} {seed}")
    return [chance.choices(range(4, vocab_size), k=length) for _ in range(rows)]
