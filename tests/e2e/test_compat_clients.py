"""Third-party clients against a real server process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import litellm
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from server_process import API_KEY, MODEL, ServerProcess

pytestmark = pytest.mark.compat

HI = [{"role": "user", "content": "hi"}]
NODE_MODULES = Path(sys.prefix) / "node_modules"

NODE_PROGRAM = """
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const ask = { model: process.env.MODEL, messages: [{ role: "user", content: "hi" }], max_tokens: 8, temperature: 0 };
(async () => {
  const whole = (await client.chat.completions.create(ask)).choices[0].message.content;
  let streamed = "", responded = "";
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true }))
    streamed += chunk.choices[0]?.delta.content ?? "";
  const response = { model: ask.model, input: "hi", max_output_tokens: 8, temperature: 0, stream: true };
  for await (const event of await client.responses.create(response))
    if (event.type === "response.output_text.delta") responded += event.delta;
  const failure = await client.chat.completions.create({ ...ask, model: "gpt-5" }).catch((error) => error);
  console.log(JSON.stringify({ whole, streamed, responded, failure: [failure.status, failure.code] }));
})();
"""


def test_litellm(server: ServerProcess) -> None:
    fields = {"api_base": f"{server.url}/v1", "api_key": API_KEY, "max_tokens": 8, "temperature": 0}
    whole = litellm.completion(model=f"openai/{MODEL}", messages=HI, **fields)
    stream = litellm.completion(model=f"openai/{MODEL}", messages=HI, stream=True, **fields)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/other", messages=HI, num_retries=0, **fields)


def test_litellm_as_anthropic(server: ServerProcess) -> None:
    fields = {"api_base": server.url, "api_key": API_KEY, "max_tokens": 8, "temperature": 0}
    whole = litellm.completion(model=f"anthropic/{MODEL}", messages=HI, **fields)
    assert whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == "length"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(server: ServerProcess, responses: bool) -> None:
    chat = ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key=SecretStr(API_KEY),
        max_tokens=8,
        temperature=0,
        max_retries=0,
        use_responses_api=responses,
    )
    whole = chat.invoke("hi")
    assert whole.text == "".join(chunk.text for chunk in chat.stream("hi"))
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 8


def test_llm(server: ServerProcess, tmp_path: Path) -> None:
    """Runs the command with the file that its manual describes."""
    lines = [f"- model_id: roost\n  model_name: {MODEL}", f"  api_base: {server.url}/v1", "  api_key_name: roost"]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
    (tmp_path / "keys.json").write_text(json.dumps({"roost": API_KEY}))
    command = [sys.executable, "-m", "llm", "-m", "roost", "-o", "max_tokens", "8", "-o", "temperature", "0", "hi"]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    outs = [
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True).stdout
        for more in ([], ["--no-stream"])
    ]
    assert outs[0].strip()
    assert outs[0] == outs[1]


@pytest.mark.skipif(
    not (shutil.which("node") and (NODE_MODULES / "openai").is_dir()),
    reason="needs Node, and its client: npm install --prefix .venv-compat openai@7",
)
def test_openais_client_for_node(server: ServerProcess) -> None:
    environment = {"BASE_URL": f"{server.url}/v1", "API_KEY": API_KEY, "MODEL": MODEL, "NODE_PATH": str(NODE_MODULES)}
    run = subprocess.run(
        ["node", "-e", NODE_PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    assert got["whole"] == got["streamed"] == got["responded"]
    assert got["failure"] == [404, "model_not_found"]
