"""Cache of exported graphs without their weights, so that no graph is exported twice.

The graph of a part depends on the network's configuration, never on its weights: each weight is one initialiser of
the graph. (Adding LoRAs to a built engine relies on that too.) Graphs are cached under a hash of the configuration,
the exporters' versions and a revision; on a hit, only the weights are written. Exporting a denoiser takes half a
minute, filling in the weights of a small one a fraction of a second.

Graphs are looked up first in the package, which ships those of the demo, then in the cache directory, where each
export stores its graph. Files there may be deleted at any time. A damaged one is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.demo.files import GRAPHS
from sd2rt.engines.errors import BundleError
from sd2rt.engines.weights.initializers import Weight, WeightMap
from sd2rt.export.checkpoints.pipeline_configs import Config
from sd2rt.export.graphs.onnx_part import (
    INITIALIZERS,
    MODEL,
    ORT_MODEL,
    described_part,
    export_part,
    weights_of,
)

EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")
"""Packages whose versions determine an exported graph."""

GRAPH_REVISION = 2
"""Increment it when a part's computation or the structure of its graph changes for the same configuration.

Archives of other revisions are not read. Moving or rewording the modules needs no new revision. A test compares the
structure of exported graphs with a record, and fails if a structure changed under the same revision.
"""

_PROVENANCE_KEYS = ("_class_name", "_diffusers_version", "_name_or_path", "transformers_version")
"""Configuration keys that record its origin, and do not affect the network."""

_OTHER_DATA = "rest"
"""Name in an archive of the bytes of the data file that belong to no weight."""


def make_part(
    name: PartName,
    module: nn.Module,
    interface: Interface,
    bundle: Path,
    precision: Precision,
    config: Config,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Part:
    """Write ``bundle/<name>/model.onnx`` with its weights beside it; export only if no graph is cached.

    Args:
        module: the network, its weights in ``precision``.
        config: the network's configuration.
        progress: called with the fraction of the work that is done, from 0 to 1.

    Raises:
        BuildError: see :func:`~sd2rt.export.graphs.onnx_part.export_part`.
    """
    file = graph_file(name, interface, precision, config)
    weights = weights_of(name, module)
    folders = [GRAPHS, *_cache_folders()]
    for folder in folders:
        if (graphs := _read(folder / file, weights)) is not None:
            graphs.write(bundle / name, weights)
            return described_part(name, module, interface, bundle, precision)
    part = export_part(name, module, interface, bundle, precision, progress)
    # If the graph cannot be stored, the next build exports it again.
    with contextlib.suppress(OSError):
        for folder in folders[1:]:
            _store(bundle / name, folder / file)
    return part


def graph_file(name: PartName, interface: Interface, precision: Precision, config: Config) -> str:
    """Archive name for a part's graphs: the part's name, and a SHA-256 over everything that they depend on."""
    facts = {
        "part": name,
        "inputs": [tensor.model_dump(mode="json") for tensor in interface.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in interface.outputs],
        "precision": precision,
        "config": {key: value for key, value in config.items() if key not in _PROVENANCE_KEYS},
        # The local version (+cpu, +cu128) names PyTorch's target device; exports are the same.
        "exporters": {
            package: importlib.metadata.version(package).partition("+")[0] for package in EXPORTERS
        },
        "revision": GRAPH_REVISION,
    }
    return f"{name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.zip"


def _cache_folders() -> list[Path]:
    with contextlib.suppress(BundleError):
        return [cache_dir() / "graphs"]
    return []


@dataclass(frozen=True, slots=True)
class _Graphs:
    """Contents of a part's folder without its weights."""

    files: Mapping[str, bytes]
    weight_map: WeightMap
    other_data: bytes
    """Bytes of the data file that belong to no weight: large constants and padding."""

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Write a part's folder from these graphs and a network's weights."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        other_data, end = io.BytesIO(self.other_data), 0
        with (folder / self.weight_map.file).open("wb") as data:
            for name, weight in _by_offset(self.weight_map):
                data.write(other_data.read(weight.offset - end))
                data.write(_weight_bytes(weights[name], weight))
                end = weight.offset + weight.length
            data.write(other_data.read())


def _read(archive: Path, weights: Mapping[str, torch.Tensor]) -> _Graphs | None:
    """The graphs of an archive, or None if it is missing, damaged, or has weights of other names or shapes."""
    try:
        with zipfile.ZipFile(archive) as source:
            files = {name: source.read(name) for name in (MODEL, INITIALIZERS)}
            if ORT_MODEL in source.namelist():
                files[ORT_MODEL] = source.read(ORT_MODEL)
            graphs = _Graphs(
                files, WeightMap.model_validate_json(files[INITIALIZERS]), source.read(_OTHER_DATA)
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError):
        return None
    shapes = {name: weight.shape for name, weight in graphs.weight_map.weights.items()}
    return graphs if shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()} else None


def _store(part: Path, archive: Path) -> None:
    """Write the graphs of a part's folder to ``archive``, atomically."""
    paths = [part / name for name in (MODEL, ORT_MODEL, INITIALIZERS)]
    files = {path.name: path.read_bytes() for path in paths if path.exists()}
    weight_map = WeightMap.model_validate_json(files[INITIALIZERS])
    other_data, end = [], 0
    with (part / weight_map.file).open("rb") as data:
        for _, weight in _by_offset(weight_map):
            other_data.append(data.read(weight.offset - end))
            end = data.seek(weight.offset + weight.length)
        other_data.append(data.read())
    archive.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name, content in {**files, _OTHER_DATA: b"".join(other_data)}.items():
            # No timestamp, so that identical graphs give identical archives.
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)


def _weight_bytes(tensor: torch.Tensor, weight: Weight) -> memoryview:
    """A weight's bytes as stored in the data file."""
    value = tensor.detach().numpy()
    dtype = np.dtype(weight.dtype).newbyteorder("<")
    array = np.ascontiguousarray(value.T if weight.transposed else value, dtype)
    return array.reshape(-1).view(np.uint8).data


def _by_offset(weight_map: WeightMap) -> list[tuple[str, Weight]]:
    return sorted(weight_map.weights.items(), key=lambda item: item[1].offset)
