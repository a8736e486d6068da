"""Bounded admission, in images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from math import ceil

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.scheduling.work import Job


class AdmissionError(EngineError):
    """Jobs are refused because of the load.

    Attributes:
        wait_seconds: estimate of the time after which they would be admitted.
    """

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class QueueFullError(AdmissionError):
    """As many images are unfinished as are admitted."""

    def __init__(self, images: int, limit: int, wait_seconds: float) -> None:
        super().__init__(
            f"the queue is full: {images} of at most {limit} images are unfinished: try again in "
            f"{_seconds(wait_seconds)}",
            wait_seconds,
        )


class DeadlineUnreachableError(AdmissionError):
    """By the estimate, an image would be finished after its deadline."""

    def __init__(self, needed: float, available: float) -> None:
        super().__init__(
            f"the image would be finished in {_seconds(needed)}, after its deadline in {_seconds(available)}: "
            "allow more time, or fewer steps",
            max(0.0, needed - available),
        )


def _seconds(value: float) -> str:
    return f"{ceil(value)} s" if value >= 10 else f"{value:.1f} s"


class Admitted:
    """Counts unfinished images. The tiles of an image, and its decode, are one."""

    def __init__(self) -> None:
        self._jobs: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def with_further(self, jobs: Iterable[Job]) -> int:
        """Number of images if these jobs were added."""
        return len(self._jobs.keys() | {_image(job) for job in jobs})

    def add(self, job: Job) -> None:
        self._jobs[_image(job)] += 1

    def remove(self, job: Job) -> None:
        image = _image(job)
        self._jobs[image] -= 1
        if not self._jobs[image]:
            del self._jobs[image]


def _image(job: Job) -> Hashable:
    return job if job.image is None else (type(job.image), job.image)
