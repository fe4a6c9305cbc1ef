"""`frontier.json` as a model: what became of the members of a sweep, side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class MemberSettings(_Document):
    """What a member has on each axis of the grid, whether that varies or not; null on those that it lacks."""

    channels: tuple[int, int, int]
    hidden: int
    strength: float = Field(description="Of the penalty; 0 without one.")
    threshold: float | None
    sparsity: float | None = Field(description="As asked for.")
    keep: int | None
    seed: int


class MemberOutcome(_Document):
    """As the member's own report has it."""

    parameters: int
    nonzero: int = Field(description="At the end.")
    sparsity: float = Field(description="Zeros over all parameters, at the end.")
    test_images: int
    correct: int = Field(description="Test images that the network that is published classifies rightly.")
    accuracy_before: float = Field(description="On the test images, when the pruning began.")
    accuracy_pruned: float | None = Field(description="Right after the last pruning; null without one.")
    accuracy_after: float = Field(description="Of the network that is published.")
    compact_parameters: int | None = Field(description="Of the compact network.")


class FrontierMember(_Document):
    number: int = Field(description="From 0, in the order of the grid.")
    job_id: str
    status: str = Field(
        description="What had become of the job: succeeded, failed or cancelled; another status when it was retried; "
        "deleted; an open set of words."
    )
    error_code: str | None = Field(description="Of one that failed.")
    settings: MemberSettings
    outcome: MemberOutcome | None = Field(description="Of one that succeeded.")
    on_front: bool = Field(
        description="No other member has as few non-zeros and as good an accuracy, and one of both better."
    )


class Frontier(_Document):
    version: Literal[1] = 1
    dataset: str
    dataset_name: str | None = Field(None, description="As the members' reports have it.")
    axes: tuple[str, ...] = Field(description="Which of widths, strength, threshold, sparsity, keep and seed vary.")
    members: tuple[FrontierMember, ...]
    front: tuple[int, ...] = Field(description="Numbers of the members on the front, the fewest non-zeros first.")
    same_shape: tuple[tuple[int, ...], ...] = Field(
        description="Numbers of the members whose networks have the same shapes, and so make the same steps."
    )
