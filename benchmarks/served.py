"""A server of the measured tree."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

START_S: Final = 600.0


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[str]:
    """Yields the address of a server that is ready. At the end it is killed, whatever it does.

    Args:
      log: File for its log.
      arguments: Arguments of `roost serve`, beside the port.

    Raises:
      RuntimeError: It did not start.
    """
    command = [sys.executable, "-P", "-m", "roost.server", "serve", *arguments, "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        deadline = time.monotonic() + START_S
        while (found := re.search(r"^address +(http://\S+)/v1$", log.read_text(), re.MULTILINE)) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield found[1]
    finally:
        process.kill()
        process.wait()
