"""Any value of a field leads to a success or an error that names the field, never to a 500 or 422."""

import json
from typing import Any

from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of, make_service, served_model
from hypothesis import given
from hypothesis import strategies as st
from roost.server.app import create_app
from roost.server.features.anthropic.schemas import MessagesBody
from roost.server.features.native.generate import GenerateBody
from roost.server.features.native.prompts import DetokenizeBody, TokenizeBody
from roost.server.features.responses.body import ResponseBody
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.text.tokenizer import Tokenizer

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "<eos>", "\x00", "user", "text"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)

GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    "/v1/completions": (CompletionBody, {"prompt": "a", "max_tokens": 2}),
    "/v1/responses": (ResponseBody, {"input": "a", "max_output_tokens": 2}),
    "/v1/messages": (MessagesBody, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    "/generate": (GenerateBody, {"token_ids": [4], "max_tokens": 2}),
    "/apply-template": (ChatBody, {"messages": [{"role": "user", "content": "a"}]}),
    "/v1/completions/render": (CompletionBody, {"prompt": "a"}),
    "/tokenize": (TokenizeBody, {"prompt": "a"}),
    "/detokenize": (DetokenizeBody, {"tokens": [4]}),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A good request, of which up to three fields have been replaced."""
    path = draw(st.sampled_from(sorted(GOOD)))
    schema, good = GOOD[path]
    names = st.sampled_from([*schema.model_fields, *sorted(schema.field_rules.names)])
    return path, {**good, **draw(st.dictionaries(names, values, max_size=3))}


@given(case=requests())
async def test_no_value_breaks_the_server(tokenizer: Tokenizer, case: tuple[str, dict[str, Any]]) -> None:
    path, body = case
    async with client_of(create_app(make_service(FakeEngine(VOCAB_SIZE), served_model(tokenizer)))) as client:
        content = json.dumps(body)
        response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
