"""Weights drawn from NumPy's PCG64 by name and shape, so that a graph can travel without them.

Both machines draw the same bits: PCG64's stream is fixed across NumPy's versions, and a 16-bit integer of it selects
one of 65,536 float16 values. Their mean and spread are those of the weights they replace.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUNDLE = "bundle"
"""The bundle's folder in the kit."""
_LEVELS = 1 << 16
_SAMPLE = 1 << 20
"""Values from which a tensor's mean and spread are computed."""
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of a tensor."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """Moments of the first million values."""
        sample = values.reshape(-1)[:_SAMPLE].astype(np.float64)
        return cls(float(sample.mean()), float(sample.std()))


def draw(name: str, count: int, moments: Moments) -> NDArray[np.float16]:
    """``count`` uniformly distributed float16 values with these moments, seeded by the name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    raw = np.random.PCG64(seed).random_raw(-(-count // 4)).astype("<u8", copy=False)
    steps = (np.arange(_LEVELS) + 0.5) / _LEVELS - 0.5
    table = (moments.mean + moments.std * math.sqrt(12) * steps).astype(np.float16)
    values: NDArray[np.float16] = table[raw.view("<u2")[:count]]
    return values


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One data file of a bundle: its tensors in the order of their offsets."""

    path: str
    """Relative to the bundle."""
    size: int
    tensors: tuple[tuple[str, int, str, tuple[int, ...], bool], ...]
    """Name, offset, dtype, shape in PyTorch's orientation, and whether the file holds the transpose."""
    header: bytes = b""
    """Bytes before the first tensor."""


def weight_files(bundle: Path) -> Iterator[WeightFile]:
    """The data files of a bundle that are drawn: each part's weights, and the token table."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    sizes = {file["path"]: file["size"] for part in manifest["parts"].values() for file in part["files"]}
    for path in sorted({part["initializers"] for part in manifest["parts"].values()}):
        weight_map = json.loads((bundle / path).read_text())
        data = str(Path(path).with_name(weight_map["file"]))
        tensors = tuple(
            (
                f"{Path(path).parent}/{name}",
                item["offset"],
                item["dtype"],
                tuple(item["shape"]),
                item["transposed"],
            )
            for name, item in sorted(weight_map["weights"].items(), key=lambda pair: pair[1]["offset"])
        )
        yield WeightFile(data, sizes[data], tensors)
    table = manifest["embeddings"]
    size, dtype = table["file"]["size"], table["dtype"]
    shape = (table["tokens"], table["width"])
    start = size - math.prod(shape) * np.dtype(dtype).itemsize
    yield WeightFile(
        table["file"]["path"],
        size,
        (("embeddings", start, dtype, shape, False),),
        _npy_header(shape, dtype, start),
    )


def _npy_header(shape: tuple[int, ...], dtype: str, length: int) -> bytes:
    """The first bytes of a ``.npy`` file, as ``numpy.save`` writes them."""
    fields = (
        f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    )
    text = fields.ljust(length - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def measure_moments(bundle: Path) -> dict[str, list[float]]:
    """Mean and spread of every weight of a bundle, by name."""
    moments_by_name = {}
    for file in weight_files(bundle):
        for name, offset, dtype, shape, _ in file.tensors:
            count = min(math.prod(shape), _SAMPLE)
            moments = Moments.of(np.fromfile(bundle / file.path, dtype, count, offset=offset))
            moments_by_name[name] = [moments.mean, moments.std]
    return moments_by_name


def write_weights(bundle: Path, moments: dict[str, list[float]]) -> dict[str, str]:
    """Write a bundle's data files from drawn weights; the SHA-256 of each file's first MB.

    Files that exist are replaced, never written into: a bundle shares its files with others by hard links.
    """
    hashes = {}
    for file in weight_files(bundle):
        target = bundle / file.path
        target.unlink(missing_ok=True)
        with target.open("wb") as stream:
            stream.write(file.header)
            for name, offset, dtype, shape, transposed in file.tensors:
                values = draw(name, math.prod(shape), Moments(*moments[name])).astype(dtype, copy=False)
                stream.seek(offset)
                (values.reshape(shape).T if transposed else values).tofile(stream)
            stream.truncate(file.size)
        hashes[file.path] = first_hash(target)
    return hashes


def first_hash(path: Path) -> str:
    """SHA-256 of a file's first MB."""
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_HASHED_BYTES)).hexdigest()


def copy_graphs(source: Path, target: Path) -> None:
    """Copy a bundle without the data files that are drawn, and without engines."""
    skipped = {file.path for file in weight_files(source)}
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source).as_posix()
        if path.is_file() and relative not in skipped and path.suffix != ".engine":
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)
