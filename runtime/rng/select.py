"""Which generator a request's seeds are for: torch's on a CPU, or torch's on a GPU."""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.rng.torch_cuda import PhiloxGenerator

H100_MULTIPROCESSORS = 132
THREADS = 2048
"""Of a multiprocessor of V100, A100, H100 and B200."""

_CUDA = re.compile(r"cuda(?::([1-9][0-9]{0,3})(?:x(1024|1536|2048))?)?")


class NormalGenerator(Protocol):
    """A stream of standard normals."""

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next of them."""


def check_rng(name: str) -> str:
    """``name``, if it names a generator.

    Raises:
        ValueError: it does not.
    """
    if name != "cpu" and _CUDA.fullmatch(name) is None:
        raise ValueError(
            "give cpu, cuda, cuda:N for a GPU of N multiprocessors, or cuda:NxT where each holds "
            "T threads: 1024, 1536 or 2048"
        )
    return name


def make_generator(rng: str, seed: int) -> NormalGenerator:
    """The stream of a seed: ``rng`` is ``cpu``, ``cuda``, ``cuda:N`` or ``cuda:NxT``.

    GPUs draw alike up to as many values as they have threads: an image of up to 2048x2048 pixels on an H100 SXM,
    which ``cuda`` alone stands for. ``cuda:N`` is a GPU of N multiprocessors of 2048 threads, as NVIDIA's datacenter
    GPUs have; ``cuda:NxT`` says the threads too: 1536 for RTX 30, 40 and 50, 1024 for RTX 20.

    Raises:
        ValueError: there is no such generator.
    """
    if check_rng(rng) == "cpu":
        return Generator(seed)
    found = _CUDA.fullmatch(rng)
    assert found is not None
    multiprocessors, threads = found.groups()
    count = H100_MULTIPROCESSORS if multiprocessors is None else int(multiprocessors)
    return PhiloxGenerator(seed, count * (THREADS if threads is None else int(threads)))
