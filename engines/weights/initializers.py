"""A part's weights by their PyTorch names: where their bytes lie, and what takes their place in the graph."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from sd2rt.engines.bundle.schema import Model, Part, RelativePath
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import Array


def _beside(path: str) -> str:
    if "/" in path:
        raise ValueError(f"{path!r} does not lie beside the graph")
    return path


class Weight(Model):
    """One weight of a network."""

    initializer: str
    """Its name in the part's graphs."""
    transposed: bool
    """The initialiser is the weight with its two axes exchanged."""
    dtype: Literal["float32", "float16"]
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    """In PyTorch's orientation."""
    offset: int = Field(ge=0)
    """Of the initialiser's first byte in the data file; they are little-endian, in C order."""
    length: int = Field(ge=0)
    """In bytes."""

    @model_validator(mode="after")
    def _sound(self) -> Weight:
        if self.length != math.prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise ValueError(f"{self.length} bytes are not {self.dtype}{list(self.shape)}")
        if self.transposed and len(self.shape) != 2:
            raise ValueError(f"{list(self.shape)} has not two axes, and is said to be transposed")
        return self

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The initialiser's."""
        return self.shape[::-1] if self.transposed else self.shape


class WeightMap(Model):
    """``initializers.json``: every weight of a part, by its name in the network's state dict.

    The names are those of the diffusers or transformers network (``down_blocks.0...`` of a UNet,
    ``encoder.layers.0...`` of a text encoder, without ``text_model.``; ``decoder...`` and ``post_quant_conv...``
    of an autoencoder). A part's graphs share them: the portable one, ONNX Runtime's, and those for tiles.
    """

    file: Annotated[RelativePath, AfterValidator(_beside)]
    """The data file, beside the graphs."""
    weights: dict[str, Weight]

    def to_json(self) -> str:
        """As it stands in the file: one weight a line."""
        lines = (
            f"{json.dumps(name)}: {json.dumps(weight.model_dump(mode='json'))}"
            for name, weight in sorted(self.weights.items())
        )
        joined = ",\n".join(lines)
        return f'{{"file": {json.dumps(self.file)}, "weights": {{\n{joined}\n}}}}\n'


class Weights(Mapping[str, Weight]):
    """The weights of a part on disk, by their PyTorch names.

    Args:
        path: the part's ``initializers.json``.

    Raises:
        BundleError: it is not there, or not what it should be.
    """

    def __init__(self, path: Path) -> None:
        try:
            known = WeightMap.model_validate_json(path.read_bytes(), strict=True)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}: build the bundle again") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(item) for item in first["loc"]) or "it"
            raise BundleError(f"{path}: {where}: {first['msg']}: build the bundle again") from None
        self._weights = known.weights
        self._data = path.parent / known.file

    @classmethod
    def of(cls, part: Part, graph: Path) -> Weights:
        """Those of the part whose graph lies at ``graph``. Raises BundleError as the class does."""
        return cls(graph.with_name(Path(part.initializers).name))

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape in PyTorch's orientation."""
        return {name: weight.shape for name, weight in self._weights.items()}

    def read(self, name: str) -> Array:
        """A weight's value in PyTorch's orientation and the part's precision, in memory of its own.

        It lies in the initialiser's order, so that a transposed one is not C-contiguous: turning hundreds of
        millions of numbers over and back takes as long as all else that is done with them.

        Raises:
            BundleError: the data file cannot be read, or ends before it.
        """
        weight = self._weights[name]
        dtype = np.dtype(weight.dtype).newbyteorder("<")
        try:
            flat = np.fromfile(self._data, dtype, math.prod(weight.shape), offset=weight.offset)
        except OSError as error:
            raise BundleError(
                f"{self._data} cannot be read: {error.strerror}: build the bundle again"
            ) from None
        if flat.nbytes != weight.length:
            raise BundleError(f"{self._data} ends before {name}: copy or build the bundle again")
        stored = flat.reshape(weight.stored_shape)
        return stored.T if weight.transposed else stored

    def replacement(self, name: str, value: Array) -> tuple[str, Array]:
        """The initialiser that stands for a weight, and what to put in its place for ``value``.

        Args:
            value: in PyTorch's orientation; it is rounded to the part's precision, and copied where it does not lie
                in the initialiser's order.

        Raises:
            KeyError: the part has no such weight.
            ValueError: it has another shape.
        """
        weight = self._weights[name]
        if value.shape != weight.shape:
            raise ValueError(f"{name} has the shape {list(weight.shape)}, not {list(value.shape)}")
        stored = value.T if weight.transposed else value
        return weight.initializer, np.ascontiguousarray(stored, weight.dtype)


def replaced_initializers(
    label: str, part: Part, graph: Path, values: Mapping[str, Array], threads: int | None
) -> Iterator[tuple[str, Array]]:
    """The initialisers that stand for weights, and what to put in their place, as they become ready.

    Args:
        label: of the engine, for errors.
        graph: where the part's graph lies.
        values: by PyTorch name, in PyTorch's orientation.
        threads: on which values are made; None for the executor's own choice.

    Raises:
        EngineError: the part has no such weights, or of other shapes.
        BundleError: its map of them cannot be read.
    """
    known = Weights.of(part, graph)
    strangers = sorted(set(values) - set(known))
    if strangers:
        raise EngineError(
            f"{label} has no weights named {', '.join(strangers[:5])}"
            f"{f' and {len(strangers) - 5} more' if len(strangers) > 5 else ''}: give names of its map of weights"
        )

    def made(name: str) -> tuple[str, Array]:
        try:
            return known.replacement(name, values[name])
        except ValueError as error:
            raise EngineError(f"{label}: {error}: give a weight of the same shape") from None

    # A mapping may make its values when they are asked for, which NumPy does on as many cores as it is asked from.
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(made, values)
