from __future__ import annotations

import torch
from torch import nn

from worker.engine.model import Cnn
from worker.engine.recalibrate import recalibrate


def test_the_statistics_are_those_of_all_images_whatever_their_number() -> None:
    images = torch.rand(1001, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    images[-1] = 0  # alone in a last batch it would count as much as 500 others
    network = Cnn((3, 2, 2), 2)
    calls = []

    recalibrate(network, images, lambda: calls.append(1))

    convolution, norm = network.layer1[0], network.layer1[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        before = convolution(images)
    assert torch.allclose(network.get_buffer("layer1.1.running_mean"), before.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert torch.allclose(network.get_buffer("layer1.1.running_var"), before.var(dim=(0, 2, 3)), rtol=1e-2)
    assert norm.momentum == 0.1
    assert len(calls) == 3


def test_what_was_there_before_has_no_say() -> None:
    images = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one = Cnn((3, 2, 2), 2)
    two = Cnn((3, 2, 2), 2)
    two.load_state_dict(one.state_dict())
    two.get_buffer("layer1.1.running_mean").fill_(100.0)

    recalibrate(one, images, lambda: None)
    recalibrate(two, images, lambda: None)

    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
