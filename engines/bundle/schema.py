"""The types that a manifest is made of: files by relative path and hash, tensors by name and shape, parts."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "fp16"]
ComputePrecision = Literal["bf16"]
"""What a backend may multiply in, in the place of the bundle's own precision."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
        raise ValueError(f"path {path!r} leaves the bundle")
    # One spelling for each file: no "./a", "a//b" or "a/", and no "." for the bundle itself.
    if not pure.parts or str(pure) != path or _CONTROL.search(path):
        raise ValueError(f"path {path!r} is no plain path of a file")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """Base of the manifest's models: an unknown key is an error, and nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class File(Model):
    """One file of the bundle."""

    path: RelativePath
    size: int = Field(ge=0)
    sha256: Sha256


Dimension = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^([1-9][0-9]*\*)?[A-Za-z]\w*$")]


class Tensor(Model):
    """An input or output of a part; a dimension is a number, or an expression such as ``B`` or ``8*h``."""

    name: str
    dtype: Literal["float32", "float16", "int64", "uint8", "bool"]
    shape: tuple[Dimension, ...]


class Part(Model):
    """One network of the pipeline as ONNX.

    ``onnx`` is the graph that every backend can build from. ``onnxruntime`` is the one that ONNX Runtime opens:
    the same file, or the same graph on the same weights with operators that it has kernels for.
    ``precision`` is that of its weights; it may be higher than the bundle's.
    ``initializers`` maps every weight by its PyTorch name to the initialiser that holds it, and to its bytes in the
    data file that lies beside the graphs and that they share; see
    :class:`sd2rt.engines.weights.initializers.WeightMap`.
    """

    precision: Precision
    onnx: RelativePath
    onnxruntime: RelativePath
    files: tuple[File, ...]
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    initializers: RelativePath
    parameters: int = Field(ge=0)

    @model_validator(mode="after")
    def _files_listed(self) -> Part:
        listed = {file.path for file in self.files}
        for path in (self.onnx, self.onnxruntime, self.initializers):
            if path not in listed:
                raise ValueError(f"{path} is not among the part's files")
        return self
