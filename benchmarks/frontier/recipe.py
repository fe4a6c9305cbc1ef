"""The job specs behind the frontier: a dense network of a seed, then prunings of it, each beginning where one ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.contract.spec import PruneSpec, TrainSpec, parse_spec

VALIDATION_IMAGES = 5_000
CONTROLS_AT = 1_540

NetworkSpec = TrainSpec | PruneSpec


def job_id(spec: NetworkSpec) -> str:
    """By what the recipe says, the id of its source included: the same recipe is the same job."""
    return _id(spec.model_dump_json(exclude_unset=True))


def _id(content: str) -> str:
    return f"job_{hashlib.sha256(content.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Chain:
    """Jobs that lead to one network, each but the first beginning with what the one before it published."""

    line: str
    target: int
    """Most parameters that may be left."""
    seed: int
    specs: tuple[NetworkSpec, ...]
    counts_of: PruneSpec | None = None
    """Ahead of the last job, a random mask with as many entries in each tensor as this job left is laid on the first
    job's network."""


def chains(seed: int) -> Iterator[Chain]:
    """Everything that is measured, what others begin with first."""
    dense = _dense(seed)
    chain: tuple[NetworkSpec, ...] = (dense, _thinned(dense, seed, 20, 10, keep=4_812))
    yield Chain("lamp", 4_812, seed, chain)
    for target, epochs, pruning_epochs in ((2_406, 14, 6), (1_540, 22, 9), (1_000, 22, 9)):
        chain = (*chain, _thinned(chain[-1], seed, epochs, pruning_epochs, teacher=dense, keep=target))
        yield Chain("lamp", target, seed, chain)
    yield Chain("channels", 9_624, seed, (dense, _narrowed(dense, seed)))
    direct = _thinned(dense, seed, 8, 4, keep=CONTROLS_AT)
    yield Chain("direct-lamp", CONTROLS_AT, seed, (dense, direct))
    globally = _thinned(dense, seed, 8, 4, keep=CONTROLS_AT, method="magnitude", scope="global")
    yield Chain("direct-global", CONTROLS_AT, seed, (dense, globally))
    yield Chain("direct-random", CONTROLS_AT, seed, (dense, _untouched(dense, direct, seed, 8)), counts_of=direct)
    yield Chain("small-dense", CONTROLS_AT, seed, (_small(seed),))


def random_source(dense: NetworkSpec, counts_of: NetworkSpec, seed: int) -> str:
    """The id under which the dense network with a random mask goes."""
    return _id(f"{job_id(dense)} with a random mask, seed {seed}, with the counts of {job_id(counts_of)}")


def _dense(seed: int) -> TrainSpec:
    """The whole network, without the biases that do nothing: BatchNorm's shift follows those of the convolutions, and
    one linear layer the other's."""
    return _train(
        {
            "kind": "train",
            "training": _course(seed, 10, 0.002),
            "pruning": {
                "method": "threshold",
                "threshold": 1000,
                "parameters": ["bias"],
                "layers": ["conv", "linear"],
                "schedule": {"name": "one-shot", "when": "before-training"},
            },
        }
    )


def _thinned(
    source: NetworkSpec,
    seed: int,
    epochs: int,
    pruning_epochs: int,
    teacher: NetworkSpec | None = None,
    **pruning: Any,
) -> PruneSpec:
    """What `source` published, pruned in the first epochs and tuned in the others."""
    schedule = {"name": "gradual", "end_epoch": pruning_epochs, "every_steps": 100}
    how = {"method": "bn-folded", "scope": "lamp", "schedule": schedule, **pruning}
    return _prune(job_id(source), how, seed, epochs, teacher)


def _narrowed(source: NetworkSpec, seed: int) -> PruneSpec:
    """As wide as is fast: ONNX Runtime computes the first convolution, of whole images, for the longest time."""
    keep = {"channels": [3, 6, 16], "hidden": 10}
    schedule = {"name": "iterative", "rounds": 3}
    return _prune(job_id(source), {"method": "channels", "keep": keep, "schedule": schedule}, seed, 5, teacher=source)


def _untouched(dense: NetworkSpec, counts_of: PruneSpec, seed: int, epochs: int) -> PruneSpec:
    """Fine-tuning under the mask that the source has."""
    source = random_source(dense, counts_of, seed)
    return _prune(source, {"method": "threshold", "threshold": 0}, seed, epochs)


def _small(seed: int) -> TrainSpec:
    """1,534 parameters of its own, all of them trained."""
    model = {"channels": [9, 6, 2], "hidden": 6}
    return _train({"kind": "train", "model": model, "training": _course(seed, 18, 0.003) | {"select": "best"}})


def _course(seed: int, epochs: int, learning_rate: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "learning_rate_schedule": "cosine",
        "random_shift": 1,
        "seed": seed,
    }


def _train(document: dict[str, Any]) -> TrainSpec:
    spec = parse_spec(_on_mnist(document))
    assert isinstance(spec, TrainSpec)
    return spec


def _prune(
    source: str, pruning: dict[str, Any], seed: int, epochs: int, teacher: NetworkSpec | None = None
) -> PruneSpec:
    tuning = _course(seed, epochs, 0.003) | {"select": "best"}
    if teacher is not None:
        tuning["distillation"] = {"teacher": {"job_id": job_id(teacher)}}
    document = {"kind": "prune", "source": {"job_id": source}, "pruning": pruning, "fine_tuning": tuning}
    spec = parse_spec(_on_mnist(document))
    assert isinstance(spec, PruneSpec)
    return spec


def _on_mnist(document: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": {"name": "mnist", "validation_images": VALIDATION_IMAGES}, **document}
