"""Time as the database sees it: the only clock that decisions about a job rest on."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Interval, SQLColumnExpression, func


def now() -> ColumnElement[Any]:
    """The present moment, also late in a long transaction (`now()` would be its start)."""
    return func.clock_timestamp()


def asked_at() -> ColumnElement[Any]:
    """The moment at which the statement began, for its conditions: what holds still can be looked up in an index."""
    return func.statement_timestamp()


def seconds(count: float | SQLColumnExpression[Any]) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, count, type_=Interval)
