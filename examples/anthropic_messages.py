"""The same server through Anthropic's client, whole and streamed."""

from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:8000", api_key="none")
question = [{"role": "user", "content": "What is the capital of Spain?"}]

message = client.messages.create(model="demo", max_tokens=50, messages=question, extra_body={"temperature": 0})
print(message.content[0].text)

with client.messages.stream(model="demo", max_tokens=50, messages=question) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
