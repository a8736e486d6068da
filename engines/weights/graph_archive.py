"""Archives of a part's graphs without their weights, and bundles' folders filled from them.

Each weight is one initialiser of a graph, at a known place in the data file: with the weights of any network of the
same configuration, the files are those of an export. Filling takes NumPy alone.
"""

from __future__ import annotations

import io
import json
import lzma
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.interface import Array
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.weights.initializers import Weight, WeightMap

MODEL, ORT_MODEL, INITIALIZERS = "model.onnx", "onnxruntime.onnx", "initializers.json"
"""A part's files beside its weights: the graph, ONNX Runtime's graph if it differs, and the weight map."""
CUDA_MODEL = "onnxruntime-cuda.onnx"
"""Graph for ONNX Runtime's CUDA provider, derived from the first: archives do not have it."""
TILED = "tiled.onnx"
"""Graph for the tiles of a large image, beside the files of an encoder or decoder, whose weights it uses."""

_EXPORTER = "exporter.json"
_OTHER_DATA = "rest"
"""Name in an archive of the bytes of the data file that belong to no weight."""

EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")
"""Packages whose versions determine an exported graph."""

GRAPH_REVISION = 3
"""Increment it when a part's computation or the structure of its graph changes for the same configuration.

Archives of other revisions are not read. Moving or rewording the modules needs no new revision. A test compares the
structure of exported graphs with a record, and fails if a structure changed under the same revision.
"""


@dataclass(frozen=True, slots=True)
class GraphArchive:
    """Contents of a part's folder without its weights."""

    files: Mapping[str, bytes]
    other_data: bytes
    """Bytes of the data file that belong to no weight: large constants and padding."""
    exporters: Mapping[str, str]
    """Versions of the packages that exported the graphs."""
    revision: int
    """Revision of the code that exported the graphs."""

    @classmethod
    def read(cls, content: bytes) -> GraphArchive:
        """Read an archive.

        Raises:
            ValueError: it is damaged.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as source:
                files = {name: source.read(name) for name in source.namelist()}
            exporter = parse_json(files.pop(_EXPORTER))
            return cls(files, files.pop(_OTHER_DATA), exporter["exporters"], exporter["revision"])
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
            raise ValueError(f"it is not an archive of graphs ({error})") from None

    @classmethod
    def of_part(cls, folder: Path, exporters: Mapping[str, str], revision: int) -> GraphArchive:
        """Take the graphs of a part's folder."""
        paths = [folder / name for name in (MODEL, ORT_MODEL, INITIALIZERS)]
        files = {path.name: path.read_bytes() for path in paths if path.exists()}
        weight_map = WeightMap.model_validate_json(files[INITIALIZERS])
        other_data, end = [], 0
        with (folder / weight_map.file).open("rb") as data:
            for _, weight in _by_offset(weight_map):
                other_data.append(data.read(weight.offset - end))
                end = data.seek(weight.offset + weight.length)
            other_data.append(data.read())
        return cls(files, b"".join(other_data), exporters, revision)

    def store(self, path: Path) -> None:
        """Write the archive to a file, atomically. Identical graphs give identical archives.

        Raises:
            OSError: it cannot be written.
        """
        exporter = json.dumps({"exporters": dict(self.exporters), "revision": self.revision}, sort_keys=True)
        contents = {**self.files, _OTHER_DATA: self.other_data, _EXPORTER: exporter.encode()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
            for name, content in contents.items():
                # No timestamp.
                target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)

    def weight_map(self) -> WeightMap | None:
        """Map of the weights; None if the graphs use the weights of another part.

        Raises:
            ValueError: the archive's map is damaged.
        """
        content = self.files.get(INITIALIZERS)
        return None if content is None else WeightMap.model_validate_json(content)

    def write(self, folder: Path, weights: Mapping[str, Array]) -> None:
        """Write a part's folder from these graphs and a network's weights.

        Args:
            weights: by PyTorch name, in PyTorch's orientation; rounded to the precision of the graphs.

        Raises:
            ValueError: a weight has another shape than the graphs expect, or the map of weights is damaged.
            KeyError: a weight is missing.
            OSError: a file cannot be written.
        """
        weight_map = self.weight_map()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if weight_map is None:
            return
        other_data, end = io.BytesIO(self.other_data), 0
        with (folder / weight_map.file).open("wb") as data:
            for name, weight in _by_offset(weight_map):
                data.write(other_data.read(weight.offset - end))
                data.write(_stored(name, weights[name], weight))
                end = weight.offset + weight.length
            data.write(other_data.read())


def _stored(name: str, value: Array, weight: Weight) -> memoryview:
    """A weight's bytes as stored in the data file."""
    if value.shape != weight.shape:
        raise ValueError(f"{name} has the shape {list(value.shape)}, expected {list(weight.shape)}")
    dtype = np.dtype(weight.dtype).newbyteorder("<")
    array = np.ascontiguousarray(value.T if weight.transposed else value, dtype)
    return array.reshape(-1).view(np.uint8).data


def _by_offset(weight_map: WeightMap) -> list[tuple[str, Weight]]:
    return sorted(weight_map.weights.items(), key=lambda item: item[1].offset)
