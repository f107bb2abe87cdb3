"""A saved state: a chat is saved, continued with two questions, and moved as a file that another server can load."""

import tempfile
from pathlib import Path
from typing import Any

import httpx

client = httpx.Client(base_url="http://127.0.0.1:8000", timeout=60)


def post(path: str, **body: object) -> dict[str, Any]:
    """Returns the JSON of a response, or raises with what the server says."""
    response = client.post(path, json=body)
    assert response.is_success, response.text
    return response.json()


def chat(text: str, **fields: object) -> dict[str, Any]:
    """Returns the answer to a message."""
    return post("/v1/chat/completions", messages=[{"role": "user", "content": text}], temperature=0, **fields)


def ask_from(state_id: str, question: str) -> None:
    """Asks a question after a state, which stays as it is."""
    answer = chat(question, from_state=state_id)
    print(f"{question} {answer['choices'][0]['message']['content']}")


state = post("/v1/states", request_id=chat("My name is Theo.")["id"])
print(f"saved as {state['id']}, {state['tokens']} tokens")
ask_from(state["id"], "What is my name?")
ask_from(state["id"], "What is the capital of Spain?")

exported = client.get(f"/v1/states/{state['id']}/export")
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "theo.state"
    file.write_bytes(exported.content)
    print(f"{file.name} has {file.stat().st_size:,} bytes")
imported = client.post(
    "/v1/states/import", content=exported.content, headers={"Content-Type": "application/octet-stream"}
)
ask_from(imported.json()["id"], "What is my name?")
