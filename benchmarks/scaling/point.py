"""One point of a curve: concurrent images of one size in one pipeline.

    python -m benchmarks.scaling.point BUNDLE '{"side": 128, "batch": 1, "steps": [5]}' THREADS

runs the point in this process and prints its peak resident bytes. With an empty "steps", it only opens the bundle.
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
    """A workload of the pipeline."""

    side: int
    """Side of the images, in pixels."""
    batch: int
    """Largest number of images per denoiser call."""
    steps: tuple[int, ...]
    """Steps of each request; one image each."""
    decode: bool = False
    """Also decode the first image."""

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
class Timing:
    """Times of a point, in seconds."""

    call: float
    """Median of a denoiser call, without the first, which includes one-time work."""
    whole: float
    """From the requests to the latents of the last image."""
    decode: float | None
    calls: int
    """Denoiser calls summed over all images."""


def time_point(pipeline: Pipeline, point: Point) -> Timing:
    """Generate the images of a point and time them."""
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
    return Timing(statistics.median(np.diff(clock).tolist()), whole, decode, run.total)


def main() -> None:
    bundle, text, threads = sys.argv[1:4]
    fields = json.loads(text)
    point = Point(**{**fields, "steps": tuple(fields["steps"])})
    with Pipeline.open(bundle, threads=int(threads), max_batch=point.batch) as pipeline:
        if point.steps:
            time_point(pipeline, point)
        print(_peak_rss_bytes())


def _peak_rss_bytes() -> int:
    """Peak of this process. The value wait4 gives the parent would include the parent's memory before exec."""
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
