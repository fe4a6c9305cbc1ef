"""What every part of a spec is made of: models that are frozen, closed and never guess."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue
from pydantic_core import PydanticCustomError

T = TypeVar("T", bound=Hashable)


class Closed(BaseModel):
    """Refuses what it does not know, and anything that would have to be guessed (`"5"` is no number)."""

    # Built when first used, not with each import of the contract: a twentieth of the start.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refusal(pointer: str, code: str, reason: str) -> PydanticCustomError:
    """What is wrong lies between fields: `pointer` is the one to mend, from the model whose validator raises this."""
    return PydanticCustomError(code, "{reason}", {"reason": reason, "pointer": pointer})


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) != len(values):
        raise ValueError("entries must not repeat")
    return values


NO_REPEATS = AfterValidator(_distinct)
UNIQUE: dict[str, JsonValue] = {"uniqueItems": True}
"""The same for readers of the JSON Schema."""
