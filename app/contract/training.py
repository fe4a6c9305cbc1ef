"""How a network is trained: the optimizer and its schedule, the penalties, and what is done to the images."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from app.contract.closed import Closed
from app.contract.reference import CheckpointRef


class Adam(Closed):
    """Adam (Kingma & Ba 2015) with β = (0.9, 0.999)."""

    name: Literal["adam"]


class AdamW(Closed):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): each step also takes learning_rate·weight_decay·p
    from every parameter p."""

    name: Literal["adamw"]
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01


class Sgd(Closed):
    """Stochastic gradient descent with momentum, Nesterov's when asked for (Sutskever et al. 2013)."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _something_to_look_ahead_with(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


Optimizer: TypeAlias = Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]
OPTIMIZERS: tuple[type[Closed], ...] = (Adam, AdamW, Sgd)


class Distillation(Closed):
    """Learn from the outputs of a network that is there already, the teacher, too (Hinton et al. 2015).

    The loss is (1 − weight)·H(labels) + weight·T²·H(softmax(teacher's logits / T)), T the temperature, H(p) the
    cross-entropy of p with softmax(logits), in the second term softmax(logits / T). `label_smoothing` is of the first
    term alone. T² keeps the second term's gradients as large at any temperature. The teacher may have any widths; it
    sees each batch as the network does, shifted, with BatchNorm by its running statistics.
    """

    teacher: CheckpointRef
    temperature: Annotated[
        float, Field(ge=1, le=100, description="The higher, the more the teacher's small probabilities count.")
    ] = 3.0
    weight: Annotated[float, Field(gt=0, le=1, description="Of the teacher; 1 leaves the labels out.")] = 0.8


Precision: TypeAlias = Literal["float32", "bf16"]


class FineTuningSpec(Closed):
    """One course of training. A mask, where there is one, holds throughout."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 100
    learning_rate: Annotated[float, Field(gt=0, le=10, description="The highest that the schedule reaches.")] = 0.001
    learning_rate_schedule: Annotated[
        Literal["constant", "cosine"],
        Field(description="After the warm-up. `cosine` falls to 0 at the end (Loshchilov & Hutter 2017)."),
    ] = "constant"
    warmup_epochs: Annotated[
        int, Field(ge=0, le=1000, description="The learning rate rises linearly, step by step, for so many epochs.")
    ] = 0
    optimizer: Optimizer = Adam(name="adam")
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="This share of the target is spread over all classes.")
    ] = 0.0
    distillation: Annotated[
        Distillation | None, Field(description="Learn from the outputs of an earlier job's network too.")
    ] = None
    random_shift: Annotated[
        int,
        Field(ge=0, le=8, description="Each training image is moved by up to so many pixels, filled up with zeros."),
    ] = 0
    select: Annotated[
        Literal["last", "best"],
        Field(description="`best` keeps the weights of the epoch with the best accuracy on the validation images."),
    ] = "last"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Annotated[
        Precision,
        Field(
            description="What convolutions and linear layers compute in while they train, a teacher's too. Weights, "
            "the optimizer and the penalty are float32 with either, and so are evaluation and scores. `bf16` is for "
            "hardware that has it; elsewhere the job fails as `device_unavailable`."
        ),
    ] = "float32"

    @model_validator(mode="after")
    def _warm_in_time(self) -> FineTuningSpec:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}")
        return self


class TrainingSpec(FineTuningSpec):
    """The course that a train job begins with."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="`auto` takes a GPU where the worker has one.")
    ] = "auto"


Strength = Annotated[float, Field(gt=0, le=1)]


class L1Penalty(Closed):
    """Adds strength·Σ|p| over all trainable parameters (weights, biases, BatchNorm scale and shift) to the loss.

    The gradient form shrinks values towards zero but leaves none at exactly zero: prune to get zeros. Under Adam the
    gradient is divided by its own running size, so that a strength says little by itself.
    """

    penalty: Literal["l1"]
    strength: Strength = 0.001


class ProximalL1(Closed):
    """The same penalty by its proximal step (ISTA; Beck & Teboulle 2009): after each step of the optimizer,
    p ← sign(p)·max(|p| − learning_rate·strength, 0).

    It gives exact zeros, and its strength means the same under every optimizer: what a parameter without a gradient
    loses in a step, over the learning rate.
    """

    penalty: Literal["l1-proximal"]
    strength: Strength = 0.001
    batchnorm_scale_strength: Annotated[
        float | None,
        Field(ge=0, le=1, description="For BatchNorm's scales, whose zeros remove channels; null takes strength."),
    ] = None


class GroupLasso(Closed):
    """Adds strength·Σ √|g|·‖g‖₂ over groups g (Yuan & Lin 2006, in networks Wen et al. 2016) to the loss.

    A group is one channel (its kernel, bias, BatchNorm scale and shift) or one hidden unit (its row of fc1 and its
    bias); |g| is its number of entries. Whole groups shrink together, for pruning by `channels`.
    """

    penalty: Literal["group-lasso"]
    strength: Strength = 0.001


class L2Penalty(Closed):
    """Adds strength/2·Σp² over all trainable parameters to the loss: its gradient is strength·p, as in weight decay."""

    penalty: Literal["l2"]
    strength: Strength = 0.0001


class ElasticNet(Closed):
    """Adds strength·(l1_ratio·Σ|p| + (1 − l1_ratio)/2·Σp²) (Zou & Hastie 2005) to the loss, over all parameters."""

    penalty: Literal["elastic-net"]
    strength: Strength = 0.001
    l1_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5


Regularization: TypeAlias = Annotated[
    L1Penalty | ProximalL1 | GroupLasso | L2Penalty | ElasticNet, Field(discriminator="penalty")
]
PENALTIES: tuple[type[Closed], ...] = (L1Penalty, ProximalL1, GroupLasso, L2Penalty, ElasticNet)
