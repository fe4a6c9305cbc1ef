"""Runs up to what they publish: pictures, exports and latency are most of the work of a small one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from app.contract.network import PARAMETER_NAMES
from app.contract.report import Accuracy
from app.contract.result import Result
from app.contract.spec import parse_spec
from app.contract.status import Phase
from tests.engine.conftest import Listener
from tests.engine.few import ALL
from tests.specs import Document
from worker.engine import pipeline
from worker.engine.execute import AFTER, BEFORE, PRUNED, Awaited, Training
from worker.engine.lockstep import Whole, carry_out
from worker.engine.progress import Progress, state_of


class Measured(Exception):
    """All has been measured."""


class Unpublished(Listener):
    """Ends a run where it would write its report."""

    def enter(self, phase: Phase) -> None:
        super().enter(phase)
        if phase == Phase.REPORTING:
            raise Measured


NOTHING: Mapping[str, Path] = MappingProxyType({})


class Watched(Whole[Result]):
    """A run with at least one training, which can be looked at afterwards."""

    def __init__(
        self, spec: Document, out: Path, heard: Listener, inputs: Mapping[str, Path] = NOTHING, **given: Any
    ) -> None:
        given = {"datasets": ALL, **given}
        super().__init__(pipeline.steps(parse_spec(spec), inputs=inputs, out=out, observer=heard, **given))
        self.heard = heard

    def go_on(self, answer: object = None, failure: BaseException | None = None) -> Awaited | None:
        awaited = super().go_on(answer, failure)
        if isinstance(awaited, Training):
            self._member = awaited.member
        return awaited

    @property
    def progress(self) -> Progress:
        return self._member.progress

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Of the network that would be published."""
        return state_of(self._member.network)

    @property
    def before(self) -> Accuracy:
        return self.progress.accuracies[BEFORE]

    @property
    def after(self) -> Accuracy:
        found = self.progress.accuracies
        return next(found[point] for point in (AFTER, PRUNED, BEFORE) if point in found)

    @property
    def nonzero(self) -> int:
        state = self.state
        return sum(int(state[name].count_nonzero()) for name in PARAMETER_NAMES)


def measured(spec: Document, out: Path, inputs: Mapping[str, Path] = NOTHING, **given: Any) -> Watched:
    """A run by itself, in the folder `out`, which stays as it is."""
    run = Watched(spec, out, Unpublished(), inputs, **given)
    carry_out([run])
    assert isinstance(run.failure, Measured), run.failure
    return run
