"""Fields that no schema names: honoured, refused, ignored or reported, the same for every endpoint."""

import json
import re
import urllib.parse
from itertools import zip_longest
from typing import Any

import httpx
import pytest
from fake_server import client_of
from roost.server.app import create_app
from roost.server.features.anthropic.schemas import MessagesBody
from roost.server.features.native.generate import GenerateBody
from roost.server.features.responses.body import ResponseBody
from roost.server.generation.service import Service
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.schemas.body import Fields

HI = [{"role": "user", "content": "hi"}]
ROUTES: dict[type[Fields], tuple[str, dict[str, Any]]] = {
    ChatBody: ("/v1/chat/completions", {"messages": HI, "max_tokens": 1}),
    CompletionBody: ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    GenerateBody: ("/generate", {"token_ids": [5], "max_tokens": 1}),
    ResponseBody: ("/v1/responses", {"input": "hi", "max_output_tokens": 1}),
    MessagesBody: ("/v1/messages", {"messages": HI, "max_tokens": 1}),
}
KINDS = list(ROUTES)


async def post(client: httpx.AsyncClient, kind: type[Fields], **fields: Any) -> httpx.Response:
    path, body = ROUTES[kind]
    return await client.post(path, json=body | fields)


def warnings_of(response: httpx.Response) -> list[str]:
    header = response.headers.get("x-roost-warnings", "")
    return [urllib.parse.unquote(each) for each in header.split(", ")] if header else []


def refused_by(kind: type[Fields]) -> list[str]:
    rules = kind.field_rules.names
    return sorted(name for name in rules.keys() - kind.model_fields.keys() if not rules[name].is_harmless)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_would_change_the_answer_is_refused_unless_neutral(
    client: httpx.AsyncClient, kind: type[Fields]
) -> None:
    for name in refused_by(kind):
        response = await post(client, kind, **{name: {"something": "else"}})
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert f"{name} is not supported: " in message
        assert "yet" not in message
        assert_names_a_field(kind, name, message.partition(" is not supported: ")[2])
    rules = kind.field_rules.names
    for values in zip_longest(*(rules[name].neutral for name in refused_by(kind))):  # null, where one has no more
        response = await post(client, kind, **dict(zip(refused_by(kind), values, strict=True)))
        assert response.status_code == 200, (values, response.text)
        assert warnings_of(response) == []


def assert_names_a_field(kind: type[Fields], name: str, hint: str) -> None:
    """Checks that a field to use exists, and that another endpoint is named only if this one lacks the field."""
    if not (found := re.match(r"use (\w+)[^/]*(/\S+)?$", hint)):
        return
    meant, path = name if found[1] in ("it", "them") else found[1], found[2]
    (there,) = [each for each in KINDS if ROUTES[each][0] == path] if path else [kind]
    assert meant in there.model_fields, hint
    assert path is None or meant not in kind.model_fields, hint


@pytest.mark.parametrize("kind", KINDS)
async def test_what_changes_nothing_passes_whatever_it_holds(client: httpx.AsyncClient, kind: type[Fields]) -> None:
    rules = kind.field_rules.names
    names = [name for name in rules.keys() - kind.model_fields.keys() if rules[name].is_harmless]
    response = await post(client, kind, **{name: {"any": ["thing"]} for name in names})
    assert response.status_code == 200
    assert warnings_of(response) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_names_pass_and_are_reported(client: httpx.AsyncClient, kind: type[Fields]) -> None:
    response = await post(client, kind, brand_new=1, tmpraturre=0.5, **{"späße, \r\nx-evil": 2})
    assert response.status_code == 200
    assert warnings_of(response) == ["brand_new", "tmpraturre", "späße, \r\nx-evil"]
    assert "x-evil" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("store", "warnings"), [(True, ["store"]), (False, []), (None, [])])
async def test_a_chat_that_would_be_stored_is_reported(
    client: httpx.AsyncClient, store: bool | None, warnings: list[str], stream: bool
) -> None:
    response = await post(client, ChatBody, store=store, metadata={"any": ["thing"]}, stream=stream)
    assert response.status_code == 200
    assert warnings_of(response) == warnings


