"""Export the demo's graphs into the package, and write the templates of its manifests.

    python -m benchmarks.demo.graphs                  takes minutes
    python -m benchmarks.demo.graphs --keep-graphs    takes seconds; only weights have changed

Run it when the export code, the versions in constraints.txt or the weights have changed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from safetensors.torch import save

from sd2rt.engines.bundle.cache import CACHE_VARIABLE
from sd2rt.engines.bundle.files import sha256
from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import UNTILED, ModelKind, PartName
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.demo.files import (
    DEMO_NAMES,
    GRAPHS,
    KERNELS,
    MANIFESTS,
    PACKAGED,
    TOKENIZER,
    WEIGHTS,
    template_path,
)
from sd2rt.engines.demo.template import FROM_BUILD, PartSources, Template, without_files
from sd2rt.engines.weights.graph_archive import TILED, GraphArchive
from sd2rt.export.build import (
    build,
    estimated_bytes,
    key_facts,
    network_of,
    packaged_graphs,
    part_interfaces,
    part_module,
)
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.checkpoints.demo import weight_file
from sd2rt.export.checkpoints.tiny_configs import DEMO_SEED, DEMOS
from sd2rt.export.graphs.graph_cache import GRAPH_REVISION, installed_exporters
from sd2rt.export.graphs.onnx_part import weights_of
from sd2rt.export.testing.random_weights import random_checkpoint

ALL = tuple(itertools.product(DEMO_NAMES, get_args(Precision)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.graphs", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--keep-graphs", action="store_true", help="write the templates alone, from the packaged graphs"
    )
    keep = parser.parse_args().keep_graphs
    with tempfile.TemporaryDirectory(prefix="sd2rt-graphs-") as scratch:
        os.environ[CACHE_VARIABLE] = scratch
        if not keep:
            _remove(GRAPHS.glob("*.zip"))
            for name, precision in ALL:
                export_graphs(DEMO_NAMES[name], precision, Path(scratch) / f"{name}-{precision}")
                print(f"{name} {precision}: exported", flush=True)
        write_kernels(open_checkpoint("demo-depth"))
        _remove(MANIFESTS.glob("*.json"))
        MANIFESTS.mkdir(exist_ok=True)
        for name, precision in ALL:
            template = make_template(name, precision, Path(scratch) / "packaged" / f"{name}-{precision}")
            template_path(name, precision).write_text(template.to_json())
    for folder in (GRAPHS, MANIFESTS):
        files = [path for path in folder.iterdir() if path.is_file()]
        print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e3:.0f} kB in {folder}")


def export_graphs(kind: ModelKind, precision: Precision, scratch: Path) -> None:
    """Build a bundle of random weights, and store its graphs in the package.

    Trained weights that are equal, such as biases of zero, would be merged.
    """
    folder = random_checkpoint(scratch / "checkpoint", configs=DEMOS[kind], seed=DEMO_SEED)
    checkpoint, bundle = open_checkpoint(str(folder)), scratch / "bundle"
    build(checkpoint, bundle, precision=precision)
    exporters = installed_exporters()
    files = packaged_graphs(checkpoint, precision, part_interfaces(checkpoint, precision))
    for part, file in files.items():
        if part in UNTILED:
            tiled = (bundle / UNTILED[part] / TILED).read_bytes()
            archive = GraphArchive({TILED: tiled}, b"", exporters, GRAPH_REVISION)
        else:
            archive = GraphArchive.of_part(bundle / part, exporters, GRAPH_REVISION)
        archive.store(GRAPHS / file)


def write_kernels(checkpoint: Checkpoint) -> None:
    """Write those weights of the depth estimator's graph that are not in its file: the standardised kernels."""
    stored = checkpoint.depth_estimator().state_dict()
    used = weights_of("depth_estimator", part_module(checkpoint, "depth_estimator", "fp32"))
    KERNELS.write_bytes(save({name: value for name, value in used.items() if not value.equal(stored[name])}))


def make_template(name: str, precision: Precision, bundle: Path) -> Template:
    """Build a demo with PyTorch from the packaged graphs, and describe it in a template."""
    checkpoint = open_checkpoint(name)
    manifest = build(checkpoint, bundle, precision=precision).manifest
    graphs = packaged_graphs(checkpoint, precision, part_interfaces(checkpoint, precision))
    parts = {part: PartSources(graphs=graphs[part], weights=_weights(checkpoint, part)) for part in graphs}
    paths = {
        TOKENIZER,
        *(GRAPHS / sources.graphs for sources in parts.values()),
        *(WEIGHTS / file for sources in parts.values() for file in sources.weights),
    }
    return Template(
        key_facts=key_facts(checkpoint, checkpoint.tokenizer_json(), precision, manifest.exporter),
        needed_bytes=estimated_bytes(checkpoint, precision),
        packaged={path.relative_to(PACKAGED).as_posix(): sha256(path) for path in sorted(paths)},
        parts=parts,
        manifest=_entries(manifest),
    )


def _entries(manifest: Manifest) -> dict[str, object]:
    entries = without_files(manifest.model_dump(mode="json", exclude={*FROM_BUILD, "checksum"}))
    assert isinstance(entries, dict)
    return entries


def _weights(checkpoint: Checkpoint, part: PartName) -> tuple[str, ...]:
    if part in UNTILED:
        return ()
    file = weight_file(checkpoint.variant, network_of(part))
    return (file, KERNELS.name) if part == "depth_estimator" else (file,)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


if __name__ == "__main__":
    main()
