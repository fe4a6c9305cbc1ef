"""The optimizers that a spec may ask for, in each of their kinds."""

from __future__ import annotations

from tests.specs import Document

OPTIMIZERS: list[Document] = [
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0},
]
