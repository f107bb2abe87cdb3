"""Answers held to a form, token by token: a pydantic model, one of several choices, a regular expression."""

from openai import OpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    name: str = Field(max_length=20)
    is_capital: bool


client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")


def ask(question: str, **constraint: object) -> str:
    """Returns an answer that is held to one of vLLM's `structured_outputs`."""
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        extra_body={"structured_outputs": constraint},
    )
    return answer.choices[0].message.content or ""


parsed = client.chat.completions.parse(
    model="demo", messages=[{"role": "user", "content": "Name a capital."}], response_format=City
)
print(parsed.choices[0].message.parsed)
print(ask("Is Madrid a capital?", choice=["yes", "no"]))
print(ask("What is 3 plus 4?", regex=r"\d \+ \d = \d{1,2}\."))
