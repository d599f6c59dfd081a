"""YaRN (Peng et al. 2023, arXiv 2309.00071) as DeepSeek uses it: numbers only, no torch.

A model trained to L0 positions is stretched by F. Three things change, and they are kept apart here
because mixing the last two up is the most common fault in public code:

- the frequencies: slow ones are divided by F, fast ones stay (`models.rotary_frequencies`);
- factor (i), `magnitude`: cosines and sines are multiplied by g(mscale) / g(mscale_all_dim),
  exactly 1 where both are equal, as in DeepSeek-V2 and V3;
- factor (ii), `logit_factor`: the scale of the softmax is multiplied by g(mscale_all_dim)^2, on the
  whole logit, the part without positions included.

Here g(x) = 0.1 x ln F + 1, and 1 where F <= 1. Neither factor shows at position 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def yarn_factor(k: float, scale: float = 1.0) -> float:
    """0.1 s ln k + 1, and 1 for k <= 1 (arXiv 2309.00071, eq. 22).

    As a factor of rotated queries and rotated keys it multiplies the logits by its square.
    """
    return 1.0 if k <= 1.0 else 0.1 * scale * math.log(k) + 1.0


@dataclass(frozen=True)
class YarnConfig:
    """How far a rotary embedding is stretched, and how."""

    factor: float
    """F: the new length by the old one."""
    original_positions: int
    """L0: the length that the model was trained to before."""
    beta_fast: float = 32.0
    """Channels that turn more often than this within L0 keep their frequency."""
    beta_slow: float = 1.0
    """Channels that turn less often than this within L0 are divided by F."""
    mscale: float = 1.0
    """Numerator of factor (i)."""
    mscale_all_dim: float = 0.0
    """Denominator of factor (i), and factor (ii)."""

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.original_positions < 1:
            raise ValueError(
                f"factor ({self.factor}) must be above 0 and original_positions "
                f"({self.original_positions}) at least 1."
            )
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_slow ({self.beta_slow}) must be above 0 and below beta_fast "
                f"({self.beta_fast})."
            )

    def temperature(self, weight: float) -> float:
        """g(x)."""
        return yarn_factor(self.factor, weight)

    @property
    def magnitude(self) -> float:
        """Factor (i), of cosines and sines."""
        return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)

    @property
    def logit_factor(self) -> float:
        """Factor (ii), of the scale of the softmax."""
        return self.temperature(self.mscale_all_dim) ** 2
