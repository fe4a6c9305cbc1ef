"""Dashboard and alert rules ask for nothing that a scrape does not have."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.api.main import create_app
from app.core.settings import Settings
from app.db import workers
from app.db.session import session_scope

OF_PROMETHEUS: Mapping[str, set[str]] = {"up": {"job", "instance"}}
"""What it adds itself: a metric, and to each metric two labels."""


class Selector(NamedTuple):
    name: str
    labels: frozenset[str]
    """Those that are asked for anywhere around it."""
    equal: frozenset[tuple[str, str]]


async def _scrape(settings: Settings) -> str:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await client.get("/livez")
        return (await client.get("/metrics")).text


@pytest.fixture
def scraped(database_url: str, broker_url: str, tmp_path: Path) -> Mapping[str, list[dict[str, str]]]:
    """The labels of each sample, by its name, from a service with a worker."""
    with session_scope(database_url) as session:
        workers.seen(session, worker_id="w", device="cpu", device_name="", threads=1, versions={}, job_id=None)
    settings = Settings(database_url=database_url, redis_url=broker_url, artifact_dir=tmp_path)
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(asyncio.run(_scrape(settings))):
        for sample in family.samples:
            found.setdefault(sample.name, []).append({**sample.labels, "job": "secateur", "instance": "i"})
    return found | {"up": [{"job": "secateur", "instance": "i"}]}


def _panels(root: Path) -> Iterator[tuple[str, str, str]]:
    """Expression, and the text around it in which labels are named."""
    dashboard = json.loads((root / "deploy" / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m"), target["legendFormat"]


def _rules(root: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load((root / "deploy" / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def _expressions(root: Path) -> list[tuple[str, str, set[str]]]:
    """What is asked where, and the labels that the text shown beside it names."""
    panels = [(title, expr, set(re.findall(r"{{\s*(\w+)\s*}}", legend))) for title, expr, legend in _panels(root)]
    rules = [
        (rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))))
        for rule in _rules(root)
    ]
    return panels + rules


def _selectors(expr: Any, around: frozenset[str] = frozenset()) -> Iterator[Selector]:
    if isinstance(expr, promql.AggregateExpr) and expr.modifier is not None:
        around |= frozenset(expr.modifier.labels)
    if isinstance(expr, promql.MatrixSelector):
        expr = expr.vector_selector
    if isinstance(expr, promql.VectorSelector):
        matchers = expr.matchers.matchers
        equal = frozenset((each.name, each.value) for each in matchers if each.op == promql.MatchOp.Equal)
        yield Selector(expr.name or "", around | {each.name for each in matchers}, equal)
    parts = [getattr(expr, name, None) for name in ("expr", "lhs", "rhs")]
    for part in [*parts, *getattr(expr, "args", ())]:
        if part is not None:
            yield from _selectors(part, around)


def test_what_is_asked_for_is_there(root: Path, scraped: Mapping[str, list[dict[str, str]]]) -> None:
    asked = set()
    for where, expr, shown in _expressions(root):
        for selector in _selectors(promql.parse(expr)):
            asked.add(selector.name)
            samples = scraped.get(selector.name, [])
            assert any(
                labels.keys() >= selector.labels and labels.items() >= set(selector.equal) for labels in samples
            ), (where, selector)
            assert any(labels.keys() >= shown for labels in samples), (where, shown)
    assert len(asked) > 12
    jobs = {name.removesuffix("_total") for name in scraped if re.match(r"jobs?_|oldest|worker", name)}
    unasked = {name for name in jobs if not any(each.startswith(name) for each in asked)}
    assert {name for name in unasked if not name.endswith(("_sum", "_count"))} == set()


def test_the_operator_s_table_has_each_metric(root: Path, scraped: Mapping[str, list[dict[str, str]]]) -> None:
    rows = re.findall(r"^\| (`.*?`) \| ", (root / "docs" / "operations.md").read_text(), re.MULTILINE)
    documented = {
        (name, frozenset(filter(None, (labels or "").split(","))))
        for row in rows
        for name, labels in re.findall(r"`(\w+)(?:{(\w+(?:,\w+)*)})?`", row)
    }
    there = {
        (re.sub("_(bucket|sum|count)$", "", name), frozenset(labels.keys() - {"le", "job", "instance"}))
        for name, samples in scraped.items()
        for labels in samples
        if not name.startswith("process_") and name != "up"
    }
    assert there <= documented


def test_each_rule_says_what_is_wrong_and_what_to_do(root: Path) -> None:
    rules = _rules(root)
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_prometheus_is_told_of_the_rules_and_of_the_job_that_they_name(root: Path) -> None:
    config = yaml.safe_load((root / "deploy" / "prometheus.yml").read_text())
    assert [(root / "deploy" / file).exists() for file in config["rule_files"]] == [True]
    assert [each["job_name"] for each in config["scrape_configs"]] == ["secateur"]
