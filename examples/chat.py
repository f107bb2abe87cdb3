"""A conversation: the client sends all of it with each turn, and the server resumes from its state."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
messages = []
for text in ("My name is Anna.", "What is the capital of Spain?", "What is my name?"):
    messages.append({"role": "user", "content": text})
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    print(f"{text} {messages[-1]['content']}")
