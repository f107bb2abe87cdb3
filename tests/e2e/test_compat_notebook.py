"""`LLM` in a notebook: in a real Jupyter kernel, whose own event loop is busy."""

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.compat

CELLS = (
    'from roost import LLM, SamplingParams\nllm = LLM("demo", slots=4, prefill_chunk=128)',
    'outputs = llm.generate(["Once upon a time"] * 9, SamplingParams(max_tokens=4))',
    'outputs = llm.generate(["Once upon a time"] * 9, SamplingParams(max_tokens=4), use_tqdm=False)\nllm.generate([])',
    """
import threading
callers = [threading.Thread(target=llm.generate, args=(["The sea is"] * 3,)) for _ in range(2)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
""",
    'for delta in llm.stream("The sea is", SamplingParams(max_tokens=4)):\n    print(delta.outputs[0].text, end="")',
)


def test_a_notebook_shows_how_many_prompts_are_done() -> None:
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS)))
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    _, bar, none, two_bars, streamed = (cell.outputs for cell in notebook.cells)
    assert "prompts: 100%" in _text(bar)
    assert "9/9" in _text(bar)
    assert [output.data["text/plain"] for output in none] == ["[]"]
    assert _text(two_bars).count(" 3/3 ") == 2
    assert _text(streamed) != ""


def _text(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")
