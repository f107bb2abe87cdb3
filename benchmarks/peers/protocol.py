"""How a contestant is spoken to: a line of JSON in, a line of JSON out. Needs the standard library only.

The first line tells a contestant what to load, and its answer is what was loaded. Each line after it is a command,
`{"do": NAME, …}`, and its answer is `{"result": …}` or `{"error": "one line"}`.
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
"""The variable with the descriptor for answers: what libraries print to stdout must not get among them."""

PR_SET_PDEATHSIG = 1

Command = Callable[..., Any]
Start = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Command]]]
"""Loads what is asked for; gives facts about it, and the commands by name."""


def answer_all(start: Start) -> None:
    """Loads, then answers every command until there are no more; then it ends, with all that it has started."""
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
    """One that stands still would otherwise do so for ever, should its parent be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def answer(name: str, command: Command | None, words: Mapping[str, Any]) -> Mapping[str, Any]:
    """Runs a command; whatever it raises becomes its answer, as the next one may work."""
    if command is None:
        return {"error": f"there is no command {name!r}"}
    try:
        return {"result": command(**words)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {one_line(str(error))}"}


def one_line(text: str, length: int = 160) -> str:
    """The text without line breaks, and not much of it."""
    return " ".join(text.split())[:length]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def draw_prompts(rows: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Token ids that mean nothing: the same for every contestant, without those that vocabularies keep for marks."""
    chance = random.Random(f"{rows} {length} {seed}")
    return [chance.choices(range(4, vocab_size), k=length) for _ in range(rows)]
