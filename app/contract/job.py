"""What every kind of job has: a name, labels, limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints

from app.contract import patterns
from app.contract.closed import Closed

DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=patterns.DISPLAY_NAME)]
LabelKey = Annotated[str, StringConstraints(pattern=patterns.LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(max_length=128, pattern=patterns.LABEL_VALUE)]
Label = Annotated[str, StringConstraints(pattern=patterns.LABEL)]
"""Both as one text, for where there is no JSON."""

MAX_LABELS = 16

NO_OTHER_KEYS: dict[str, JsonValue] = {"additionalProperties": False}
"""Than those of the pattern: for readers of the JSON Schema."""


class Limits(Closed):
    max_queue_seconds: Annotated[int, Field(ge=1, le=604_800)] = 86_400
    max_runtime_seconds: Annotated[int, Field(ge=1, le=604_800)] = 86_400


class JobSpec(Closed):
    """What every kind of job has."""

    display_name: DisplayName | None = None
    labels: dict[LabelKey, LabelValue] = Field({}, max_length=MAX_LABELS, json_schema_extra=NO_OTHER_KEYS)
    limits: Limits = Limits()
