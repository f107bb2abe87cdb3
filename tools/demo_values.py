"""Writes the demo model's responses with which `roost report` compares those of a device.

python tools/demo_values.py
"""

import orjson
from roost.server.commands.report.checks import VALUES, values_of
from roost.server.llm.llm import LLM


def main() -> None:
    """Writes the file; on a CPU, in float32."""
    with LLM("demo", dtype="float32", slots=8) as llm:
        VALUES.write_bytes(orjson.dumps(values_of(llm)) + b"\n")


if __name__ == "__main__":
    main()
