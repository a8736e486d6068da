"""Compare sd2rt's NumPy version of torch's CUDA random numbers with torch.randn on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import CannotRunError, Record

BOUND = 1e-5
"""Bound on the absolute error: a GPU's sine and cosine err by about 1e-6, times a radius of up to 5."""
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
    """Draw each shape three times for each seed, so that the generator's position between draws is tested too."""
    import torch

    from sd2rt.runtime.rng.torch_cuda import PhiloxGenerator

    if not torch.cuda.is_available():
        raise CannotRunError("torch sees no GPU")
    properties = torch.cuda.get_device_properties(0)
    threads = properties.multi_processor_count * properties.max_threads_per_multi_processor
    for shape in _SHAPES:
        worst, differ, count = 0.0, 0, 0
        for seed in _SEEDS:
            theirs, ours = torch.Generator("cuda").manual_seed(seed), PhiloxGenerator(seed, threads)
            for _draw in range(3):
                expected = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
                values = ours.randn(shape)
                worst = max(worst, float(np.abs(values - expected).max()))
                differ += int((values != expected).sum())
                count += values.size
        yield {
            "shape": list(shape),
            "threads": threads,
            "max_abs_error": worst,
            "bound": BOUND,
            "holds": worst <= BOUND,
            "share_that_differs": differ / count,
        }