async def test_reports_are_bounded(client: httpx.AsyncClient) -> None:
    response = await post(client, ChatBody, **{f"{index:03}{'x' * 100}": 1 for index in range(200)})
    reported = warnings_of(response)
    assert len(reported) == 16
    assert all(len(each) == 60 for each in reported)


FUNCTION = {"name": "f", "parameters": {"type": "object"}}
WITHIN: list[tuple[type[Fields], dict[str, Any], str]] = [
    (
        ChatBody,
        {"stream": True, "stream_options": {"incld_usge": True}},
        "stream_options.incld_usge",
    ),
    (
        ChatBody,
        {"response_format": {"type": "json_schema", "json_schema": {"schemaas": {}}}},
        "response_format.json_schema.schemaas",
    ),
    (ChatBody, {"tools": [{"type": "function", "function": {**FUNCTION, "new": 1}}]}, "tools[0].function.new"),
    (ChatBody, {"messages": [*HI, {"role": "user", "content": "a", "new": 1}]}, "messages[1].new"),
    (
        ChatBody,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "new": 1}]}]},
        "messages[0].content[0].new",
    ),
    (ResponseBody, {"input": [{"role": "user", "content": "a", "new": 1}]}, "input[0].new"),
    (ResponseBody, {"text": {"format": {"type": "text", "new": 1}}}, "text.format.new"),
    (ResponseBody, {"tools": [{"type": "function", **FUNCTION, "new": 1}]}, "tools[0].new"),
    (MessagesBody, {"output_config": {"efort": "low"}}, "output_config.efort"),
    (
        MessagesBody,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "new": 1}]}]},
        "messages[0].content[0].new",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "reported"), WITHIN)
async def test_unknown_names_within_objects_are_reported_or_refused(
    client: httpx.AsyncClient, service: Service, kind: type[Fields], fields: dict[str, Any], reported: str
) -> None:
    response = await post(client, kind, **fields)
    assert response.status_code == 200
    assert warnings_of(response) == [reported]
    async with client_of(create_app(service, strict=True)) as strict:
        response = await post(strict, kind, **fields)
    assert response.status_code == 400
    assert f"the field '{reported.split()[0]}' is unknown" in response.json()["error"]["message"]


MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("kind", "fields", "reported"),
    [
        (ChatBody, {"messages": [HI[0] | MARK]}, []),
        (ChatBody, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"} | MARK]}]}, []),
        (ChatBody, {"tools": [{"type": "function", "function": {"name": "f"} | MARK} | MARK]}, []),
        (ChatBody, MARK, ["cache_control"]),
        (ResponseBody, {"input": [HI[0] | MARK], "tools": [{"type": "function", "name": "f"} | MARK]}, []),
        (ResponseBody, MARK, ["cache_control"]),
        (CompletionBody, MARK, ["cache_control"]),
        (MessagesBody, MARK | {"tools": [{"name": "f", "input_schema": {"type": "object"}} | MARK]}, []),
        (MessagesBody, {"messages": [HI[0] | MARK]}, ["messages[0].cache_control"]),
    ],
)
async def test_cache_control_passes_where_clients_put_it(
    client: httpx.AsyncClient, kind: type[Fields], fields: dict[str, Any], reported: list[str]
) -> None:
    response = await post(client, kind, **fields)
    assert response.status_code == 200
    assert warnings_of(response) == reported


async def test_a_name_that_all_messages_have_is_reported_once(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "a", "new": 1, "name": "Ann", "cache_control": {}}] * 50
    assert warnings_of(await post(client, ChatBody, messages=messages)) == ["messages[0].new"]


async def test_objects_that_are_left_out_are_not_looked_into(client: httpx.AsyncClient) -> None:
    tools = [{"type": "web_search", "new": 1}]
    items = [{"type": "reasoning", "summary": [], "new": 1}, {"role": "user", "content": "a"}]
    assert warnings_of(await post(client, ResponseBody, tools=tools, input=items)) == ["tools[0]: web_search"]


