"""How a spec names an earlier job, and a checkpoint that it published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from app.contract.closed import Closed

JOB_ID_PATTERN = r"^job_[0-9a-f]{32}$"

JobId = Annotated[str, StringConstraints(pattern=JOB_ID_PATTERN)]


class CheckpointRef(Closed):
    """A checkpoint that an earlier job published."""

    job_id: JobId
    artifact: Literal["model.safetensors", "dense.safetensors"] = "model.safetensors"
