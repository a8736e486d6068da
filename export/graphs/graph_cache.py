"""Exported graphs, kept without their weights, so that none is exported twice.

The exported graph of a part depends on the network's configuration, never on its weights: each weight is one
initialiser of the graph, which is what adding LoRAs to a built engine rests on too. So a part's graphs are kept under
a hash of the configuration, the exporters' versions and a revision, and where one is found, only the weights are
written. Exporting a denoiser takes half a minute, filling in a small one's weights a fraction of a second.

Graphs are looked for in the package, which brings those of the demo, then in the cache directory, where every export
leaves its own. There they may be removed at any time. One that is damaged is as good as none.
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
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.demo.files import GRAPHS
from sd2rt.engines.errors import BundleError
from sd2rt.engines.weights.initializers import Weight, WeightMap
from sd2rt.export.checkpoints.pipeline_configs import Config
from sd2rt.export.graphs.interface import Interface
from sd2rt.export.graphs.onnx_part import (
    INITIALIZERS,
    MODEL,
    ORT_MODEL,
    described_part,
    export_part,
    weights_of,
)

EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")
"""The packages that say what a graph looks like."""

GRAPH_REVISION = 2
"""Raise it when a part computes something else, or its graph is written otherwise, for the same configuration.

Archives of other revisions are not read. Moving and rewording the modules leaves it alone; a test compares the
structure of exported graphs with a record, and fails where one changed under the same revision.
"""

_NOTES = ("_class_name", "_diffusers_version", "_name_or_path", "transformers_version")
"""What a configuration says of where it comes from; the network is the same."""

_REST = "rest"
"""What an archive calls the part of the data file that is no weight."""


def make_part(
    name: PartName,
    module: nn.Module,
    interface: Interface,
    bundle: Path,
    precision: Precision,
    config: Config,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Part:
    """Write ``bundle/<name>/model.onnx`` with its weights beside it, exporting only where no graph is kept.

    Args:
        module: the network, its weights in ``precision``.
        config: the configuration that it was made of.
        progress: hears the share of the work done, from 0 to 1.

    Raises:
        BuildError: as :func:`~sd2rt.export.graphs.onnx_part.export_part` does.
    """
    file = graph_file(name, interface, precision, config)
    weights = weights_of(name, module)
    folders = [GRAPHS, *_cached()]
    for folder in folders:
        if (graphs := _read(folder / file, weights)) is not None:
            graphs.write(bundle / name, weights)
            return described_part(name, module, interface, bundle, precision)
    part = export_part(name, module, interface, bundle, precision, progress)
    # A graph that cannot be kept is exported again.
    with contextlib.suppress(OSError):
        for folder in folders[1:]:
            _keep(bundle / name, folder / file)
    return part


def graph_file(name: PartName, interface: Interface, precision: Precision, config: Config) -> str:
    """What the exported graphs of a part are kept as: its name, and SHA-256 over everything that they depend on."""
    facts = {
        "part": name,
        "inputs": [tensor.model_dump(mode="json") for tensor in interface.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in interface.outputs],
        "precision": precision,
        "config": {key: value for key, value in config.items() if key not in _NOTES},
        # What follows a plus says where a PyTorch was built to run; it exports the same.
        "exporters": {
            package: importlib.metadata.version(package).partition("+")[0] for package in EXPORTERS
        },
        "revision": GRAPH_REVISION,
    }
    return f"{name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.zip"


def _cached() -> list[Path]:
    with contextlib.suppress(BundleError):
        return [cache_dir() / "graphs"]
    return []


@dataclass(frozen=True, slots=True)
class _Graphs:
    """What a part's folder holds beside its weights."""

    files: Mapping[str, bytes]
    known: WeightMap
    rest: bytes
    """Of the data file, what is no weight: large constants, and what aligns them."""

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Make a part's folder of them and of a network's weights."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        rest, end = io.BytesIO(self.rest), 0
        with (folder / self.known.file).open("wb") as data:
            for name, weight in _in_order(self.known):
                data.write(rest.read(weight.offset - end))
                data.write(_stored(weights[name], weight))
                end = weight.offset + weight.length
            data.write(rest.read())


def _read(archive: Path, weights: Mapping[str, torch.Tensor]) -> _Graphs | None:
    """The graphs of an archive, if it is there, whole, and of such weights."""
    try:
        with zipfile.ZipFile(archive) as source:
            files = {name: source.read(name) for name in (MODEL, INITIALIZERS)}
            if ORT_MODEL in source.namelist():
                files[ORT_MODEL] = source.read(ORT_MODEL)
            graphs = _Graphs(files, WeightMap.model_validate_json(files[INITIALIZERS]), source.read(_REST))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError):
        return None
    known = {name: weight.shape for name, weight in graphs.known.weights.items()}
    return graphs if known == {name: tuple(tensor.shape) for name, tensor in weights.items()} else None


def _keep(part: Path, archive: Path) -> None:
    """Write the graphs of a part's folder as ``archive``: whole, or not at all."""
    paths = [part / name for name in (MODEL, ORT_MODEL, INITIALIZERS)]
    files = {path.name: path.read_bytes() for path in paths if path.exists()}
    known = WeightMap.model_validate_json(files[INITIALIZERS])
    rest, end = [], 0
    with (part / known.file).open("rb") as data:
        for _, weight in _in_order(known):
            rest.append(data.read(weight.offset - end))
            end = data.seek(weight.offset + weight.length)
        rest.append(data.read())
    archive.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(archive) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for name, content in {**files, _REST: b"".join(rest)}.items():
            # Without a date: equal graphs make equal archives.
            target.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)


def _stored(tensor: torch.Tensor, weight: Weight) -> memoryview:
    """A weight's bytes in the data file."""
    value = tensor.detach().numpy()
    dtype = np.dtype(weight.dtype).newbyteorder("<")
    array = np.ascontiguousarray(value.T if weight.transposed else value, dtype)
    return array.reshape(-1).view(np.uint8).data


def _in_order(known: WeightMap) -> list[tuple[str, Weight]]:
    return sorted(known.weights.items(), key=lambda item: item[1].offset)
