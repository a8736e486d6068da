"""Build a demo bundle from the package's files, with NumPy alone: the bundle that export builds, byte for byte."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from sd2rt.engines.bundle.model_kinds import KINDS, PartName, with_defaults
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.bundle.writer import BuildResult, BundleWriter, build_key, find_built
from sd2rt.engines.demo.files import (
    DEMO_NAMES,
    PACKAGED,
    TOKEN_IDS,
    TOKEN_TABLE,
    TOKENIZER,
    demo_tasks,
    read_packaged,
)
from sd2rt.engines.demo.template import Template, read_template
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.interface import Array
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.weights.graph_archive import GraphArchive
from sd2rt.engines.weights.safetensors import read_safetensors

_LOG = logging.getLogger(__name__)

_TOKENIZER = TOKENIZER.relative_to(PACKAGED).as_posix()
_FILE_NAMES = {"position_embedding.weight": "embeddings.position_embedding.weight"}
"""Names in the files of weights that have another name in a part."""


def build_demo(
    name: str,
    target: Path,
    *,
    precision: Precision = "fp32",
    sizes: Sequence[tuple[int, int]] = (),
    steps: int | None = None,
    guidance: float | None = None,
    replace: bool = False,
    again: bool = False,
    progress: Callable[[str, float], None] = lambda part, fraction: None,
) -> BuildResult:
    """Build a demo into a bundle at ``target``.

    Args:
        name: one of :data:`~sd2rt.engines.demo.files.DEMO_NAMES`.
        precision: dtype of the networks.
        sizes: native sizes to record, (width, height) in pixels, the default first; empty for the demo's.
        steps: default steps to record for all tasks; None for the demo's.
        guidance: default guidance scale to record.
        replace: overwrite a different bundle at ``target``; an identical, intact one is kept.
        again: rebuild even an identical, intact bundle.
        progress: called with each part's name and the fraction of it that is done.

    Raises:
        BuildError: the target may not be replaced, another build is running, or the disk is full.
        CheckpointError: a file of the package is missing or damaged.
        RequestError: a size is not supported.
    """
    target = target.absolute()
    for width, height in sizes:
        check_sides(width, height)
    template = read_template(name, precision)
    native = tuple(sizes) or tuple((width, height) for width, height in template.manifest["native_sizes"])
    version = importlib.metadata.version("sd2rt")
    tasks = {
        task: defaults.model_dump(mode="json")
        for task, defaults in with_defaults(demo_tasks(DEMO_NAMES[name]), steps, guidance).items()
    }
    key = build_key({**template.key_facts, "tasks": tasks}, native, version)
    existing, damaged = find_built(target, key)
    if existing is not None and not again:
        _LOG.info("%s is intact: kept", target)
        return BuildResult(target, existing, fresh=False)
    _LOG.info("building %s from the packaged %s in %s", target, name, precision)
    start = time.monotonic()
    package = _Package(template.packaged)
    # A damaged bundle of the same key is rebuilt without asking: nothing can be lost.
    may_replace = replace or again or damaged
    with BundleWriter(target, key, needed_bytes=template.needed_bytes, replace=may_replace) as writer:
        # In this order, which has the halves of the autoencoder before their graphs for tiles.
        names = KINDS[DEMO_NAMES[name]].parts
        parts = {part: _part(writer, template, package, part, progress) for part in names}
        entries = {
            **template.manifest,
            "build_key": key,
            "name": os.path.basename(os.path.realpath(target)),
            "native_sizes": native,
            "parts": {part: described.model_dump(mode="json") for part, described in parts.items()},
            "sd2rt_version": version,
            "tasks": tasks,
            "tokenizer": _tokenizer(writer.folder, template, package),
            "embeddings": _embeddings(writer.folder, template, package),
        }
        manifest = Manifest.model_validate_json(json.dumps(entries), strict=True)
        progress("bundle", 0.0)
        writer.finish(manifest)
        progress("bundle", 1.0)
    _LOG.info("built %s in %.1f s", target, time.monotonic() - start)
    return BuildResult(target, manifest, fresh=True)


def outdated(name: str, bundle: Path) -> dict[str, Any] | None:
    """Return the options to build a demo again if this version would build it differently, None if it would not.

    None also for a bundle of another checkpoint, for one with compiled engines, which would be lost, and for a
    manifest that cannot be read, which is left to its reader's error.
    """
    try:
        manifest = parse_json(read_regular(bundle / MANIFEST, MAX_MANIFEST_BYTES))
        precision, sizes = manifest["precision"], manifest["native_sizes"]
        template = read_template(name, precision)
        of_the_demo = manifest["source"]["files"].keys() == template.manifest["source"]["files"].keys()
        if manifest["engines"] or not of_the_demo:
            return None
        facts = {**template.key_facts, "tasks": manifest["tasks"]}
        if manifest["build_key"] == build_key(facts, sizes, importlib.metadata.version("sd2rt")):
            return None
        chosen = (
            [] if sizes == template.manifest["native_sizes"] else [(width, height) for width, height in sizes]
        )
        return {"precision": precision, "sizes": chosen}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError):
        return None


class _Package:
    """Packaged files, verified when they are read."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = hashes
        self._tensors: dict[str, dict[str, Array]] = {}

    def read(self, name: str) -> bytes:
        """Read a file by its path in ``engines/demo/``.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = PACKAGED / name
        content = read_packaged(path)
        if hashlib.sha256(content).hexdigest() != self._hashes[name]:
            raise CheckpointError(
                f"the demo is damaged, {path} has another SHA-256 than its manifest's template states: "
                "reinstall sd2rt, or name a checkpoint"
            )
        return content

    def tensors(self, file: str) -> dict[str, Array]:
        """Tensors of a file of weights, in float32."""
        if file not in self._tensors:
            self._tensors[file] = dict(read_safetensors(self.read(f"weights/{file}"), integers=True))
        return self._tensors[file]


def _part(
    writer: BundleWriter,
    template: Template,
    package: _Package,
    name: PartName,
    progress: Callable[[str, float], None],
) -> Part:
    part = writer.part(name)
    if part is not None:
        _LOG.info("%s: kept from an interrupted build", name)
    else:
        progress(name, 0.0)
        writer.start_part(name)
        sources, entry = template.parts[name], template.manifest["parts"][name]
        tensors = {key: value for file in sources.weights for key, value in package.tensors(file).items()}
        archive = GraphArchive.read(package.read(f"graphs/{sources.graphs}"))
        weight_map = archive.weight_map()
        names = () if weight_map is None else weight_map.weights
        folder = (writer.folder / entry["onnx"]).parent
        archive.write(folder, {key: tensors[_FILE_NAMES.get(key, key)] for key in names})
        files = [describe(writer.folder, path).model_dump(mode="json") for path in entry["files"]]
        part = Part.model_validate_json(json.dumps({**entry, "files": files}), strict=True)
        writer.keep_part(name, part)
    progress(name, 1.0)
    return part


def _tokenizer(folder: Path, template: Template, package: _Package) -> dict[str, Any]:
    entry = template.manifest["tokenizer"]
    (folder / entry["file"]).write_bytes(package.read(_TOKENIZER))
    return _described(folder, entry)


def _embeddings(folder: Path, template: Template, package: _Package) -> dict[str, Any]:
    """Write the token table in SD2's size: zeros for tokens in no training caption."""
    entry = template.manifest["embeddings"]
    (file,) = template.parts["text_encoder"].weights
    tensors = package.tensors(file)
    table = np.zeros((entry["tokens"], entry["width"]), entry["dtype"])
    table[tensors[TOKEN_IDS].astype(np.int64)] = tensors[TOKEN_TABLE]
    np.save(folder / entry["file"], table, allow_pickle=False)
    return _described(folder, entry)


def _described(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "file": describe(folder, entry["file"]).model_dump(mode="json")}
