"""What a client may change of a job: what it is called. A merge patch (RFC 7396)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from app.contract.closed import Closed
from app.contract.job import MAX_LABELS, NO_OTHER_KEYS, DisplayName, LabelKey, LabelValue

LabelChanges = Annotated[
    dict[LabelKey, LabelValue | None], Field(max_length=2 * MAX_LABELS, json_schema_extra=NO_OTHER_KEYS)
]


class JobPatch(Closed):
    """A field that is left out stays as it is; null removes."""

    display_name: DisplayName | None = None
    labels: Annotated[
        LabelChanges | None,
        Field(description="Set one by one: those that are not named stay. Null removes them all."),
    ] = {}  # noqa: RUF012 - pydantic copies it


PATCH: TypeAdapter[JobPatch] = TypeAdapter(JobPatch)
