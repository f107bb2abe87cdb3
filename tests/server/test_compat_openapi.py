"""Schemathesis: whatever /openapi.json allows, or just not, is answered as it says, and never by a failure of ours."""

import pytest
import schemathesis
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, make_service, served_model
from hypothesis import HealthCheck, settings
from roost.server.app import create_app
from roost.server.tokenizer import synthetic_tokenizer

pytestmark = pytest.mark.compat

CHECKS = (
    schemathesis.checks.not_a_server_error,
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
