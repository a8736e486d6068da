"""Sizes that denoiser calls are padded up to on a GPU, so that few sessions serve all calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

_LOG = logging.getLogger(__name__)

Dims = Mapping[str, int]
"""Values of the denoiser's symbolic dimensions B, R, P, L, h and w."""

_WORTH = 0.9
"""A size between two others is added if it is expected to cost less than this share of the larger one."""
_REMEMBERED = 4096
"""Sizes of calls whose bucket is remembered."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Sizes of one denoiser call; ordered by what they cost without a measurement."""

    rows: int  # R
    samples: int  # B
    prompts: int  # P
    length: int  # L
    h: int
    w: int

    @classmethod
    def of(cls, dims: Dims) -> Self:
        """Take the sizes from the denoiser's dimensions."""
        return cls(dims["R"], dims["B"], dims["P"], dims["L"], dims["h"], dims["w"])

    @property
    def dims(self) -> dict[str, int]:
        """Values of the denoiser's symbolic dimensions."""
        return {
            "B": self.samples,
            "R": self.rows,
            "P": self.prompts,
            "L": self.length,
            "h": self.h,
            "w": self.w,
        }

    def takes(self, call: Bucket) -> bool:
        """Return whether a call of these sizes can be padded to the bucket.

        Samples of padding need a row of their own, so that they depend on no other sample. Texts are repeated whole.
        """
        return (
            (self.h, self.w) == (call.h, call.w)
            and self.samples >= call.samples
            and self.rows >= call.rows + (self.samples > call.samples)
            and self.prompts >= call.prompts
            and self.length % call.length == 0
        )


class Buckets:
    """Choice of a bucket for each call: the cheapest of those that were launched at start, by measured cost.

    A call that fits none of them, because nothing was launched at start or it has more prompts or another size, is
    padded to a power of two of samples, with a whole number of rows for each.

    Args:
        limit: the most samples in a call.
        takes: returns whether the denoiser runs these sizes.
    """

    def __init__(self, limit: int, takes: Callable[[Dims], bool]) -> None:
        self._limit, self._takes = limit, takes
        self._seconds: dict[Bucket, float] = {}
        self._chosen: dict[Bucket, Bucket] = {}

    @property
    def limit(self) -> int:
        """The most samples in a call."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._chosen.clear()

    @property
    def measured(self) -> dict[Bucket, float]:
        """Buckets that were launched at start, with the seconds of a call."""
        return dict(self._seconds)

    def measure(self, bucket: Bucket, seconds: float) -> None:
        """Add a bucket that was launched, and is ready, with the measured seconds of a call."""
        self._seconds[bucket] = seconds
        self._chosen.clear()

    def forget(self) -> None:
        """Forget all measurements, before the engine is replaced."""
        self._seconds.clear()
        self._chosen.clear()

    def padded(self, dims: Dims) -> dict[str, int]:
        """Return the sizes that a call of these sizes is padded to."""
        call = Bucket.of(dims)
        bucket = self._chosen.get(call)
        if bucket is None:
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            bucket = self._chosen[call] = self._choose(call)
        return bucket.dims

    def seconds(self, call: Bucket) -> float | None:
        """Measured seconds of a call with its padding; None if no measured bucket takes it."""
        fitting = [seconds for bucket, seconds in self._seconds.items() if bucket.takes(call)]
        return min(fitting, default=None)

    def _choose(self, call: Bucket) -> Bucket:
        fitting = [(seconds, bucket) for bucket, seconds in self._seconds.items() if bucket.takes(call)]
        if fitting:
            return min(fitting)[1]
        if self._seconds:
            _LOG.info("a denoiser call of sizes that were not launched at start: %s", call.dims)
        candidates = (
            Bucket(samples * each, samples, call.prompts, call.length, call.h, call.w)
            for samples in batch_sizes(self._limit)
            for each in range(1, call.prompts + 2)
        )
        # A denoiser that takes none of them reports the sizes that it was asked for.
        return next((each for each in candidates if each.takes(call) and self._takes(each.dims)), call)


def batch_sizes(limit: int) -> list[int]:
    """Powers of two up to ``limit``, and ``limit``."""
    powers = [1 << exponent for exponent in range(limit.bit_length())]
    return powers if powers[-1] == limit else [*powers, limit]


def sizes_between(seconds: Mapping[int, float]) -> list[int]:
    """Batch sizes in the middle of two measured ones that would save over a tenth of the larger one's cost.

    Args:
        seconds: of a call, by batch size; costs between two sizes are assumed to lie on a line.
    """
    sizes = sorted(seconds)
    between = []
    for below, above in pairwise(sizes):
        middle = (below + above) // 2
        share = (middle - below) / (above - below)
        expected = (1 - share) * seconds[below] + share * seconds[above]
        if below < middle and expected < _WORTH * seconds[above]:
            between.append(middle)
    return between
