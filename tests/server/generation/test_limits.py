"""Requests for more choices than could ever wait together: they are refused, and not told to come again."""

from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from fake_server import client_of, make_service
from roost.engine import EngineConfig
from roost.server.app import create_app
from roost.server.assembly import service as assembly
from roost.server.generation.service import Limits, Service
from roost.server.settings import load_settings
from roost.server.text.served_model import ServedModel


@pytest.mark.parametrize(("tenants", "expected"), [(1, 25), (2, 13), (9, 13)])
def test_a_tenants_share_of_the_queue_bounds_its_choices(
    tenants: int, expected: int, engine: FakeEngine, service: Service, model: ServedModel
) -> None:
    config = EngineConfig(slots=4, max_queue=25, tenants=tenants)
    made = assembly.make_service(load_settings({}), config, engine, model, service.metrics)
    assert made.limits.max_choices == expected


@pytest.mark.parametrize(("num_choices", "status"), [(4, 200), (5, 400)])
async def test_choices_without_slots_have_to_fit_into_the_queue(
    num_choices: int, status: int, engine: FakeEngine, model: ServedModel
) -> None:
    service = replace(make_service(engine, model), limits=Limits(max_choices_tokens=100))
    body = {"prompt": [[4] * 30] * num_choices, "max_tokens": 1}
    async with client_of(create_app(service)) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == status, response.text
    if status == 400:
        message = "one request may have at most 100 prompt tokens in all its choices, got 150"
        assert response.json()["error"]["message"] == message
