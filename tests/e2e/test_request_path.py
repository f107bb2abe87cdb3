"""A streamed chat request passes no more files than the table of sizes says."""

import re
import subprocess
import sys

from code_sizes import ROOT, growth


def test_a_chat_request_passes_no_more_than_the_table_says() -> None:
    command = [sys.executable, "-P", str(ROOT / "tools" / "request_path.py")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    counts = re.findall(r"(\d+) (files|changes of file)", output.splitlines()[-1])
    found = {f"{name} on a request's way": int(number) for number, name in counts}
    assert len(found) == 2
    assert all(found.values())
    assert not (grown := growth(found)), f"grown, see tests/code_sizes.py: {'; '.join(grown)}\n{output}"
