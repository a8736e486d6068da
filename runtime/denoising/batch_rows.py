"""The network evaluations of one denoiser call: the texts that are its rows, and which rows make each sample."""

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
    """What the denoiser's inputs ``text``, ``row``, ``uncond``, ``cond`` and ``shares`` hold.

    B samples, R rows, P prompts at most of a sample. One that has fewer is filled up with a row of its own
    that has no share: what is not finite in another sample never reaches it.
    """

    texts: tuple[NDArray[Any], ...]  # R of [tokens, D], tokens dividing length
    length: int  # L
    row: Indices  # [R]
    uncond: Indices  # [B]
    cond: Indices  # [B, P]
    shares: NDArray[np.float32]  # [B, P]

    @classmethod
    def of(cls, samples: Sequence[TextConditioning]) -> BatchRows:
        """The rows of a call for these samples; shorter texts are to be repeated to a length that all divide."""
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
        """The sizes of the denoiser's symbols that rows decide."""
        return {"R": len(self.row), "P": self.cond.shape[1], "L": self.length}

    def write(self, buffers: Mapping[str, Buffer], last: BatchRows | None) -> None:
        """Put them into a session's buffers, which hold ``last`` if any."""
        text = buffers["text"]
        for index, array in enumerate(self.texts):
            if last is None or last.texts[index] is not array:
                # Attention to tokens that are all repeated equally often is attention to them once.
                text.host[index].reshape(-1, *array.shape)[:] = array
        text.push()
        for name in ("row", "uncond", "cond", "shares"):
            buffers[name].write(getattr(self, name))
