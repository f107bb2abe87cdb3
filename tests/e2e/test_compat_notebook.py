"""`LLM` in a notebook: in a real Jupyter kernel, whose own event loop is busy."""

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
    assert [output.data["text/plain"] for output in bar] == ["prompts 9/9"]
    assert bar[0].data["text/html"] == '<progress max="9" value="9"></progress> prompts 9/9'
    assert [output.data["text/plain"] for output in none] == ["[]"]
    shown = [output.data["text/plain"] for output in two_bars if output.output_type == "display_data"]
    assert shown == ["prompts 3/3", "prompts 3/3"]
    assert "".join(output.text for output in streamed) != ""
