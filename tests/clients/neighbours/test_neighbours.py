"""Clients of Ollama, Cohere and TGI, which are told what to use instead, and huggingface_hub before 1.0."""

import re
from collections.abc import Callable
from typing import Any

import cohere
import ollama
import pytest
from hugging_face import check_chat
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from questions import ANSWER, QUESTION
from server_process import API_KEY, ServerProcess
from text_generation import Client
from text_generation.errors import NotFoundError, UnknownError
from text_generation.types import Message

ASKED = [{"role": "user", "content": QUESTION}]
HEADERS = {"Authorization": f"Bearer {API_KEY}"}

pytestmark = pytest.mark.usefixtures("local_hub")


def test_huggingface_hub(server: ServerProcess) -> None:
    check_chat(server)


@pytest.mark.parametrize(
    ("ask", "right"),
    [
        (lambda client: client.ps(), "/v1/models"),
        (lambda client: client.chat(model="demo", messages=ASKED), "/v1/chat/completions"),
        (lambda client: client.generate(model="demo", prompt=QUESTION), "/v1/completions"),
    ],
)
def test_ollama(server: ServerProcess, ask: Callable[[ollama.Client], Any], right: str) -> None:
    with pytest.raises(ollama.ResponseError, match=f"use {right}'") as error:
        ask(ollama.Client(host=server.url, headers=HEADERS))
    assert error.value.status_code == 404


@pytest.mark.parametrize("kind", [cohere.Client, cohere.ClientV2])
def test_coheres_rerank(server: ServerProcess, kind: type[cohere.Client | cohere.ClientV2]) -> None:
    client = kind(api_key=API_KEY, base_url=server.url)
    with pytest.raises(cohere.NotFoundError) as error:
        client.rerank(model="demo", query=QUESTION, documents=[ANSWER, "Rome"])
    assert "/v1/completions with echo and logprobs" in error.value.body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "send texts to /v1/completions"),
        ("/generate", "send text as prompt to /v1/completions"),
        ("/generate_stream", "use /v1/completions with stream: true"),
    ],
)
def test_tgis_texts(server: ServerProcess, path: str, words: str) -> None:
    with pytest.raises((NotFoundError, UnknownError), match=words):
        Client(server.url + path, headers=HEADERS, timeout=120).generate(QUESTION, max_new_tokens=3)
    with pytest.raises(HfHubHTTPError, match=re.escape(words)):
        InferenceClient(server.url + path, token=API_KEY).text_generation(QUESTION, max_new_tokens=3)


def test_tgis_chat(server: ServerProcess) -> None:
    """The client names the model `tgi`."""
    client = Client(server.url, headers=HEADERS, timeout=120)
    messages = [Message(role="user", content=QUESTION)]
    answer = client.chat(messages, max_tokens=200, temperature=0.001)
    assert ANSWER in answer.choices[0].message.content
