"""Component types of the manifest: files, latents, tensors and parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sd2rt.engines.bundle.sizes import EARLIER_LATENT_MULTIPLE, SIZE_MULTIPLE

Precision = Literal["fp32", "fp16"]
ComputePrecision = Literal["bf16", "bf16-decoder"]
"""Compute precisions to use instead of the bundle's own: of all parts, or of the decoder."""

LICENSE_FOLDER = "license"
"""Folder of a bundle with the texts of its checkpoint's licence."""

_PRODUCT = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        raise ValueError(f"path {path!r} leaves the bundle")
    # Allow one spelling per file: reject "./a", "a//b", "a/", and "." for the bundle itself.
    if not pure.parts or str(pure) != path or _CONTROL.search(path):
        raise ValueError(f"path {path!r} is not a normalised file path")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """Base class of the manifest's models: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class File(Model):
    """A file of the bundle; its path is relative to the bundle, its size in bytes."""

    path: RelativePath
    size: int = Field(ge=0, le=1 << 53)
    sha256: Sha256


class Latents(Model):
    """Latent space of the autoencoder."""

    channels: int = Field(ge=1, le=1024)
    vae_factor: int = Field(ge=1, le=64)
    scaling_factor: float = Field(ge=1e-6, le=1e6)
    side_multiple: Literal[1, 8] = EARLIER_LATENT_MULTIPLE
    """Sides of latents that the denoiser takes are multiples of this; bundles of earlier versions do not state it."""

    @property
    def size_multiple(self) -> int:
        """Sides of images, in pixels, are multiples of this."""
        return SIZE_MULTIPLE * self.side_multiple

    def sides(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the latents of an image of this size in pixels.

        Upscaled images can have any size: some denoisers need a padded one.
        """
        height, width = (-(-side // self.vae_factor // self.side_multiple) for side in (height, width))
        return height * self.side_multiple, width * self.side_multiple

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A bundle's identity does not change with the version of sd2rt that reads it.
        entries: dict[str, Any] = serialize(self)
        if self.side_multiple == EARLIER_LATENT_MULTIPLE:
            del entries["side_multiple"]
        return entries


Dimension = (
    Annotated[int, Field(ge=1, le=1 << 40)]
    | Annotated[str, Field(pattern=r"^([1-9][0-9]{0,8}\*)?[A-Za-z]\w*$")]
)


class Tensor(Model):
    """Input or output of a part; each dimension is a number, or an expression such as ``B`` or ``8*h``."""

    name: str
    dtype: Literal["float32", "float16", "int64", "uint8", "bool"]
    shape: Annotated[tuple[Dimension, ...], Field(max_length=8)]


_HALF_MAX = 65504.0
_SCORES_MARGIN = 8
"""Other images, prompts and LoRAs have larger attention scores than those that are measured."""


def exceeds_half(scores: float) -> bool:
    """Return True if attention scores of this size are too near to the largest number of float16."""
    return not scores * _SCORES_MARGIN < _HALF_MAX


class Part(Model):
    """One network of the pipeline, as ONNX.

    ``onnx`` is the portable graph, which every backend can build from. ``onnxruntime`` is the graph for ONNX Runtime:
    the same file, or one with the same weights and operators that ONNX Runtime has kernels for.
    ``onnxruntime_cuda`` is the graph for ONNX Runtime's CUDA provider, with the same weights, where a bundle has one;
    elsewhere the provider runs ``onnx``.
    ``precision`` is the precision of the weights; it may be higher than the bundle's.
    ``initializers`` is the file that maps the PyTorch name of every weight to its initialiser, and to its bytes in
    the data file that the graphs share; see :class:`sd2rt.engines.weights.initializers.WeightMap`.
    ``largest_scores`` is the largest of a float16 denoiser's attention scores that were measured when it was built.
    """

    precision: Precision
    onnx: RelativePath
    onnxruntime: RelativePath
    files: tuple[File, ...]
    opset: int = Field(ge=1, le=1000)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    initializers: RelativePath
    parameters: int = Field(ge=0, le=1 << 53)
    largest_scores: float | None = Field(default=None, ge=0)
    onnxruntime_cuda: RelativePath | None = None

    @property
    def attends_in_float32(self) -> bool:
        """True if the part's attention is computed in float32, although the rest is not."""
        return self.largest_scores is not None and exceeds_half(self.largest_scores)

    @property
    def graph_for_cuda(self) -> str:
        """Path of the graph that ONNX Runtime's CUDA provider runs."""
        return self.onnx if self.onnxruntime_cuda is None else self.onnxruntime_cuda

    @property
    def cuda_graph_takes_tf32(self) -> bool:
        """True if TF32 would round nothing in the graph for CUDA, which then has matrix products in float16 alone."""
        return self.onnxruntime_cuda is not None and not self.attends_in_float32

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A bundle's identity does not change with the version of sd2rt that reads it.
        entries: dict[str, Any] = serialize(self)
        if self.onnxruntime_cuda is None:
            entries.pop("onnxruntime_cuda", None)
        return entries

    @model_validator(mode="after")
    def _files_listed(self) -> Part:
        listed = {file.path for file in self.files}
        graphs = [self.onnx, self.onnxruntime]
        if self.onnxruntime_cuda is not None:
            graphs.append(self.onnxruntime_cuda)
        for path, suffix in (*((graph, ".onnx") for graph in graphs), (self.initializers, ".json")):
            if path not in listed:
                raise ValueError(f"{path} is not listed in the part's files")
            if not path.endswith(suffix):
                raise ValueError(f"{path} is not a {suffix} file")
        return self


def shape_of(tensor: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Evaluate a tensor's symbolic shape with the symbol sizes in ``dims``.

    Raises:
        ValueError: ``dims`` has no size for a symbol.
    """
    shape = []
    for item in tensor.shape:
        if isinstance(item, int):
            shape.append(item)
        else:
            match = _PRODUCT.fullmatch(item)
            if match is None or match[2] not in dims:
                raise ValueError(
                    f"{tensor.name} has the dimension {item!r}, but there are sizes for {sorted(dims)} only"
                )
            shape.append(int(match[1] or 1) * dims[match[2]])
    return tuple(shape)


def symbols_of(part: Part) -> tuple[str, ...]:
    """Symbols in a part's shapes, in order of first use."""
    symbols: dict[str, None] = {}
    for tensor in (*part.inputs, *part.outputs):
        for item in tensor.shape:
            if isinstance(item, str) and (match := _PRODUCT.fullmatch(item)):
                symbols[match[2]] = None
    return tuple(symbols)
