"""Rows of one denoiser call: the text of each network evaluation, and the rows that each sample combines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Buffer
from sd2rt.runtime.prompts.text_conditioning import TextConditioning

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BatchRows:
    """Values of the denoiser inputs ``text``, ``row``, ``uncond``, ``cond`` and ``shares``.

    B is the number of samples, R of rows, P the most prompts that a sample has. A sample with fewer prompts is
    padded with one of its own rows at share 0, so that values that are not finite in other samples cannot reach it.
    """

    texts: tuple[NDArray[Any], ...]  # [tokens, D] of each row but padding; each token count divides length
    length: int  # L
    row: Indices  # [R]
    uncond: Indices  # [B]
    cond: Indices  # [B, P]
    shares: NDArray[np.float32]  # [B, P]

    @classmethod
    def from_samples(cls, samples: Sequence[TextConditioning]) -> BatchRows:
        """Lay out the rows of these samples; ``length`` is the least common multiple of their token counts."""
        prompts = max(len(sample.conds) for sample in samples)
        texts: list[NDArray[Any]] = []
        row: list[int] = []
        uncond: list[int] = []
        cond = np.empty((len(samples), prompts), np.int64)
        shares = np.zeros(cond.shape, np.float32)
        for index, sample in enumerate(samples):
            first, count = len(texts), len(sample.conds)
            uncond.append(first)
            if sample.uncond is not None:
                texts.append(sample.uncond)
            cond[index] = first
            cond[index, :count] = range(len(texts), len(texts) + count)
            shares[index, :count] = sample.shares
            texts.extend(sample.conds)
            row.extend([index] * sample.rows)
        length = lcm(*{sample.tokens for sample in samples})
        return cls(tuple(texts), length, np.array(row), np.array(uncond), cond, shares)

    @property
    def dims(self) -> dict[str, int]:
        """Values of the denoiser's symbolic dimensions R, P and L."""
        return {"R": len(self.row), "P": self.cond.shape[1], "L": self.length}

    def padded(self, dims: Mapping[str, int]) -> BatchRows:
        """Pad to larger sizes B, R, P and L.

        Samples of padding come last. They read the first row of padding, and rows of padding belong to them if there
        are any: a sample and its padding then depend on no other sample. Rows of padding have no text of their own.
        """
        samples, count = len(self.uncond), len(self.row)
        row = np.full(dims["R"], min(samples, dims["B"] - 1))
        row[:count] = self.row
        uncond = np.full(dims["B"], count)
        uncond[:samples] = self.uncond
        cond = np.repeat(uncond[:, None], dims["P"], 1)
        cond[:samples, : self.cond.shape[1]] = self.cond
        shares = np.zeros(cond.shape, np.float32)
        shares[:samples, : self.shares.shape[1]] = self.shares
        return BatchRows(self.texts, dims["L"], row, uncond, cond, shares)

    def write(self, buffers: Mapping[str, Buffer], last: BatchRows | None) -> None:
        """Write the rows into a session's buffers, skipping texts that are there already.

        ``last`` is the content of the buffers, None if unknown.
        """
        text = buffers["text"]
        known = () if last is None else last.texts
        for index, array in enumerate(self.texts):
            if index >= len(known) or known[index] is not array:
                # Repeating all tokens equally often does not change the result of attention.
                text.host[index].reshape(-1, *array.shape)[:] = array
        # Whatever lies in rows of padding reaches no sample.
        text.push(slice(0, len(self.texts)))
        for name in ("row", "uncond", "cond", "shares"):
            buffers[name].write(getattr(self, name))
