"""What every kind of job has: a name, labels, limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints

from app.contract.closed import Closed

# Printable and single-line: these end up in logs, headers and terminals.
_PRINTABLE = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
_LABEL_KEY = r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?"

DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=f"^{_PRINTABLE}+$")]
LabelKey = Annotated[str, StringConstraints(pattern=f"^{_LABEL_KEY}$")]
LabelValue = Annotated[str, StringConstraints(max_length=128, pattern=f"^{_PRINTABLE}*$")]
Label = Annotated[str, StringConstraints(pattern=f"^{_LABEL_KEY}:{_PRINTABLE}{{0,128}}$")]
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
