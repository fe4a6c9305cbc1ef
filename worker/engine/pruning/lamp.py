"""Layer-adaptive magnitude pruning (Lee et al. 2021): how a number of entries is spread over the tensors.

The LAMP score of an entry is s²/Σt², the sum over t from s upwards in the same tensor: what its removal costs in
relation to what is left there. The largest entry of every tensor scores 1 and all others at most 1/2, so that no tensor
is emptied while another has two.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from worker.engine.pruning.ranking import lowest


def counts(scores: Mapping[str, Tensor], keeps: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """How many entries of each tensor [N] are among the `count` of lowest LAMP score, what `keeps` drops included.

    Within a tensor LAMP scores rise with the scores, so that numbers say it all.
    """
    already = {name: keep.numel() - int(keep.sum()) for name, keep in keeps.items()}
    ranked = [lamp_scores(_ascending(scores[name][keep])) for name, keep in keeps.items()]
    joined = torch.cat(ranked)
    gone = lowest(joined, torch.ones_like(joined, dtype=torch.bool), count - sum(already.values()))
    parts = torch.split(gone, [len(part) for part in ranked])
    return {name: already[name] + int(part.sum()) for name, part in zip(keeps, parts, strict=True)}


def lamp_scores(ascending: Tensor) -> Tensor:
    """Of scores [N] in rising order, not finite ones last: s²/Σt² [N] in double precision, rising too.

    0 where there is nothing but zeros; infinite where a score is not finite, which no sum then holds.
    """
    finite = ascending.isfinite()
    squares = torch.where(finite, ascending.double().square(), 0.0)
    sums = squares.flip(0).cumsum(0).flip(0)
    return torch.where(finite, torch.where(sums > 0, squares / sums, 0.0), torch.inf)


def _ascending(scores: Tensor) -> Tensor:
    # On the CPU, where cumulative sums come out the same each time, and by NumPy, which sorts nine times as fast there.
    return torch.from_numpy(np.sort(scores.cpu().numpy()))
