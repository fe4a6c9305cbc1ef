"""Several members, networks of one shape with a course each, trained at once on one device: what is launched is
launched for all of them."""

from __future__ import annotations

from worker.engine.together.fit import Way, Where, misfit, way
from worker.engine.together.training import Member, train_together, unfit

__all__ = ["Member", "Way", "Where", "misfit", "train_together", "unfit", "way"]
