"""Which entries of each tensor may be non-zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


class Mask(Mapping[str, Tensor]):
    """Immutable: tensor name → booleans of that tensor's shape, True where an entry is kept."""

    def __init__(self, keep: Mapping[str, Tensor]) -> None:
        for name, tensor in keep.items():
            if tensor.dtype is not torch.bool:
                raise ValueError(f"mask of {name} must hold booleans, not {tensor.dtype}")
        self._keep = MappingProxyType(dict(keep))

    @classmethod
    def full(cls, tensors: Mapping[str, Tensor]) -> Mask:
        """Keeps everything."""
        return cls({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()})

    @classmethod
    def of_nonzero(cls, tensors: Mapping[str, Tensor]) -> Mask:
        """Keeps what is not zero now."""
        return cls({name: tensor.detach() != 0 for name, tensor in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    def __reduce__(self) -> tuple[type[Mask], tuple[dict[str, Tensor]]]:
        return Mask, (dict(self),)

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {sum(self.kept.values())} entries kept)"

    @property
    def kept(self) -> dict[str, int]:
        return {name: int(keep.sum()) for name, keep in self.items()}

    @property
    def sparsity(self) -> float:
        """Share of all entries that are dropped."""
        total = sum(keep.numel() for keep in self.values())
        return (total - sum(self.kept.values())) / total

    def apply(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with +0 wherever the mask keeps nothing; those that it does not name stay as they are."""
        self._refuse_misfit(tensors)
        return {
            name: torch.where(self[name], tensor, torch.zeros_like(tensor)) if name in self else tensor
            for name, tensor in tensors.items()
        }

    def without(self, dropped: Mapping[str, Tensor]) -> Mask:
        """Keeps what this mask keeps and `dropped` does not mark with True; tensors that it does not name stay."""
        return Mask({name: keep & ~dropped[name] if name in dropped else keep for name, keep in self.items()})

    def to(self, device: torch.device) -> Mask:
        return Mask({name: keep.to(device) for name, keep in self.items()})

    def _refuse_misfit(self, tensors: Mapping[str, Tensor]) -> None:
        for name, keep in self.items():
            if name not in tensors:
                raise ValueError(f"mask names {name}, which is not among the tensors")
            if keep.shape != tensors[name].shape:
                raise ValueError(f"mask of {name} has shape {tuple(keep.shape)}, not {tuple(tensors[name].shape)}")
