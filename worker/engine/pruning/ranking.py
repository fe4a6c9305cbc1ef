"""The one place where it is decided which entries are the lowest."""

from __future__ import annotations

import torch
from torch import Tensor


def lowest(scores: Tensor, keep: Tensor, count: int) -> Tensor:
    """Marks the `count` lowest of `scores` [N] with True, exactly so many, or all that `keep` [N] drops if those are
    more.

    What `keep` drops ranks lowest, NaN highest. Of equal scores the first ones go.
    """
    already = keep.numel() - int(keep.sum())
    if count <= already:
        return ~keep
    ranked = torch.where(keep, scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), -torch.inf)
    # Selecting the limit takes a tenth of the time of sorting.
    limit = ranked.kthvalue(count).values
    below, tied = ranked < limit, ranked == limit
    return below | (tied & (tied.cumsum(0) <= count - below.sum()))
