"""A background response: it goes on while nobody listens. With `--store`, it even outlives its server."""

import time

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
response = client.responses.create(
    model="demo", input="Tell me a story about a boat.", background=True, max_output_tokens=200
)
while response.status in ("queued", "in_progress"):
    print(f"{response.id} is {response.status}")
    time.sleep(0.2)
    response = client.responses.retrieve(response.id)
print(response.status, response.output_text)
