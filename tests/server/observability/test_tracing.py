"""Spans of requests: attributes, parents, and export to a collector."""

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.observability.metrics import Metrics
from roost.server.observability.telemetry import open_tracing
from roost.server.observability.tracing import Tracing, exporting_to
from roost.server.settings import load_settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "authorization": "Bearer a"}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(service: Service, engine: FakeEngine, spans: InMemorySpanExporter) -> AsyncIterator[httpx.AsyncClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = Tracing(provider, "counter")
    service = replace(service, metrics=Metrics(lambda: engine.stats, observers=[tracing]))
    async with client_of(create_app(service, Access(ApiKeys(["alice:a"])), trace=tracing.middleware)) as client:
        yield client


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


async def test_request_has_spans_of_its_phases(traced: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    body = {"prompt": "abc", "max_tokens": 3, "temperature": 0.5}
    response = await traced.post("/v1/completions", json=body, headers=HEADERS)
    found = by_name(spans)
    request, whole = found["POST /v1/completions"], found["text_completion counter"]
    assert request.context is not None
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["roost.request_id"] == response.headers["x-request-id"]
    assert whole.parent == request.context
    assert whole.attributes is not None
    expected = {
        "gen_ai.request.model": "counter",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "roost.tenant": "alice",
    }
    assert {name: whole.attributes[name] for name in expected} == expected
    parts = [found[name] for name in ("queue", "prefill", "decode")]
    assert all(part.parent == whole.context for part in parts)
    edges = [time for part in parts for time in (part.start_time or 0, part.end_time or 0)]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (whole.start_time, whole.end_time)
    assert edges[1] == edges[2]
    assert edges[3] == edges[4]


async def test_choices_are_siblings(traced: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    await traced.post("/v1/completions", json={"prompt": "abc", "n": 3, "stream": True}, headers=HEADERS)
    names = [span.name for span in spans.get_finished_spans()]
    assert names.count("text_completion counter") == names.count("decode") == 3
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.context} == {TRACE}


async def test_failed_request_has_error_status(
    traced: httpx.AsyncClient, engine: FakeEngine, spans: InMemorySpanExporter
) -> None:
    engine.dies_after = 1
    assert (await traced.post("/v1/completions", json={"prompt": "abc"}, headers=HEADERS)).status_code == 503
    found = by_name(spans)
    assert found["POST /v1/completions"].status.status_code is StatusCode.ERROR
    assert found["text_completion counter"].status.status_code is StatusCode.ERROR


async def test_spans_contain_no_text(traced: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    await traced.post("/v1/completions?secret=1", json={"prompt": "secret", "stop": "secret"}, headers=HEADERS)
    await traced.get("/v1/responses/secret", headers=HEADERS)
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


@pytest.mark.parametrize("given", ["", "zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é"])
async def test_malformed_traceparent_is_ignored(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter, given: str
) -> None:
    headers = {b"traceparent": given.encode(), b"authorization": b"Bearer a"}
    assert (await traced.get("/v1/models", headers=headers)).status_code == 200
    assert by_name(spans)["GET /v1/models"].parent is None


async def test_probes_are_not_traced(traced: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    for path in ("/health", "/metrics"):
        await traced.get(path)
    assert not spans.get_finished_spans()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Yields the URL of a collector on loopback, and the bodies it receives."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
        server.shutdown()
        thread.join()


async def test_spans_reach_a_collector(
    service: Service, engine: FakeEngine, collector: tuple[str, list[bytes]]
) -> None:
    endpoint, got = collector
    tracing = open_tracing(load_settings({"otlp_traces_endpoint": endpoint}), "counter")
    assert tracing is not None
    service = replace(service, metrics=Metrics(lambda: engine.stats, observers=[tracing]))
    async with client_of(create_app(service, trace=tracing.middleware)) as client:
        await client.post("/v1/completions", json={"prompt": "abc"})
    tracing.shut_down()
    sent = [ExportTraceServiceRequest.FromString(body) for body in got]
    resource = sent[0].resource_spans[0].resource
    assert {each.key: each.value.string_value for each in resource.attributes}["service.name"] == "roost"
    names = {
        span.name for each in sent for one in each.resource_spans for kind in one.scope_spans for span in kind.spans
    }
    assert {"POST /v1/completions", "text_completion counter", "queue", "prefill", "decode"} == names


def test_no_endpoint_means_no_tracing() -> None:
    assert open_tracing(load_settings({}), "counter") is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
    ],
)
async def test_a_conversation_is_a_chat(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter, path: str, body: dict[str, object]
) -> None:
    assert (await traced.post(path, json=body, headers=HEADERS)).status_code == 200
    attributes = by_name(spans)["chat counter"].attributes
    assert attributes is not None
    assert attributes["gen_ai.operation.name"] == "chat"


@pytest.mark.parametrize(("name", "expected"), [(None, "roost"), ("front", "front")])
def test_the_service_has_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str | None, expected: str
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    tracing = exporting_to("http://127.0.0.1:9/v1/traces", "counter")
    attributes = tracing._provider.resource.attributes
    tracing.shut_down()
    found = [attributes[key] for key in ("service.name", "service.version", "deployment.environment.name")]
    assert found == [expected, version("roost"), "test"]
