"""What huggingface_hub's client does with a server, in each of its versions."""

from huggingface_hub import InferenceClient
from questions import ANSWER, QUESTION, City
from server_process import API_KEY, ServerProcess

ASKED = [{"role": "user", "content": QUESTION}]


def check_chat(server: ServerProcess) -> None:
    """Checks a chat, streamed and not, and an answer under a schema. The client names the model `dummy`."""
    client = InferenceClient(base_url=server.url, api_key=API_KEY, timeout=120)
    answer = client.chat_completion(ASKED, max_tokens=200, temperature=0).choices[0].message.content
    assert ANSWER in answer
    chunks = client.chat_completion(ASKED, max_tokens=200, temperature=0, stream=True)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == answer
    schema = {"type": "json_object", "value": City.model_json_schema()}
    city = client.chat_completion(ASKED, max_tokens=200, temperature=0, response_format=schema)
    City.model_validate_json(city.choices[0].message.content)