@pytest.mark.parametrize("name", ["audio", "function_call", "images"])
async def test_parts_of_messages_that_would_get_lost_are_refused(client: httpx.AsyncClient, name: str) -> None:
    response = await post(client, ChatBody, messages=[*HI, {"role": "assistant", name: {"id": "a"}}])
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert error["message"].startswith(f"messages[1].{name} is not supported: ")
    assert (await post(client, ChatBody, messages=[*HI, {"role": "assistant", name: None}])).status_code == 200


@pytest.mark.parametrize(
    ("kind", "name", "value", "instead"),
    [
        (ResponseBody, "max_tokens", 5, "use max_output_tokens"),
        (ResponseBody, "response_format", {"type": "json_object"}, "use text.format"),
        (ResponseBody, "stop", ["a"], "use it in /v1/chat/completions"),
        (ResponseBody, "repeat_penalty", 2, "use repetition_penalty"),
        (MessagesBody, "stop", ["a"], "use stop_sequences"),
        (MessagesBody, "n", 2, "use it in /v1/chat/completions"),
        (MessagesBody, "response_format", {"type": "json_object"}, "use output_config.format"),
        (ChatBody, "stop_sequences", ["a"], "use stop"),
        (ChatBody, "guided_choice", ["a"], "use structured_outputs.choice"),
        (CompletionBody, "guided_grammar", "start: x", "use structured_outputs.grammar"),
        (GenerateBody, "guided_json", {}, "use structured_outputs.json"),
        (GenerateBody, "guided_regex", "a", "use structured_outputs.regex"),
        (ResponseBody, "guided_json", {}, "use text.format"),
        (ResponseBody, "guided_regex", "a", "use structured_outputs.regex in /v1/chat/completions"),
        (MessagesBody, "guided_json", {}, "use output_config.format"),
        (ChatBody, "system", "a", "send it as a message of the role system"),
        (CompletionBody, "messages", HI, "use it in /v1/chat/completions"),
        (CompletionBody, "max_completion_tokens", 5, "use max_tokens"),
        (GenerateBody, "prompt", "a", "use it in /v1/completions"),
        (GenerateBody, "function_call", {"name": "f"}, "use tool_choice in /v1/chat/completions"),
        *((kind, "state", "state_1", "use from_state") for kind in KINDS),
    ],
)
async def test_a_field_of_another_endpoint_is_refused_with_what_to_use(
    client: httpx.AsyncClient, kind: type[Fields], name: str, value: Any, instead: str
) -> None:
    response = await post(client, kind, **{name: value})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"{name} is not supported: {instead}"


@pytest.mark.parametrize("kind", [ResponseBody, MessagesBody])
def test_each_field_of_a_chat_is_known_to_the_other_apis(kind: type[Fields]) -> None:
    known = {*kind.model_fields, *kind.field_rules.names}
    assert not ChatBody.model_fields.keys() - known


async def test_tokens_of_a_whole_messages_body_are_counted(client: httpx.AsyncClient) -> None:
    body = {
        "messages": HI,
        "max_tokens": 5,
        "stop_sequences": ["a"],
        "temperature": 1,
        "output_config": {"effort": "low"},
    }
    response = await client.post("/v1/messages/count_tokens", json=body)
    assert response.status_code == 200
    assert warnings_of(response) == []


async def test_one_request_does_not_see_the_reports_of_another(client: httpx.AsyncClient) -> None:
    await post(client, ChatBody, brand_new=1)
    assert warnings_of(await post(client, ChatBody)) == []


async def test_an_unknown_inclusion_is_reported(client: httpx.AsyncClient) -> None:
    response = await post(client, ResponseBody, include=["message.input_image.image_url", "everything"])
    assert (response.status_code, warnings_of(response)) == (200, ["include.everything"])


async def test_a_strict_server_says_which_field_was_meant(service: Service) -> None:
    async with client_of(create_app(service, strict=True)) as client:
        error = (await post(client, ChatBody, frequncy_penalty=1)).json()["error"]
        assert error["message"] == "the field 'frequncy_penalty' is unknown; did you mean frequency_penalty?"
        assert error["param"] == "frequncy_penalty"
        assert (await post(client, ChatBody, mirostat=0, user="u")).status_code == 200


