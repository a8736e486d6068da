"""One point of a curve: images of one size in one pipeline, so many at once, so many steps each.

    python -m benchmarks.scaling.point BUNDLE '{"side": 128, "batch": 1, "steps": [5]}' THREADS

runs it in a process of its own and prints its peak resident bytes; no steps at all is a bundle that is only opened.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sd2rt.runtime import Pipeline, Request


@dataclass(frozen=True, slots=True)
class Point:
    """What is asked of the pipeline."""

    side: int
    """Of the images, in pixels."""
    batch: int
    """Images of a denoiser call, at most."""
    steps: tuple[int, ...]
    """Of each request; one image each."""
    decode: bool = False
    """Decode the first image too."""

    def json(self) -> str:
        return json.dumps(asdict(self))

    def requests(self) -> list[Request]:
        return [
            Request.model_validate(
                {
                    "prompt": "a lighthouse on a cliff at dusk",
                    "seed": index,
                    "num_inference_steps": steps,
                    "width": self.side,
                    "height": self.side,
                    "output_type": "latent",
                }
            )
            for index, steps in enumerate(self.steps)
        ]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a point took, in seconds."""

    call: float
    """Median of a denoiser call, without the first, which follows what is made once."""
    whole: float
    """From the requests to the last one's latents."""
    decode: float | None
    calls: int
    """Steps made over all images."""


def take(pipeline: Pipeline, point: Point) -> Taken:
    """Make a point's images."""
    pipeline.max_batch = point.batch
    start = time.perf_counter()
    with pipeline.stream_requests(point.requests()) as run:
        clock = [time.perf_counter() for _ in run]
        latents: Any = run.result()[0].images
    whole, decode = time.perf_counter() - start, None
    if point.decode:
        start = time.perf_counter()
        pipeline.decode(np.asarray(latents)[0])
        decode = time.perf_counter() - start
    return Taken(statistics.median(np.diff(clock).tolist()), whole, decode, run.total)


def main() -> None:
    bundle, text, threads = sys.argv[1:4]
    asked = json.loads(text)
    point = Point(**{**asked, "steps": tuple(asked["steps"])})
    with Pipeline.open(bundle, threads=int(threads), max_batch=point.batch) as pipeline:
        if point.steps:
            take(pipeline, point)
        print(_peak_rss_bytes())


def _peak_rss_bytes() -> int:
    """Of this process. What the kernel tells its parent would have the parent's own in it, from before the exec."""
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
