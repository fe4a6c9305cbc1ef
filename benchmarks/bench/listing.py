"""Pages of the list of jobs, where there are a thousand and where there are a million."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import psycopg
from sqlalchemy.orm import Session

from app.db.jobs import Filter
from app.db.models import JobRow
from app.db.session import session_scope
from app.local import Stack, stack
from app.services import cursors
from app.services.jobs import FILTER
from app.services.keys import DEFAULT_TENANT
from benchmarks.bench.load import Request, seconds_for
from benchmarks.bench.measuring import Setting, in_turn
from benchmarks.bench.rows import Row
from benchmarks.bench.serving import SPEC, UNLIMITED

FEW, MANY = 1_000, 1_000_000

_TEXT = """Pages of twenty, one after another on one connection: the first, those that begin at random places, and the
last. All jobs are one tenant's, cancelled, and a second apart. The two services run side by side and are asked in
turn."""

# Copies of one job, as the triggers would have let them come about.
_COPY = """
INSERT INTO jobs ({columns}) SELECT {values} FROM jobs, generate_series(1, %s) AS n WHERE id = %s
"""


class _Service(NamedTuple):
    stack: Stack
    pages: Mapping[str, Sequence[str]]
    """Addresses to ask for in turn."""


def measure(setting: Setting) -> tuple[Sequence[Row], str]:
    count, many = setting.work(400, 40), setting.work(MANY, 20_000)
    with ExitStack() as opened:
        few, most = (_filled(_service(opened), jobs, count) for jobs in (FEW, many))
        found = {
            which: in_turn(setting.rounds(5), partial(_milliseconds, most, which), partial(_milliseconds, few, which))
            for which in few.pages
        }
    rows = [
        Row(
            what=f"list of {many:,} jobs, {which}",
            against=f"the same of {FEW:,}",
            kind="cost",
            unit="ms a page",
            ours=ours,
            plain=plain,
            must=1.5,
            aim=1.1,
        )
        for which, (ours, plain) in found.items()
    ]
    return rows, _TEXT


def _service(opened: ExitStack) -> Stack:
    folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="listing-"))
    return opened.enter_context(stack(state_dir=Path(folder) / "state", workers=0, env=UNLIMITED))


def _milliseconds(service: _Service, which: str) -> float:
    requests = [Request("GET", page) for page in service.pages[which]]
    took = seconds_for(service.stack.url, service.stack.api_key, requests, connections=1, status=200)
    return took / len(requests) * 1_000


def _filled(service: Stack, jobs: int, count: int) -> _Service:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60) as http:
        job_id = http.post("/v1/jobs", json=SPEC).raise_for_status().json()["id"]
        http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        _multiply(service.database_url, job_id, jobs - 1)
        told = http.get("/v1/jobs").raise_for_status().json()["items"]
        assert len(told) == 20
        url = service.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
        draw = random.Random(0)  # noqa: S311 - no secret
        with session_scope(url) as session:
            places = tuple(_page(session, draw.randrange(20, jobs - 20)) for _ in range(count))
            last = _page(session, jobs - 21)
        end = http.get(last).raise_for_status().json()
        assert (len(end["items"]), end["next_cursor"]) == (20, None), end
    return _Service(
        service, {"first page": ["/v1/jobs"] * count, "pages at random places": places, "last page": [last] * count}
    )


def _multiply(database_url: str, job_id: str, times: int) -> None:
    """Each copy a second older than the one before; its id is its place in the list."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs' AND is_generated = 'NEVER' "
            "ORDER BY ordinal_position"
        ).fetchall()
        columns = [name for (name,) in found]
        own = {"id": "'job_' || lpad(n::text, 32, '0')", "created_at": "created_at - make_interval(secs => n)"}
        values = ", ".join(own.get(name, name) for name in columns)
        connection.execute("SET session_replication_role = replica")  # no triggers: a million notices tell nothing
        connection.execute(_COPY.format(columns=", ".join(columns), values=values), (times, job_id))
        connection.execute("VACUUM ANALYZE jobs")


def _page(session: Session, place: int) -> str:
    """The address of the page after the `place`-th copy."""
    row = session.get(JobRow, _copy(place))
    assert row is not None
    content = {"at": row.created_at.isoformat(), "id": row.id, "filter": FILTER.dump_python(Filter(), mode="json")}
    return f"/v1/jobs?cursor={quote(cursors.encode(session, DEFAULT_TENANT, content))}"


def _copy(place: int) -> str:
    return f"job_{place:032d}"
