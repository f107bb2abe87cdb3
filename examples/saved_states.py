"""A saved state: a story is saved, continued in three ways, and downloaded as a file that another server can load."""

import tempfile
from pathlib import Path

import httpx

client = httpx.Client(base_url="http://127.0.0.1:8000", timeout=60)


def post(path: str, **body: object) -> dict:
    """Returns the JSON of a response, or raises with what the server says."""
    response = client.post(path, json=body)
    assert response.is_success, response.text
    return response.json()


story = post("/v1/completions", model="demo", prompt="Once upon a time, a small boat", max_tokens=40)
state = post("/v1/states", request_id=story["id"])
print(f"saved as {state['id']}: {story['choices'][0]['text']!r}")

ends = post("/v1/completions", model="demo", prompt=" Then", from_state=state["id"], n=3, max_tokens=20)
for choice in ends["choices"]:
    print(f"{choice['index']}: Then{choice['text']}")

exported = client.get(f"/v1/states/{state['id']}/export")
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "boat.state"
    file.write_bytes(exported.content)
    print(f"{file.name} has {file.stat().st_size:,} bytes")
imported = client.post(
    "/v1/states/import", content=exported.content, headers={"Content-Type": "application/octet-stream"}
)
print(f"loaded again as {imported.json()['id']}")
