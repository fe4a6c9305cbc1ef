from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.engine.conftest import Listener
from worker.engine.errors import NonFiniteLoss
from worker.engine.evaluate import evaluate
from worker.engine.model import Cnn


@pytest.mark.parametrize("count", [1, 500, 1_203])
def test_it_is_the_plain_loop_over_images(count: int) -> None:
    network = Cnn((2, 2, 2), 4)
    images = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(count) % 10
    heard = Listener()

    told, predictions = evaluate(network, images, labels, heard)

    with torch.no_grad():
        logits = network.eval()(images)
    assert torch.equal(predictions, logits.argmax(1))
    assert told.correct == int((logits.argmax(1) == labels).sum())
    assert (told.total, told.accuracy) == (count, told.correct / count)
    assert told.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert heard.steps[-1] == (len(heard.steps), -(-count // 500), "batches")


def test_it_leaves_the_running_statistics_alone() -> None:
    network = Cnn((2, 2, 2), 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    evaluate(network, torch.rand(7, 1, 28, 28), torch.zeros(7, dtype=torch.int64), Listener())

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class _Overflow(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 10), torch.nan)


def test_a_loss_that_is_no_number_is_refused() -> None:
    images, labels = torch.rand(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(NonFiniteLoss, match="test images"):
        evaluate(_Overflow(), images, labels, Listener())
    with pytest.raises(NonFiniteLoss, match="validation images"):
        evaluate(_Overflow(), images, labels, Listener(), of="validation")
