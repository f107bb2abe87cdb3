"""A tool: the model calls a function with arguments that fit its schema, and answers with the result."""

import json

from openai import OpenAI


def weather(city: str) -> str:
    """Returns the weather of a city, which this example makes up."""
    return f"It is sunny in {city}."


client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": city, "strict": True}}]
messages = [{"role": "user", "content": "How is the weather in Oslo?"}]

turn = client.chat.completions.create(model="demo", messages=messages, tools=tools, tool_choice="required")
messages.append(turn.choices[0].message.model_dump(exclude_none=True))
for call in turn.choices[0].message.tool_calls:
    result = weather(**json.loads(call.function.arguments))
    print(f"{call.function.name}({call.function.arguments}) = {result!r}")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

answer = client.chat.completions.create(model="demo", messages=messages, tools=tools, tool_choice="none", max_tokens=50)
print(answer.choices[0].message.content)
