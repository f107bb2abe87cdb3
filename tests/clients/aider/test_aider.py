"""aider, an agent that needs Python 3.12 and versions of its own of all packages."""

import re
import sys
from pathlib import Path

from pasted_settings import pasted, run_agent
from questions import QUESTION
from server_process import ServerProcess


def test_message(server: ServerProcess, tmp_path: Path) -> None:
    """After aider's prompt the model may say anything. Where no response comes, aider reports no tokens."""
    script = pasted("aider", server).removeprefix("pip install aider-chat\n")  # which the environment has
    said = run_agent(f"{script} --message '{QUESTION}'", tmp_path, Path(sys.executable).parent)
    assert re.search(r"^Repo-map: disabled\n\n\S.*\n\nTokens: \S+ sent, [1-9]\d* received", said, re.M | re.S), said
