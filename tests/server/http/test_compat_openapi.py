"""Schemathesis: whatever /openapi.json allows, or just not, is answered as it says, and never by a failure of ours."""

from typing import Any, Final

import pytest
import schemathesis
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, make_service, served_model
from hypothesis import HealthCheck, settings
from roost.server.app import create_app
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer

pytestmark = pytest.mark.compat

OWN_LIMITS: Final = {504: "timeout", 503: "queue_timeout"}
"""Fields by which a request itself says after how many seconds it wants this status; generated ones want a moment."""


def fails_only_if_asked_to(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    body: Any = case.body
    field = OWN_LIMITS.get(response.status_code)
    if isinstance(body, dict) and field is not None and body.get(field) is not None:
        return None
    return schemathesis.checks.not_a_server_error(context, response, case)


CHECKS = (
    fails_only_if_asked_to,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
)

model = served_model(synthetic_tokenizer(VOCAB_SIZE), max_tokens_limit=4)
app = create_app(make_service(FakeEngine(VOCAB_SIZE), model))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.parametrize()
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_the_description_is_true(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
        ("/generate", {"token_ids": [4, 5]}),
    ],
)
def test_the_description_of_streams_is_true(path: str, body: dict[str, Any]) -> None:
    case = schema[path]["POST"].Case(body={**body, "stream": True}, media_type="application/json")
    response = case.call_and_validate(checks=CHECKS)
    assert response.headers["content-type"][0].startswith("text/event-stream")
