"""An attempt as a span: part of the trace of the request that submitted the job, and each phase a span within it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, get_current_span, use_span

from app.core import tracing
from app.db.attempts import Claim


class AttemptTrace:
    """Both a child of the submission and linked to it: a child, so that all of a job is one trace; linked, since that
    is how OpenTelemetry's conventions for messaging tell that a queue lay between the two."""

    def __init__(self, tracer: Tracer, claim: Claim) -> None:
        submission = tracing.context_of(claim.traceparent)
        submitted = get_current_span(submission).get_span_context()
        self._tracer = tracer
        self._phase: Span | None = None
        self._span = tracer.start_span(
            "run job",
            context=submission,
            kind=SpanKind.CONSUMER,
            links=[Link(submitted)] if submitted.is_valid else [],
            attributes={
                "secateur.job.id": claim.job_id,
                "secateur.job.kind": claim.spec["kind"],
                "secateur.job.attempt": claim.attempt,
                "secateur.tenant": claim.tenant,
            },
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """The span ends with the block, whatever ends that."""
        # What ends it here is no error of the attempt's: that tells of its own by `failed`.
        with use_span(self._span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            finally:
                self._end_phase()

    def enter(self, phase: str) -> None:
        """The attempt is at something else from here on. Within `running`."""
        self._end_phase()
        self._phase = self._tracer.start_span(phase)

    def failed(self, code: str) -> None:
        for span in filter(None, (self._phase, self._span)):
            span.set_attribute("error.type", code)
            span.set_status(StatusCode.ERROR)

    def ended(self, outcome: str) -> None:
        self._span.set_attribute("secateur.attempt.outcome", outcome)

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.end()
