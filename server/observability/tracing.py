"""OpenTelemetry spans of HTTP requests, of their engine requests and their phases.

Spans have names, numbers and times, but no prompt or output text.
"""

import importlib.metadata
import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logging import request_id
from .request_metrics import Observer, RequestRecord

_QUIET: Final = ("/", "/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Paths that are polled every few seconds and not traced."""


class Tracing(Observer):
    """Creates spans below the W3C `traceparent` of a request, if it has one.

    Args:
      provider: Provider that exports the spans.
      model: Name of the model.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("roost")
        self._model = model
        self._propagator = TraceContextTextMapPropagator()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Returns the application with a span around each request."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _QUIET:
                await app(scope, receive, send)
                return
            parent = self._propagator.extract(dict(Headers(scope=scope)))
            with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:

                async def send_traced(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        _set_status(span, message["status"])
                    await send(message)

                await app(scope, receive, send_traced)
                _set_route(span, scope)

        return traced

    def on_end(self, record: RequestRecord) -> None:
        """Creates the spans of an engine request below the span of its HTTP request."""
        epoch_s = time.time() - time.monotonic()

        def span(
            name: str, begin_s: float, end_s: float, attributes: Mapping[str, Any], parent: Span | None = None
        ) -> Span:
            context = None if parent is None else trace.set_span_in_context(parent)
            created = self._tracer.start_span(
                name, context, attributes=dict(attributes), start_time=int((begin_s + epoch_s) * 1e9)
            )
            if parent is None and record.reason == "error":
                created.set_status(Status(StatusCode.ERROR))
            created.end(int((max(begin_s, end_s) + epoch_s) * 1e9))
            return created

        request = span(f"{_operation(record)} {self._model}", record.arrived, record.ended, self._attributes(record))
        started = record.ended if record.started is None else record.started
        span("queue", record.arrived, started, {}, request)
        if record.started is None:
            return
        first_token = record.ended if record.first_token is None else record.first_token
        span("prefill", started, first_token, {"roost.prompt_tokens": len(record.request.prompt_token_ids)}, request)
        if record.first_token is not None:
            span("decode", first_token, record.ended, {"roost.generated_tokens": record.num_tokens}, request)

    def shut_down(self) -> None:
        """Exports the buffered spans."""
        self._provider.shutdown()

    def _attributes(self, record: RequestRecord) -> dict[str, Any]:
        params, finish_reasons = record.request.params, [record.reason] if record.has_finished else []
        attributes = {
            "gen_ai.operation.name": _operation(record),
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": record.request.id,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.usage.input_tokens": len(record.request.prompt_token_ids),
            "gen_ai.usage.output_tokens": record.num_tokens,
            "gen_ai.response.finish_reasons": finish_reasons,
            "roost.end": record.reason,
            "roost.tenant": record.request.tenant,
        }
        return {name: value for name, value in attributes.items() if value is not None}


def _operation(record: RequestRecord) -> str:
    """Returns the name of an operation by OpenTelemetry's conventions for generative AI."""
    return "chat" if record.is_chat else "text_completion"


def exporting_to(endpoint: str, model: str) -> Tracing:
    """Returns tracing that exports spans to a collector over HTTP, in batches.

    Args:
      endpoint: URL of the collector, such as `http://localhost:4318/v1/traces`.
      model: Name of the model.
    """
    own = Resource({"service.name": "roost", "service.version": importlib.metadata.version("roost")})
    given = OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    provider = TracerProvider(resource=Resource.create().merge(own).merge(given))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider, model)


def _set_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _set_route(span: Span, scope: Scope) -> None:
    """Names a span after its route; paths with ids would make too many names."""
    route = getattr(scope.get("route"), "path", None)
    span.set_attributes({"http.request.method": scope["method"], "roost.request_id": request_id.get()})
    if route is not None:
        span.set_attribute("http.route", route)
        span.update_name(f"{scope['method']} {route}")
