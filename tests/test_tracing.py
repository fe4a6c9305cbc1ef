from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.trace import NoOpTracerProvider

from app.core import tracing
from tests.collector import collector

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE.upper()}\n-{SPAN}-01", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_a_traceparent_is_kept_when_it_is_one(given: str, kept: str | None) -> None:
    with tracing.continued({"traceparent": given}):
        assert tracing.traceparent() == kept
    assert tracing.traceparent() is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_imported_for_traces_that_nobody_wants(environment: dict[str, str]) -> None:
    code = "import sys; from app.core import tracing; tracing.make_provider('x'); print(*sys.modules)"
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "opentelemetry.trace" in done.stdout.split()
    assert "opentelemetry.sdk" not in done.stdout.split()


def test_a_key_in_a_path_is_not_sent_and_the_operator_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        provider = tracing.make_provider("test")
        path = f"/v1/jobs/sk_0123456789ab_{'s' * 43}"
        provider.get_tracer("test").start_span("span", attributes={"url.path": path}).end()
        tracing.close(provider)
    [[(service, span)]] = running.spans.values()
    assert (service, span.attributes[0].value.string_value) == ("ours", "/v1/jobs/sk_0123456789ab_…")


@pytest.fixture
def hanging() -> Iterator[str]:
    """URL of a collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_collector_that_hangs_delays_nothing(hanging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", hanging)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    provider = tracing.make_provider("test")
    assert not isinstance(provider, NoOpTracerProvider)
    tracer, began = provider.get_tracer("test"), time.monotonic()
    for _ in range(5_000):  # more than it keeps
        tracer.start_span("span").end()
    assert time.monotonic() - began < 5
    began = time.monotonic()
    tracing.close(provider)
    assert time.monotonic() - began < tracing.FLUSH_SECONDS + 1
