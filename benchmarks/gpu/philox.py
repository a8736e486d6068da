"""The numbers that a seed stands for on a GPU: NumPy's Philox against torch.randn on the card."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import CannotRunError, Record

BOUND = 1e-5
"""A GPU's sine and cosine are good to about 1e-6, and a normal of 5 has a radius of 5 before them."""
_SHAPES: tuple[tuple[int, ...], ...] = (
    (1, 4, 64, 64),
    (1, 4, 96, 96),
    (8, 4, 64, 64),
    (3, 5, 7),
    (16, 4, 128, 128),
    (64, 4, 128, 128),
)
_SEEDS = (0, 1, 2**32 + 5, 2**63 - 1)


def compare(_: Settings, __: str) -> Iterator[Record]:
    """Three draws in a row of each shape and seed: what a draw leaves off at counts too."""
    import torch

    from sd2rt.runtime.rng.torch_cuda import PhiloxGenerator

    if not torch.cuda.is_available():
        raise CannotRunError("torch sees no GPU")
    about = torch.cuda.get_device_properties(0)
    threads = about.multi_processor_count * about.max_threads_per_multi_processor
    for shape in _SHAPES:
        worst, differ, count = 0.0, 0, 0
        for seed in _SEEDS:
            theirs, ours = torch.Generator("cuda").manual_seed(seed), PhiloxGenerator(seed, threads)
            for _draw in range(3):
                expected = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
                found = ours.randn(shape)
                worst = max(worst, float(np.abs(found - expected).max()))
                differ += int((found != expected).sum())
                count += found.size
        yield {
            "shape": list(shape),
            "threads": threads,
            "max_abs_error": worst,
            "bound": BOUND,
            "holds": worst <= BOUND,
            "share_that_differs": differ / count,
        }
