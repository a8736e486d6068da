"""Select the generator of a request's seeds: PyTorch's CPU or CUDA generator."""

from __future__ import annotations

import math
import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.rng.torch_cuda import PhiloxGenerator

H100_MULTIPROCESSORS = 132
THREADS = 2048
"""Threads per multiprocessor of V100, A100, H100 and B200."""

_DRAWN_AT_ONCE = 1 << 13
"""Most normals that are drawn at once for later calls."""
_CUDA = re.compile(r"cuda(?::([1-9][0-9]{0,3})(?:x(1024|1536|2048))?)?")


class NormalGenerator(Protocol):
    """A stream of standard normals."""

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw the next standard normals, in this shape."""


def draws(generator: NormalGenerator, shape: tuple[int, ...], most: int) -> list[NDArray[np.float32]]:
    """Make the next draws of this shape: one, or up to ``most`` if several at once take less time.

    Most of a small draw's time is that of NumPy's calls. Of an image of the demo with fresh noise in each step, steps
    take 0.986 of the time.
    """
    size = math.prod(shape)
    several = min(most, _DRAWN_AT_ONCE // size)
    if not isinstance(generator, Generator) or not generator.continues(size) or several < 2:
        return [generator.randn(shape)]
    return list(generator.randn((several, *shape)))


def check_rng(name: str) -> str:
    """Check the name of a generator and return it.

    Raises:
        ValueError: there is no such generator.
    """
    if name != "cpu" and _CUDA.fullmatch(name) is None:
        raise ValueError(
            "use cpu, cuda, cuda:N for a GPU with N multiprocessors, or cuda:NxT if each has T threads "
            "(1024, 1536 or 2048)"
        )
    return name


def make_generator(rng: str, seed: int) -> NormalGenerator:
    """Make the generator of a seed; ``rng`` is ``cpu``, ``cuda``, ``cuda:N`` or ``cuda:NxT``.

    All GPUs draw the same values as long as a draw is no larger than their number of threads: on an H100 SXM, which
    plain ``cuda`` reproduces, an image of up to 2048x2048 pixels. ``cuda:N`` is a GPU with N multiprocessors of 2048
    threads, like NVIDIA's datacenter GPUs. ``cuda:NxT`` sets the threads too: 1536 for RTX 30, 40 and 50, 1024 for
    RTX 20.

    Raises:
        ValueError: there is no such generator.
    """
    if check_rng(rng) == "cpu":
        return Generator(seed)
    match = _CUDA.fullmatch(rng)
    assert match is not None
    multiprocessors, threads = match.groups()
    count = H100_MULTIPROCESSORS if multiprocessors is None else int(multiprocessors)
    return PhiloxGenerator(seed, count * (THREADS if threads is None else int(threads)))
