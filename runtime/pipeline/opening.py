"""Check the arguments of opening a pipeline, before a bundle is read."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.networks.turns import Turns
from sd2rt.runtime.provenance.safety import Flags, Safety

SMALLEST_TILE = 32
MAX_THREADS = 1024
"""Above any machine's cores; a thread pool takes memory for each thread, and its native code a 32-bit number."""
_MAX_BATCH = 100_000
_LARGEST_TILE = 1 << 20
_PRECISIONS = get_args(ComputePrecision)
_BACKENDS = tuple(name for item in get_args(BackendName) for name in get_args(item) or (item,))


class OpeningOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`sd2rt.Pipeline.open`, for type checkers."""

    device: str
    threads: int | None
    max_batch: int | Literal["auto"] | None
    cuda_graph: bool | None
    allow_cpu_fallback: bool
    tile: int
    backend: BackendName
    precision: ComputePrecision | None
    loras: Sequence[Lora]
    turns: Turns | None
    safety: str | Flags | Safety | None


def check_opening(
    bundle: object,
    device: object,
    backend: object,
    precision: object,
    *,
    threads: Any,
    max_batch: Any,
    tile: Any,
) -> tuple[str | os.PathLike[str], Device]:
    """Check the arguments of :meth:`sd2rt.Pipeline.open`, and return the bundle's path or name, and the device.

    Raises:
        RequestError: one has a wrong type, is unknown, or is outside its range.
    """
    checked_path(bundle, "the bundle")
    if not isinstance(device, str):
        raise RequestError(f"device is {shown(repr_of(device))}: use cpu, cuda or cuda:N")
    if not isinstance(backend, str) or backend not in _BACKENDS:
        raise RequestError(f"backend is {shown(repr_of(backend))}: use one of {', '.join(_BACKENDS)}")
    if precision is not None and (not isinstance(precision, str) or precision not in _PRECISIONS):
        raise RequestError(
            f"precision is {shown(repr_of(precision))}: use {' or '.join(_PRECISIONS)}, or None"
        )
    parsed = Device(device)
    measured = isinstance(max_batch, str) and max_batch == "auto"
    batch = None if measured else max_batch
    for name, value, most in (("threads", threads, MAX_THREADS), ("max_batch", batch, _MAX_BATCH)):
        if value is not None and not 1 <= _whole(name, value) <= most:
            raise RequestError(f"{name} is {shown(repr_of(value))}: give at least 1, up to {most}")
    if not SMALLEST_TILE <= _whole("tile", tile) <= _LARGEST_TILE or tile % 8:
        raise RequestError(
            f"tile is {shown(repr_of(tile))}: give a multiple of 8 of at least {SMALLEST_TILE}, up to {_LARGEST_TILE}"
        )
    assert isinstance(bundle, str | os.PathLike)
    return bundle, parsed


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise RequestError(f"{name} is {shown(repr_of(value))}: give a whole number") from None
