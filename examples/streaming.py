"""A stream: tokens as they are generated, then the usage. Leaving the stream early frees its slot at once."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
question = [{"role": "user", "content": "Tell me a story about a boat."}]

with client.chat.completions.create(
    model="demo", messages=question, max_tokens=100, stream=True, stream_options={"include_usage": True}
) as stream:
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        else:
            print(f"\n[{chunk.usage.completion_tokens} tokens]")

with client.chat.completions.create(model="demo", messages=question, stream=True) as stream:
    first_words = [chunk.choices[0].delta.content or "" for chunk, _ in zip(stream, range(5), strict=False)]
print("".join(first_words), "… that is enough.")
