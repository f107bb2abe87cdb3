"""LiteLLM's proxy between clients and the server, with OpenAI's APIs and Anthropic's."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI
from ports import free_port
from questions import ANSWER, QUESTION, City
from server_process import API_KEY, ServerProcess

MASTER_KEY = "sk-open"

CONFIG = """\
model_list:
  - model_name: small
    litellm_params:
      model: openai/demo
      api_base: {url}/v1
      api_key: {key}
  - model_name: hosted
    litellm_params:
      model: hosted_vllm/demo
      api_base: {url}/v1
      api_key: {key}
  - model_name: messages
    litellm_params:
      model: anthropic/demo
      api_base: {url}
      api_key: {key}
general_settings:
  master_key: {master}
litellm_settings:
  telemetry: false
  num_retries: 0
"""

models = pytest.mark.parametrize("model", ["small", "hosted", "messages"])


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields the address of a proxy."""
    folder = tmp_path_factory.mktemp("litellm")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(url=server.url, key=API_KEY, master=MASTER_KEY))
    port = free_port()
    program = Path(sys.executable).parent / "litellm"
    command = [
        str(program),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ}, stdout=out, stderr=out)
    try:
        yield wait_until_ready(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=5).is_success:
                return url
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the proxy did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture
def client(proxy: str) -> OpenAI:
    return OpenAI(base_url=f"{proxy}/v1", api_key=MASTER_KEY, max_retries=0)


@models
def test_chat_and_stream(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=100)
    assert ANSWER in whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=100, stream=True)
    assert ANSWER in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@models
def test_structured_output(client: OpenAI, model: str) -> None:
    done = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Tell me of Madrid."}],
        response_format=City,
        temperature=0,
        max_tokens=200,
    )
    assert isinstance(done.choices[0].message.parsed, City)


@models
def test_tool(client: OpenAI, model: str) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Madrid", "Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    asked = {"role": "user", "content": "How is the weather in Rome?"}
    done = client.chat.completions.create(
        model=model, messages=[asked], tools=[tool], tool_choice="required", temperature=0, max_tokens=200
    )
    message = done.choices[0].message
    assert all(call.function.name == "weather" for call in message.tool_calls)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    turns = [asked, message.model_dump(exclude_none=True), *results]
    after = client.chat.completions.create(model=model, messages=turns, tools=[tool], temperature=0, max_tokens=100)
    assert after.choices[0].message


def test_responses(client: OpenAI) -> None:
    done = client.responses.create(model="small", input=QUESTION, temperature=0, max_output_tokens=100)
    assert ANSWER in done.output_text
    stream = client.responses.create(model="small", input=QUESTION, temperature=0, max_output_tokens=100, stream=True)
    assert ANSWER in "".join(event.delta for event in stream if event.type == "response.output_text.delta")


@pytest.mark.parametrize("model", ["small", "messages"])
def test_messages(proxy: str, model: str) -> None:
    """Anthropic's API works at the proxy, whatever API it uses to the server."""
    client = Anthropic(base_url=proxy, api_key=MASTER_KEY, max_retries=0)
    messages = [{"role": "user", "content": QUESTION}]
    extra = {"temperature": 0}
    whole = client.messages.create(model=model, messages=messages, max_tokens=100, extra_body=extra)
    assert ANSWER in "".join(block.text for block in whole.content if block.type == "text")
    with client.messages.stream(model=model, messages=messages, max_tokens=100, extra_body=extra) as stream:
        assert ANSWER in stream.get_final_text()


def test_health_check(proxy: str) -> None:
    """The proxy's health check sends a request to each model."""
    found = httpx.get(f"{proxy}/health", headers={"authorization": f"Bearer {MASTER_KEY}"}, timeout=60).json()
    assert found["healthy_count"] == 3, found
