"""A saved state: a chat is saved, continued with two questions, and moved as a file that another server can load."""

import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

SERVER = "http://127.0.0.1:8000"


def send(path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
    """Returns the body of a response, or raises if the server refuses the request."""
    request = urllib.request.Request(SERVER + path, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as response:
        content: bytes = response.read()
    return content


def post(path: str, **body: object) -> dict[str, Any]:
    """Returns the JSON of a response."""
    answer: dict[str, Any] = json.loads(send(path, json.dumps(body).encode()))
    return answer


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

exported = send(f"/v1/states/{state['id']}/export")
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "theo.state"
    file.write_bytes(exported)
    print(f"{file.name} has {file.stat().st_size:,} bytes")
imported = json.loads(send("/v1/states/import", exported, "application/octet-stream"))
ask_from(imported["id"], "What is my name?")
