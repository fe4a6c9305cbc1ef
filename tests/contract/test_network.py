"""The network as arithmetic, against figures worked out by hand. The engine's tests hold it to the real one."""

from __future__ import annotations

from app.contract.network import PARAMETER_NAMES, macs_per_image, parameter_count, parameter_shapes

WIDTHS = (16, 16, 32)


def test_the_sources_network_has_481214_parameters() -> None:
    convolutions = (1 * 16 * 25 + 16) + (16 * 16 * 9 + 16) + (16 * 32 * 9 + 32)
    batchnorms = 2 * (16 + 16 + 32)
    linears = (32 * 7 * 7 * 300 + 300) + (300 * 10 + 10)

    assert parameter_count(WIDTHS, 300) == convolutions + batchnorms + linears == 481_214


def test_the_sources_network_takes_3496504_multiply_accumulates_an_image() -> None:
    convolutions = 28 * 28 * (16 * 25) + 28 * 28 * (16 * 16 * 9) + 14 * 14 * (16 * 32 * 9)

    assert macs_per_image(WIDTHS, 300) == convolutions + 1_568 * 300 + 300 * 10 == 3_496_504


def test_free_widths_shape_every_tensor() -> None:
    assert parameter_shapes((2, 3, 5), 7) == {
        "layer1.0.weight": (2, 1, 5, 5),
        "layer1.0.bias": (2,),
        "layer1.1.weight": (2,),
        "layer1.1.bias": (2,),
        "layer2.0.weight": (3, 2, 3, 3),
        "layer2.0.bias": (3,),
        "layer2.1.weight": (3,),
        "layer2.1.bias": (3,),
        "layer3.0.weight": (5, 3, 3, 3),
        "layer3.0.bias": (5,),
        "layer3.1.weight": (5,),
        "layer3.1.bias": (5,),
        "fc1.weight": (7, 5 * 7 * 7),
        "fc1.bias": (7,),
        "fc2.weight": (10, 7),
        "fc2.bias": (10,),
    }
    assert tuple(parameter_shapes((2, 3, 5), 7)) == PARAMETER_NAMES
