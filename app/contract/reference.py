"""How a spec names an earlier job, and a checkpoint that it published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from app.contract import patterns
from app.contract.closed import Closed

JobId = Annotated[str, StringConstraints(pattern=patterns.JOB_ID)]


class CheckpointRef(Closed):
    """A checkpoint that an earlier job published."""

    job_id: JobId
    artifact: Literal["model.safetensors", "dense.safetensors"] = "model.safetensors"
