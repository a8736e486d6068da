"""Text conditioning of one sample for one denoiser call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TextConditioning:
    """Hidden states of one sample for one call; the network is evaluated once per array.

    The guided output is m_u + g sum_p shares[p] (m_p - m_u), with m_u from ``uncond`` and m_p from ``conds[p]``.
    Without ``uncond`` there is no guidance, only one array in ``conds`` with share 1.

    All arrays are [L, D] with one L. Calls with the same texts share one object, so ``is`` detects a change from one
    call to the next.
    """

    conds: tuple[NDArray[Any], ...]
    uncond: NDArray[Any] | None = None
    shares: tuple[float, ...] = (1.0,)

    @property
    def rows(self) -> int:
        return len(self.conds) + (self.uncond is not None)

    @property
    def tokens(self) -> int:
        """Number of tokens L."""
        return len(self.conds[0])
