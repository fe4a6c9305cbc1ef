"""The benchmark's own code, on digits: what it says of MNIST is in `benchmarks/frontier.md`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.contract.datasets import DatasetName
from app.contract.network import parameter_count
from app.contract.spec import ModelSpec, PruneSpec, TrainSpec, parse_spec
from benchmarks.frontier.__main__ import HERE, MODELS, main
from benchmarks.frontier.jobs import carry_out, folder
from benchmarks.frontier.recipe import Chain, chains, job_id, random_source
from benchmarks.frontier.recount import logits, nonzero, recount
from benchmarks.frontier.results import keep, kept
from benchmarks.frontier.writing import draw, write
from worker.engine import checkpoint
from worker.engine.compact import build, compact
from worker.engine.data import DatasetStore
from worker.engine.model import fresh
from worker.engine.pixels import scaled
from worker.engine.unpack import unpack


@pytest.mark.parametrize("kept_share", [1.0, 0.1, 0.01])
def test_numpy_says_what_pytorch_says(kept_share: float) -> None:
    state = fresh(ModelSpec(channels=(3, 4, 5), hidden=6), seed=1).state_dict()
    generator = torch.Generator().manual_seed(2)
    for name in ("layer2.0.weight", "fc1.weight", "fc2.weight"):
        state[name] *= torch.rand(state[name].shape, generator=generator) < kept_share
    small = compact(state)
    images = torch.rand(7, 1, 28, 28, generator=generator)

    found = logits({name: tensor.numpy() for name, tensor in small.state.items()}, images[:, 0].numpy())

    with torch.no_grad():
        expected = build(small)(images).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_each_job_of_the_recipe_begins_where_another_ended() -> None:
    for seed in (0, 1):
        done: set[str] = set()
        for chain in chains(seed):
            done |= {job_id(chain.counts_of)} if chain.counts_of else set()
            for spec in chain.specs:
                if isinstance(spec, PruneSpec) and chain.counts_of is None:
                    assert spec.source.job_id in done
                done.add(job_id(spec))
    assert not {job_id(chain.specs[-1]) for chain in chains(0)} & {job_id(chain.specs[-1]) for chain in chains(1)}


def test_the_small_dense_control_has_no_more_parameters_than_its_target() -> None:
    chain = next(chain for chain in chains(0) if chain.line == "small-dense")
    spec = chain.specs[0]
    assert isinstance(spec, TrainSpec)
    assert 0.95 * chain.target < parameter_count(spec.model.channels, spec.model.hidden) <= chain.target


_COURSE = {"epochs": 1, "batch_size": 200}


def _on_digits(**document: object) -> TrainSpec | PruneSpec:
    spec = parse_spec({"dataset": {"name": "digits", "validation_images": 100}, **document})
    assert isinstance(spec, TrainSpec | PruneSpec)
    return spec


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chain, Chain]:
    """A folder in which two chains were run: a pruned network, and its control with a random mask."""
    root = tmp_path_factory.mktemp("frontier")
    model = {"channels": [2, 3, 4], "hidden": 5}
    dense = _on_digits(kind="train", model=model, training=_COURSE)
    amount = {"method": "magnitude", "keep": 200}
    pruned = _on_digits(kind="prune", source={"job_id": job_id(dense)}, pruning=amount, fine_tuning=_COURSE)
    assert isinstance(pruned, PruneSpec)
    source = {"job_id": random_source(dense, pruned, 0)}
    nothing = {"method": "threshold", "threshold": 0}
    control = _on_digits(kind="prune", source=source, pruning=nothing, fine_tuning=_COURSE)
    chain = Chain("lamp", 200, 0, (dense, pruned))
    random = Chain("direct-random", 200, 0, (dense, control), counts_of=pruned)
    for each in (chain, random):
        carry_out(each, root, DatasetStore(None))
    return root, chain, random


def test_the_random_control_has_other_entries_and_as_many_in_each_tensor(work: tuple[Path, Chain, Chain]) -> None:
    root, chain, random = work
    (_, pruned), (_, control) = (
        checkpoint.load(folder(root, each.specs[-1]) / "model.safetensors") for each in (chain, random)
    )
    counted = [name for name in pruned if ".running_" not in name and "num_batches" not in name]
    assert [int(control[name].count_nonzero()) for name in counted] == [
        int(pruned[name].count_nonzero()) for name in counted
    ]
    assert any(not torch.equal(control[name] != 0, pruned[name] != 0) for name in counted)


def test_what_is_done_is_not_done_again(work: tuple[Path, Chain, Chain]) -> None:
    root, chain, _ = work
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    carry_out(chain, root, DatasetStore(None))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_recount_agrees_with_the_receipt_unless_it_is_wrong(work: tuple[Path, Chain, Chain], tmp_path: Path) -> None:
    root, chain, _ = work
    result = keep(chain, root, tmp_path)
    digits = DatasetStore(None).load(DatasetName.DIGITS)
    images, labels = scaled(digits.test_images)[:, 0].numpy(), digits.test_labels.numpy().astype(np.uint8)

    (row,) = recount(tmp_path, images, labels)
    assert row.agrees
    assert (row.nonzero, row.bytes, row.receipt["images"]) == (result.packed_nonzero, result.packed_bytes, 360)
    assert "agrees" in str(row)

    for wrong in ({"packed_nonzero": row.nonzero - 1}, {"packed_bytes": row.bytes + 1}, {"wrong": row.wrong + 3}):
        (tmp_path / f"{result.name}.json").write_text(result.model_copy(update=wrong).model_dump_json())
        (row,) = recount(tmp_path, images, labels)
        assert not row.agrees
        assert "DIFFERS" in str(row)


def test_the_texts_tell_of_every_line(work: tuple[Path, Chain, Chain], tmp_path: Path) -> None:
    root, chain, random = work
    made_up = [replace(chain, line=line, target=target) for line, target in _places()] + [random]
    results = [keep(each, root, tmp_path) for each in made_up]
    text = write(kept(tmp_path))
    assert len(re.findall(rf"\b{100 * results[0].error:.2f}\b", text)) >= 5
    assert draw(results).startswith(b"\x89PNG")


def test_its_processes_say_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, work = str(tmp_path / "data"), str(tmp_path / "work")
    with pytest.raises(SystemExit, match=rf"^.*{re.escape(data)}.*$"):  # a message, so the status is 1
        main([data, "--work", work, "--seeds", "0", "--lines", "small-dense"])
    assert capfd.readouterr() == ("", "")


def _places() -> list[tuple[str, int]]:
    return [(chain.line, chain.target) for chain in chains(0) if chain.line != "direct-random"]


# What is kept


def test_every_kept_network_is_the_one_of_its_receipt_and_within_its_target() -> None:
    results = kept(MODELS)
    assert results
    assert {path.stem for path in MODELS.glob("*.npz")} == {result.name for result in results}
    for result in results:
        content = (MODELS / f"{result.name}.npz").read_bytes()
        assert hashlib.sha256(content).hexdigest() == result.sha256["packed.npz"]
        assert nonzero(unpack(content)) == result.packed_nonzero
        assert max(result.nonzero, result.packed_nonzero) <= result.target
        assert [spec["job_id"] for spec in result.specs] == list(result.seconds)


def test_the_kept_networks_are_of_the_recipe() -> None:
    expected = {(chain.line, chain.target, seed): chain for seed in range(3) for chain in chains(seed)}
    for result in kept(MODELS):
        chain = expected[result.line, result.target, result.seed]
        assert [spec["job_id"] for spec in result.specs] == [job_id(spec) for spec in chain.specs]


def test_the_text_is_of_what_is_kept() -> None:
    assert (HERE.parent / "frontier.md").read_text() == write(kept(MODELS))
