"""Map a part's weights, by PyTorch name, to initialisers of its graphs and to bytes of its data file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import Model, Part, RelativePath
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import Array
from sd2rt.engines.regular_file import read_regular

_MAX_BYTES = 64 << 20
"""Limit of a map; the largest part's has 200 kB."""


def _beside(path: str) -> str:
    if "/" in path:
        raise ValueError(f"{path!r} is not in the folder of the graph")
    return path


class Weight(Model):
    """A weight of a network, and its initialiser."""

    initializer: str
    """Name of the initialiser in the part's graphs."""
    transposed: bool
    """The initialiser is the transpose of the weight."""
    dtype: Literal["float32", "float16"]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 40)], ...], Field(max_length=8)]
    """In PyTorch's orientation."""
    offset: int = Field(ge=0)
    """Byte offset of the initialiser in the data file, where it is little-endian and in C order."""
    length: int = Field(ge=0)
    """Size in bytes."""

    @model_validator(mode="after")
    def _sound(self) -> Weight:
        if self.length != math.prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise ValueError(f"{self.length} bytes are not {self.dtype}{list(self.shape)}")
        if self.transposed and len(self.shape) != 2:
            raise ValueError(f"{list(self.shape)} cannot be transposed: it does not have two axes")
        return self

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the initialiser."""
        return self.shape[::-1] if self.transposed else self.shape


class WeightMap(Model):
    """``initializers.json``: every weight of a part, by its name in the network's state dict.

    The names are those of the diffusers or transformers network (``down_blocks.0...`` of a UNet,
    ``encoder.layers.0...`` of a text encoder, without ``text_model.``; ``decoder...`` and ``post_quant_conv...``
    of an autoencoder). All graphs of a part share the weights: the portable one, ONNX Runtime's, and those for tiles.
    """

    file: Annotated[RelativePath, AfterValidator(_beside)]
    """Name of the data file, in the folder of the graphs."""
    weights: dict[str, Weight]

    def to_json(self) -> str:
        """Serialise to the text of ``initializers.json``, one weight per line."""
        lines = (
            f"{json.dumps(name)}: {json.dumps(weight.model_dump(mode='json'))}"
            for name, weight in sorted(self.weights.items())
        )
        joined = ",\n".join(lines)
        return f'{{"file": {json.dumps(self.file)}, "weights": {{\n{joined}\n}}}}\n'


class Weights(Mapping[str, Weight]):
    """Weights of a part on disk, by PyTorch name.

    Args:
        path: the part's ``initializers.json``.

    Raises:
        BundleError: the file cannot be read or is invalid.
    """

    def __init__(self, path: Path) -> None:
        try:
            weight_map = WeightMap.model_validate_json(read_regular(path, _MAX_BYTES), strict=True)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}: build the bundle again") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(item) for item in first["loc"]) or "the map"
            raise BundleError(f"{path}: {where}: {first['msg']}: build the bundle again") from None
        self._weights = weight_map.weights
        self._data = path.parent / weight_map.file
        # Where the bundle was replaced, the data file is opened by another path.
        self._opened = self._data

    @classmethod
    def of(cls, part: Part, graph: Path) -> Weights:
        """Open the weights of a part, given the path of its graph.

        Raises:
            BundleError: like the class, or the data file is not one of the part's.
        """
        weights = cls(graph.with_name(Path(part.initializers).name))
        data = Path(part.initializers).with_name(weights._data.name).as_posix()
        if data not in {file.path for file in part.files}:
            raise BundleError(
                f"{graph.with_name(Path(part.initializers).name)} reads {weights._data.name!r}, which the bundle's "
                "manifest does not list: build the bundle again"
            )
        return weights

    @classmethod
    def in_bundle(cls, bundle: Bundle, part: Part) -> Weights:
        """Open the weights of a part of a bundle, and read them from its verified files even if it was replaced.

        Raises:
            BundleError: like :meth:`of`.
        """
        weights = bundle.load(part.files, lambda folder: cls.of(part, folder / part.onnx))
        name = Path(part.initializers).with_name(weights._data.name).as_posix()
        weights._data = bundle.file(name)
        weights._opened = bundle.files.path(next(file for file in part.files if file.path == name))
        return weights

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights, in PyTorch's orientation."""
        return {name: weight.shape for name, weight in self._weights.items()}

    def read(self, name: str) -> Array:
        """Read a weight in PyTorch's orientation and the part's precision, as a new array.

        A transposed weight is returned as a view that is not C-contiguous: transposing in memory and back would take
        as long as the rest of the work on it.

        Raises:
            BundleError: the data file cannot be read, or is too short.
        """
        weight = self._weights[name]
        dtype = np.dtype(weight.dtype).newbyteorder("<")
        try:
            flat = np.fromfile(self._opened, dtype, math.prod(weight.shape), offset=weight.offset)
        except OSError as error:
            raise BundleError(
                f"{self._data} cannot be read: {error.strerror}: build the bundle again"
            ) from None
        if flat.nbytes != weight.length:
            raise BundleError(
                f"{self._data} ends before the last byte of {name}: copy or build the bundle again"
            )
        stored = flat.reshape(weight.stored_shape)
        return stored.T if weight.transposed else stored

    def replacement(self, name: str, value: Array) -> tuple[str, Array]:
        """Convert a weight's new value to the name and value of its initialiser.

        Args:
            value: in PyTorch's orientation; rounded to the part's precision, and copied unless it already has the
                initialiser's memory order.

        Raises:
            KeyError: the part has no such weight.
            ValueError: the weight has another shape.
        """
        weight = self._weights[name]
        if value.shape != weight.shape:
            raise ValueError(f"{name} has the shape {list(weight.shape)}, not {list(value.shape)}")
        stored = value.T if weight.transposed else value
        return weight.initializer, np.ascontiguousarray(stored, weight.dtype)


def replaced_initializers(
    label: str, part: Part, graph: Path, values: Mapping[str, Array], threads: int | None
) -> Iterator[tuple[str, Array]]:
    """Convert new values of weights to names and values of initialisers, computed by a pool of threads.

    Args:
        label: name of the engine in error messages.
        graph: path of the part's graph.
        values: new weights by PyTorch name, in PyTorch's orientation.
        threads: number of threads; None for the executor's default.

    Raises:
        EngineError: the part has no such weights, or they have other shapes.
        BundleError: the part's map of weights cannot be read.
    """
    weights = Weights.of(part, graph)
    unknown = sorted(set(values) - set(weights))
    if unknown:
        raise EngineError(
            f"{label} has no weights named {', '.join(unknown[:5])}"
            f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}: use the names in {part.initializers}"
        )

    def convert(name: str) -> tuple[str, Array]:
        try:
            return weights.replacement(name, values[name])
        except ValueError as error:
            raise EngineError(f"{label}: {error}: use a weight of the same shape") from None

    # A lazy mapping computes its values on access: threads let NumPy compute several at once.
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(convert, values)
