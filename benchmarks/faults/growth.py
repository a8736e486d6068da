"""Memory, threads and descriptors of one process over many images.

A group is a way of making images, a case is a block of them. The first half fills caches. After it, no block may
leave a thread or a descriptor behind, and memory may not grow beyond the most that it was.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording import process
from benchmarks.recording.bundle import build_demo
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.write import write_png

CASES = 1000
"""Images of each group but the last, which opens the pipeline for each of a tenth as many."""
BLOCK = 25
"""Images of a case."""
BOUND_BYTES = 16 * 1024**2
"""Growth that is not a leak: arenas of threads. A leaked session or picture an image would be ten times as much."""

Draw = Callable[[Pipeline, random.Random], None]


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Make ``cases`` images in each way on the demo."""
    source = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as folder:
        bundle = build_demo(Path(folder))
        with Pipeline.open(bundle, threads=1) as pipe:
            for group, draw in _DRAWS.items():
                _measure(recorder, group, cases, lambda draw=draw: draw(pipe, source))  # type: ignore[misc]
        _measure(recorder, "opened and closed", cases // 10, lambda: _opened(bundle, source))


def _measure(recorder: Recorder, group: str, images: int, draw: Callable[[], None]) -> None:
    blocks = max(images // BLOCK, 1)
    # Sessions of many sizes and batches are kept, up to a bound. Which ones they are changes from block to block, and
    # memory with it, in both directions.
    warm = max(blocks // 2, 1)
    threads = descriptors = most = 0
    for block in range(blocks):
        for _ in range(BLOCK):
            draw()
        gc.collect()
        now_threads, now_descriptors, memory = _state()
        case = f"images {block * BLOCK} to {(block + 1) * BLOCK}"
        growth = memory - most
        if block < warm:
            threads, descriptors, most = now_threads, now_descriptors, max(most, memory)
            recorder.record(group, "held", case, f"{memory / 1e6:.0f} MB")
        elif now_threads > threads or now_descriptors > descriptors:
            detail = f"threads {threads} to {now_threads}, descriptors {descriptors} to {now_descriptors}"
            recorder.record(group, "left behind", case, detail)
        else:
            outcome: Outcome = "memory" if growth > BOUND_BYTES else "held"
            recorder.record(
                group, outcome, case, f"{growth / 1e6:+.1f} MB from the most of the first {warm} blocks"
            )


def _state() -> tuple[int, int, int]:
    """Threads, descriptors and anonymous resident bytes of this process."""
    return (
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
        process.memory(os.getpid())[1],
    )


def _options(source: random.Random) -> dict[str, Any]:
    words = " ".join(source.choice(("red", "blue", "circle", "square", "a", "(left:1.2)")) for _ in range(8))
    return {
        "prompt": f"{words} {source.random()}",
        "seed": source.getrandbits(32),
        "num_inference_steps": source.randint(1, 3),
        "sampler": source.choice(("ddim", "euler-a", "dpmpp-2m", "unipc")),
        "guidance_scale": source.choice((1.0, 4.0)),
    }


def _call(pipe: Pipeline, source: random.Random) -> None:
    write_png(pipe(**_options(source)).images[0], BytesIO(), {})


def _varied(pipe: Pipeline, source: random.Random) -> None:
    pipe(**_options(source), width=64 * source.randint(1, 3), height=64 * source.randint(1, 3))


def _from_image(pipe: Pipeline, source: random.Random) -> None:
    image = np.full((64, 64, 3), source.randrange(256), np.uint8)
    pipe(**_options(source) | {"num_inference_steps": 3}, image=image, strength=0.9)


def _abandoned(pipe: Pipeline, source: random.Random) -> None:
    for progress in pipe.stream(**_options(source)):
        progress.latents()
        break


def _threads(pipe: Pipeline, source: random.Random) -> None:
    threads = [threading.Thread(target=pipe, kwargs=_options(source)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _opened(bundle: Path, source: random.Random) -> None:
    with Pipeline.open(bundle, threads=1) as pipe:
        _call(pipe, source)


_DRAWS: dict[str, Draw] = {
    "calls": _call,
    "sizes": _varied,
    "images as input": _from_image,
    "abandoned streams": _abandoned,
    "threads": _threads,
}