async def test_a_near_miss_of_a_field_is_refused(client: httpx.AsyncClient) -> None:
    for kind, name, meant in (
        (ChatBody, "temprature", "temperature"),
        (ChatBody, "temperatrue", "temperature"),
        (ChatBody, "max_token", "max_tokens"),
        (ChatBody, "max_tokenss", "max_tokens"),
        (CompletionBody, "frequency_penalti", "frequency_penalty"),
        (CompletionBody, "logprob", "logprobs"),
        (GenerateBody, "from_stat", "from_state"),
        (ResponseBody, "instruction", "instructions"),
        (MessagesBody, "stop_sequence", "stop_sequences"),
    ):
        error = (await post(client, kind, **{name: 1})).json()["error"]
        assert error["message"] == f"the field '{name}' is unknown; did you mean {meant}?"
        assert (await post(client, kind, **{name: None})).status_code == 200


async def test_short_names_and_fields_of_other_apis_are_no_near_misses(client: httpx.AsyncClient) -> None:
    for name in ("sead", "tpo_p", "min_q", "brand_new"):
        assert (await post(client, ChatBody, **{name: 1})).status_code == 200
    for name in {"stream_reasoning", "n_keep", "verbosity"}:
        assert (await post(client, ChatBody, **{name: 1})).status_code == 200


async def test_a_near_miss_within_a_message_names_its_place(client: httpx.AsyncClient) -> None:
    error = (await post(client, ChatBody, messages=[{"role": "user", "content": "a", "contnet": "b"}])).json()["error"]
    assert error["message"] == "the field 'messages[0].contnet' is unknown; did you mean content?"
    assert error["param"] == "messages"


@pytest.mark.parametrize(
    ("kind", "field", "part", "accepted"),
    [
        (ChatBody, "messages", {"type": "image_url", "image_url": {"url": "x"}}, '"text"'),
        (ResponseBody, "input", {"type": "input_image", "image_url": "x"}, '"input_text" or "output_text"'),
        (MessagesBody, "messages", {"type": "image", "source": {"type": "url", "url": "x"}}, '"text"'),
    ],
)
async def test_an_image_is_refused_since_the_model_reads_text(
    client: httpx.AsyncClient, kind: type[Fields], field: str, part: dict[str, Any], accepted: str
) -> None:
    error = (await post(client, kind, **{field: [{"role": "user", "content": [part]}]})).json()["error"]
    assert error["message"] == f'{field}[0].content[0].type must be {accepted}, got "{part["type"]}"'


async def test_names_are_no_words_of_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await post(client, ChatBody, **{"a\nINFO forged": json.loads("1")})
    assert not any("\n" in record.getMessage() for record in caplog.records)


WHOLE: dict[type[Fields], dict[str, Any]] = {
    ChatBody: {"max_tokens": 16.0, "n": 2.0, "seed": 5.0, "top_k": 3.0, "stop_token_ids": [6.0, 7], "priority": -1.0},
    CompletionBody: {
        "prompt": [4.0, 5],
        "max_tokens": 16.0,
        "n": 22.0,
        "best_of": 22.0,
        "logprobs": 1.0,
        "min_tokens": 1.0,
    },
    GenerateBody: {"token_ids": [5.0], "max_tokens": 16.0},
    ResponseBody: {"max_output_tokens": 16.0, "top_k": 3.0},
    MessagesBody: {"max_tokens": 16.0, "top_k": 3.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_may_have_a_fraction_of_zero(kind: type[Fields]) -> None:
    _, body = ROUTES[kind]
    read = kind.model_validate({**body, **WHOLE[kind]})
    for name, value in WHOLE[kind].items():
        assert getattr(read, name) == value
        assert "." not in json.dumps(getattr(read, name)), name


async def test_several_prompts_of_whole_numbers(client: httpx.AsyncClient) -> None:
    body = {"prompt": [[4.0, 5], [6.0]], "max_tokens": 1.0, "n": 1.0, "temperature": 1}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] == 3
