"""Spans for OpenTelemetry: of each HTTP request, of each answer that the engine makes for it, and of an answer's parts.

Nothing here knows what was said: spans have names, numbers and times.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logging import request_id
from .request_record import RequestRecord

_QUIET: Final = ("/", "/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Asked every few seconds, and of no interest."""


class Tracing:
    """Makes spans of what it is told; a W3C `traceparent` that a client sends is where they belong.

    Args:
      provider: where they go.
      model: the model's name.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("roost")
        self._model = model
        self._propagator = TraceContextTextMapPropagator()

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application with a span about each request."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _QUIET:
                await app(scope, receive, send)
                return
            parent = self._propagator.extract(dict(Headers(scope=scope)))
            with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:

                async def watched(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        _tell_status(span, message["status"])
                    await send(message)

                await app(scope, receive, watched)
                _tell_route(span, scope)

        return traced

    def tokens(self, record: RequestRecord, count: int, gap_s: float) -> None:
        """Spans tell of them at the end."""

    def ended(self, record: RequestRecord) -> None:
        """Belongs to the span in whose context the request ran."""
        epoch_s = time.time() - time.monotonic()

        def span(name: str, begin_s: float, end_s: float, facts: Mapping[str, Any], parent: Span | None = None) -> Span:
            context = None if parent is None else trace.set_span_in_context(parent)
            made = self._tracer.start_span(
                name, context, attributes=dict(facts), start_time=int((begin_s + epoch_s) * 1e9)
            )
            if parent is None and record.reason == "error":
                made.set_status(Status(StatusCode.ERROR))
            made.end(int((max(begin_s, end_s) + epoch_s) * 1e9))
            return made

        whole = span(f"text_completion {self._model}", record.arrived, record.ended, self._facts(record))
        started = record.ended if record.started is None else record.started
        span("queue", record.arrived, started, {}, whole)
        if record.started is None:
            return
        first_token = record.ended if record.first_token is None else record.first_token
        span("prefill", started, first_token, {"roost.prompt_tokens": len(record.request.prompt_token_ids)}, whole)
        if record.first_token is not None:
            span("decode", first_token, record.ended, {"roost.generated_tokens": record.num_tokens}, whole)
            together = {"roost.sum": True}  # of moments between the tokens, put one behind the other
            span("detokenize", first_token, first_token + record.detokenize_s, together, whole)

    def shut_down(self) -> None:
        """Sends what has not been sent."""
        self._provider.shutdown()

    def _facts(self, record: RequestRecord) -> dict[str, Any]:
        params, finish_reasons = record.request.params, [record.reason] if record.has_finished else []
        facts = {
            "gen_ai.operation.name": "text_completion",
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
        return {name: value for name, value in facts.items() if value is not None}


def open_tracing(endpoint: str, model: str, version: str) -> Tracing:
    """Spans go to a collector, over HTTP and in batches.

    Args:
      endpoint: such as `http://localhost:4318/v1/traces`.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "roost", "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider, model)


def _tell_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _tell_route(span: Span, scope: Scope) -> None:
    """A path as the client wrote it would make as many names as there are ids."""
    route = getattr(scope.get("route"), "path", None)
    span.set_attributes({"http.request.method": scope["method"], "roost.request_id": request_id.get()})
    if route is not None:
        span.set_attribute("http.route", route)
        span.update_name(f"{scope['method']} {route}")
