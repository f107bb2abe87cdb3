"""Clients for Node: OpenAI's, Anthropic's, the Vercel AI SDK and LangChain.js."""

from typing import Any

import pytest
from node_programs import run_program
from questions import ANSWER
from server_process import ServerProcess


def check_city(found: Any) -> None:
    assert set(found) == {"name", "country", "isCapital"}
    assert found["country"] in ("Spain", "France")


def check_calls(found: Any) -> None:
    """Checks calls of the tool `weather` and their arguments."""
    assert found
    assert all(name == "weather" and arguments["city"] in ("Madrid", "Rome") for name, arguments in found)


def check_results(found: Any) -> None:
    """Checks the tool's results."""
    assert found
    assert set(found) <= {"It is sunny in Madrid.", "It is sunny in Rome."}


def test_openais(server: ServerProcess) -> None:
    found = run_program("openai.mjs", server)
    assert ANSWER in found["chat"]
    assert found["chat"] == found["stream"] == found["responded"]
    check_city(found["parsed"])
    check_city(found["responseParsed"])
    check_calls(found["calls"])
    assert found["afterTool"]
    assert found["conversation"] == [True, "user", "user", "assistant"]
    assert found["models"] == ["demo", "dummy", "tgi"]
    assert found["failure"] == [404, "model_not_found"]


def test_openais_batch(server: ServerProcess) -> None:
    found = run_program("openai-batch.mjs", server)
    assert found["file"] == ["file", "batchinput.jsonl", "batch"]
    assert found["status"] == "completed"
    assert found["counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert [name for name, _ in found["answers"]] == ["request-1", "request-2"]
    assert all(ANSWER in text for _, text in found["answers"])
    assert found["cancelled"] == "cancelled"
    assert found["listed"] == ["second", "first"]
    assert found["deleted"]


def test_anthropics(server: ServerProcess) -> None:
    found = run_program("anthropic.mjs", server)
    assert ANSWER in found["chat"]
    assert ANSWER in found["stream"]
    assert found["usage"]["output_tokens"] > 0
    assert found["tokens"] > 0
    check_calls(found["calls"])
    check_calls(found["streamedCalls"])
    assert found["afterTool"]
    check_city(found["parsed"])
    assert found["thinking"]
    assert found["failure"] == [404, "not_found_error"]


@pytest.mark.parametrize("provider", ["openai-compatible", "openai-chat", "openai-responses", "anthropic"])
def test_ai_sdk(server: ServerProcess, provider: str) -> None:
    found = run_program("ai-sdk.mjs", server, PROVIDER=provider)
    assert ANSWER in found["chat"]
    assert ANSWER in found["stream"]
    assert found["usage"]["outputTokens"] > 0
    assert found["turns"]
    check_city(found["object"])
    check_city(found["streamedObject"])
    assert found["choice"] in ("Madrid", "Rome")
    for results in ("results", "streamedResults"):
        check_results(found[results])
    assert found["afterTool"]
    assert found["streamedAfterTool"]


@pytest.mark.parametrize("responses", ["0", "1"])
def test_langchain(server: ServerProcess, responses: str) -> None:
    found = run_program("langchain.mjs", server, RESPONSES=responses)
    assert ANSWER in found["chat"]
    assert ANSWER in found["stream"]
    assert found["usage"]["output_tokens"] > 0
    assert found["system"]
    check_city(found["jsonSchema"])
    check_city(found["functionCalling"])
    check_results(found["results"])
    assert found["afterTool"]
    assert found["turns"]
