"""Servers that share a store, and come and go."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from server_process import PROGRAM, SLOTS, ServerProcess, launched
from shared_programs import TINY

WIDTH = 384
"""Width of the model, of which a step takes a millisecond: a response lasts longer than finding its owner."""


def write_model(folder: Path) -> str:
    """Writes the config of a random model, and returns the model's name."""
    config = folder / "config.json"
    config.write_text(json.dumps({**TINY, "hidden_size": WIDTH, "lru_width": WIDTH, "intermediate_size": 6 * WIDTH}))
    return f"random:{config}"


class Replicas:
    """Servers that come and go.

    Attributes:
      running: Those that run, oldest first.
      states: Folder with their checkpoints.

    Args:
      program: Program to run instead of Roost itself.
    """

    def __init__(
        self, stack: ExitStack, model: str, address: str, states: Path, program: Sequence[str] = PROGRAM
    ) -> None:
        self._stack = stack
        self._model = model
        self._address = address
        self._program = program
        self.states = states
        self.running: list[ServerProcess] = []

    def start(self, slots: int = SLOTS) -> ServerProcess:
        states = ("--state-store", str(self.states), "--checkpoint-seconds", "1")
        shapes = ("--slots", str(slots), "--prefill-chunk", "128")
        arguments = (self._model, "--served-model-name", "demo", *shapes, "--drain-timeout", "1", *states)
        server = self._stack.enter_context(
            launched(*arguments, program=self._program, programs=f"durable-{slots}", ROOST_STORE=self._address)
        )
        self.running.append(server)
        return server

    def end(self, server: ServerProcess, number: int) -> None:
        """Ends a replica with a signal."""
        self.running.remove(server)
        server.process.send_signal(number)
        server.ends()
        written = server.log.read_text()
        assert "Traceback" not in written, written[written.index("Traceback") :]


def read_events(url: str, response_id: str, after: int, most: int | None = None) -> list[dict[str, Any]]:
    """Follows a stream until its end, until the connection breaks, or until so many events."""
    events: list[dict[str, Any]] = []
    query = "?stream=true" if after < 0 else f"?stream=true&starting_after={after}"
    try:
        with httpx.stream("GET", f"{url}/v1/responses/{response_id}{query}", timeout=60) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                if most is not None and len(events) >= most:
                    break
    except httpx.RemoteProtocolError:
        pass  # the replica was killed
    return events
