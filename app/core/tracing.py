"""Traces by OpenTelemetry: on where `OTEL_EXPORTER_OTLP_ENDPOINT` says where they go, and else they cost nothing.

What a request does continues the trace that its client named; a job remembers that trace, and so its attempts continue
it too. Sending is left to a thread: a collector that is away delays nothing and fails nothing, its spans are dropped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracerProvider, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.core.logging import redacted
from app.core.version import VERSION

# The SDK is an extra, and imported when it is switched on.
if TYPE_CHECKING:
    from opentelemetry.context import Context

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""What the end of a process may wait for the last spans to be sent."""

_W3C = TraceContextTextMapPropagator()


def make_provider(service: str) -> TracerProvider:
    """One that sends, or one that does nothing. `OTEL_SERVICE_NAME` wins over `service`."""
    if not _is_wanted():
        return NoOpTracerProvider()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
        from opentelemetry.sdk.trace import TracerProvider as Sending
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no traces: install secateur[otel]", extra={"error": str(error)})
        return NoOpTracerProvider()

    class Redacting(SpanProcessor):
        """Paths and queries are what a client makes of them, and a client may put its key there."""

        def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
            for name in ("url.path", "url.query"):
                if isinstance(value := (span.attributes or {}).get(name), str):
                    span.set_attribute(name, redacted(value))

        def on_end(self, span: ReadableSpan) -> None:
            """Nothing."""

    # It warns of each try; that it has given up is enough.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    named = resources.Resource.create({"service.name": service, "service.version": VERSION})
    # The process itself ends it: see `close`.
    provider = Sending(resource=named.merge(resources.OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(Redacting())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_wanted() -> bool:
    named = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{which}ENDPOINT") for which in ("", "TRACES_"))
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return named and not disabled and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"


def close(provider: TracerProvider) -> None:
    """Send what is left, within seconds or not at all."""
    shutdown = getattr(provider, "shutdown", None)
    if shutdown is not None:
        # By itself it waits for the collector for up to half a minute.
        ending = threading.Thread(target=shutdown, name="end of traces", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)


@contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """Until the end of the block, be within the trace of this W3C Trace Context, unless in one already. A header that
    is none is ignored."""
    if trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = context.attach(_W3C.extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def traceparent() -> str | None:
    """What to give to those who are to continue the present trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def context_of(traceparent: str | None) -> Context:
    """The place in a trace that `traceparent` returned once; an empty one when there was none."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {})


def trace_field() -> dict[str, str]:
    """For the log: `trace_id` of the present trace, if there is one."""
    present = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(present.trace_id)} if present.is_valid else {}
