"""A job as one trace, from the request that submits it to the phases of its training."""

from __future__ import annotations

from itertools import pairwise

import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.collector import Collector
from tests.specs import ended, train_spec
from tests.waiting import wait_until

CLIENT_TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_job_is_one_trace_from_its_request_to_its_training(http: httpx.Client, traces: Collector) -> None:
    traceparent = {"traceparent": f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"}
    job = ended(http, http.post("/v1/jobs", json=train_spec(), headers=traceparent).json()["id"])

    def sent() -> dict[str, list[tuple[str, Span]]] | None:
        found: dict[str, list[tuple[str, Span]]] = {}
        for service, span in sorted(traces.spans.get(CLIENT_TRACE, []), key=lambda sent: sent[1].start_time_unix_nano):
            found.setdefault(span.parent_span_id.hex(), []).append((service, span))
        return (
            found
            if {"POST /v1/jobs", "run job"} <= {span.name for each in found.values() for _, span in each}
            else None
        )

    # By the span that they are part of. An attempt ends after its phases, and so it is sent after them.
    spans = wait_until(sent, timeout=30, what="the collector has the job's spans")
    [(service, request)] = spans[CLIENT_SPAN]
    assert (service, request.name, request.kind) == ("secateur-api", "POST /v1/jobs", Span.SPAN_KIND_SERVER)

    [(service, attempt)] = spans[request.span_id.hex()]
    assert (service, attempt.name, attempt.kind) == ("secateur-worker", "run job", Span.SPAN_KIND_CONSUMER)
    assert [(link.trace_id.hex(), link.span_id) for link in attempt.links] == [(CLIENT_TRACE, request.span_id)]
    told = {each.key: each.value.string_value for each in attempt.attributes}
    assert (told["secateur.job.id"], told["secateur.attempt.outcome"]) == (job["id"], "succeeded")

    phases = [span for _, span in spans[attempt.span_id.hex()]]
    log = http.get(f"/v1/jobs/{job['id']}/events", params={"limit": 100}).json()["items"]
    assert [span.name for span in phases] == [entry["data"]["phase"] for entry in log if entry["type"] == "phase"]
    assert "training" in [span.name for span in phases]
    assert all(one.end_time_unix_nano <= next.start_time_unix_nano for one, next in pairwise(phases))
