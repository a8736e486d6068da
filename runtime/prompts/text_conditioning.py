"""What a denoiser call is told of the prompts of one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TextConditioning:
    """The rows of one call for one sample: the network is evaluated once for each array.

    The guided output is m_u + g sum_p shares[p] (m_p - m_u), where m_u belongs to ``uncond`` and m_p to
    ``conds[p]``. Without ``uncond`` there is no guidance: one array in ``conds``, whose share is 1.

    All arrays are [L, D], of one L. Calls that are told the same share one object, so that ``is`` tells
    whether anything changes from one call to the next.
    """

    conds: tuple[NDArray[Any], ...]
    uncond: NDArray[Any] | None = None
    shares: tuple[float, ...] = (1.0,)

    @property
    def rows(self) -> int:
        return len(self.conds) + (self.uncond is not None)

    @property
    def tokens(self) -> int:
        """L."""
        return len(self.conds[0])
