"""Cache of exported graphs without their weights, so that no graph is exported twice.

The graph of a part depends on the network's configuration, never on its weights: each weight is one initialiser of
the graph. (Adding LoRAs to a built engine relies on that too.) Exporting a denoiser takes half a minute, filling in
the weights of a small one a fraction of a second.

Graphs are looked up first in the package, which ships those of the demo: by part, configuration and precision,
whatever exporters are installed. The bundle then records the versions that exported them. Next comes the cache
directory, where each export stores its graph, under a hash of the configuration, the exporters' versions and a
revision. Files there may be deleted at any time. A damaged one is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.demo.files import GRAPHS
from sd2rt.engines.errors import BundleError
from sd2rt.engines.interface import Array
from sd2rt.engines.weights.graph_archive import EXPORTERS, GraphArchive
from sd2rt.engines.weights.graph_archive import GRAPH_REVISION as GRAPH_REVISION
from sd2rt.export.checkpoints.pipeline_configs import Config
from sd2rt.export.graphs.cuda_forms.graph_file import write_graph_for_cuda
from sd2rt.export.graphs.onnx_part import described_part, export_part, weights_of

_LOG = logging.getLogger(__name__)

_PROVENANCE_KEYS = ("_class_name", "_diffusers_version", "_name_or_path", "transformers_version")
"""Configuration keys that record its origin, and do not affect the network."""


def make_part(
    name: PartName,
    module: nn.Module,
    interface: Interface,
    bundle: Path,
    precision: Precision,
    config: Config,
    exporters: Mapping[str, str],
    progress: Callable[[float], None] = lambda fraction: None,
    *,
    float32_scores: bool = False,
) -> Part:
    """Write ``bundle/<name>/model.onnx`` with its weights beside it; export only if no graph is at hand.

    Args:
        module: the network, its weights in ``precision``.
        config: the network's configuration.
        exporters: versions of the exporters, from :func:`packaged_exporters` or :func:`installed_exporters`.
            A packaged graph of others is not used.
        progress: called with the fraction of the work that is done, from 0 to 1.
        float32_scores: compute attention in float32, in a float16 network.

    Raises:
        BuildError: see :func:`~sd2rt.export.graphs.onnx_part.export_part`.
    """
    start = time.monotonic()
    if float32_scores:
        # Such graphs have names of their own.
        config = {**config, "float32_scores": True}
    weights = {key: tensor.detach().numpy() for key, tensor in weights_of(name, module).items()}
    file, caches = graph_file(name, interface, precision, config), _cache_folders()
    graphs = _read(GRAPHS / packaged_file(name, interface, precision, config))
    if graphs is not None and graphs.exporters != exporters:
        graphs = None
    for archive in (graphs, *(_read(folder / file) for folder in caches)):
        if archive is not None and _fits(archive, weights):
            archive.write(bundle / name, weights)
            if archive is not graphs:
                write_graph_for_cuda(name, bundle / name, precision)
            seconds = time.monotonic() - start
            origin = "the package" if archive is graphs else "the cache"
            _LOG.info("%s: wrote the weights for a graph of %s in %.1f s", name, origin, seconds)
            return described_part(name, module, interface, bundle, precision)
    part = export_part(name, module, interface, bundle, precision, progress, float32_scores=float32_scores)
    _LOG.info("%s: exported in %.1f s", name, time.monotonic() - start)
    # If the graph cannot be stored, the next build exports it again.
    with contextlib.suppress(OSError):
        for folder in caches:
            GraphArchive.of_part(bundle / name, installed_exporters(), GRAPH_REVISION).store(folder / file)
    return part


def installed_exporters() -> dict[str, str]:
    """Versions of the installed exporters."""
    # The local version (+cpu, +cu128) names PyTorch's target device; exports are the same.
    return {package: importlib.metadata.version(package).partition("+")[0] for package in EXPORTERS}


def packaged_exporters(files: Iterable[str]) -> dict[str, str] | None:
    """Versions of the exporters of the packaged graphs of a bundle; None if the package lacks one of them.

    Args:
        files: names from :func:`packaged_file` of all parts of the bundle.
    """
    found: dict[str, str] | None = None
    for file in files:
        archive = _read(GRAPHS / file)
        if archive is None or (found is not None and archive.exporters != found):
            return None
        found = dict(archive.exporters)
    return found


def packaged_file(name: PartName, interface: Interface, precision: Precision, config: Config) -> str:
    """Archive name for a part's graphs in the package, which has graphs of one version of the exporters only: the
    part's name, and a SHA-256 over its configuration and precision."""
    return _file(name, _facts(name, interface, precision, config))


def graph_file(name: PartName, interface: Interface, precision: Precision, config: Config) -> str:
    """Archive name for a part's graphs in the cache: the part's name, and a SHA-256 over everything that they depend
    on."""
    facts = _facts(name, interface, precision, config)
    return _file(name, {**facts, "exporters": installed_exporters(), "revision": GRAPH_REVISION})


def _facts(name: PartName, interface: Interface, precision: Precision, config: Config) -> dict[str, Any]:
    return {
        "part": name,
        "inputs": [tensor.model_dump(mode="json") for tensor in interface.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in interface.outputs],
        "precision": precision,
        "config": {key: value for key, value in config.items() if key not in _PROVENANCE_KEYS},
    }


def _file(name: PartName, facts: dict[str, Any]) -> str:
    return f"{name}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.zip"


def _cache_folders() -> list[Path]:
    with contextlib.suppress(BundleError):
        return [cache_dir() / "graphs"]
    return []


def _read(path: Path) -> GraphArchive | None:
    """The graphs of an archive, or None if it is missing, damaged, or of another revision."""
    try:
        archive = GraphArchive.read(path.read_bytes())
    except (OSError, ValueError):
        return None
    return archive if archive.revision == GRAPH_REVISION else None


def _fits(archive: GraphArchive, weights: Mapping[str, Array]) -> bool:
    """Return whether an archive has weights of these names and shapes."""
    try:
        weight_map = archive.weight_map()
    except ValueError:
        return False
    expected = {} if weight_map is None else weight_map.weights
    return {name: weight.shape for name, weight in expected.items()} == {
        name: value.shape for name, value in weights.items()
    }
