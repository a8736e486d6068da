"""Engines with replaced weights: compiled once for each set of weights, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.files import atomic_folder, describe, remove_folder
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.writer import os_errors_as_build_errors
from sd2rt.engines.errors import BuildError
from sd2rt.engines.interface import Array
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.tensorrt.compile.worker_process import compile_in_process
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask
from sd2rt.engines.tensorrt.packages import load_module
from sd2rt.engines.weights.initializers import Weights

_LOG = logging.getLogger(__name__)

_ENGINES_KEPT = 8
"""A LoRA at two sizes needs three engines; those of a full-size denoiser have 1.8 GB each."""
_ENTRY, _ENGINE = "entry.json", "rebuilt.engine"
_MAX_ENTRY_BYTES = 1 << 20


def weights_digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 of the weights' names, types, shapes and values, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def rebuilt_engine(
    bundle: Path, name: PartName, part: Part, entry: EngineEntry, weights: Mapping[str, Array]
) -> tuple[Path, EngineEntry]:
    """Return a copy of an engine with these weights: its folder and its entry, as in a manifest.

    The copy is compiled if the cache does not have it, which takes as long as building the part's engine. The cache
    keeps the eight engines used last.

    Args:
        weights: by PyTorch name, in PyTorch's orientation.

    Raises:
        BuildError: the engine cannot be compiled, or the disk is full.
        BundleError: the part's map of its weights cannot be read.
    """
    # The mapping may compute each value on access: do that once.
    weights = dict(weights)
    digest, module = weights_digest(weights), load_module(entry.backend)
    # The copy must not be refittable: an engine built without weights would load the bundle's.
    options = entry.options.model_copy(update={"refit": "no"})
    facts = {
        "built": [entry.onnx, entry.weights, *entry.compute_capabilities],
        "weights": digest,
        "version": str(module.__version__),
        "options": options.model_dump(mode="json"),
        "profiles": [profile.model_dump(mode="json") for profile in entry.profiles],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = cache_dir() / "rebuilt" / key
    if (cached := _read_intact(folder)) is not None:
        _LOG.info("%s %s with these weights is in the cache: %s", name, entry.label, folder)
        return folder, cached
    start = time.monotonic()
    with os_errors_as_build_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _prune(folder.parent)
        # Replaces a damaged engine; if another process finishes first, its engine is kept.
        with atomic_folder(folder) as unfinished:
            part_weights = Weights.of(part, bundle / part.onnx)
            replacements = dict(part_weights.replacement(weight, value) for weight, value in weights.items())
            np.savez(unfinished / "weights.npz", allow_pickle=False, **replacements)
            task = BuildTask(
                name=name,
                part=part,
                onnx=str(bundle / part.onnx),
                profiles=entry.profiles,
                options=options,
                target=str(unfinished / _ENGINE),
                replaced=str(unfinished / "weights.npz"),
            )
            warnings.warn(
                f"compiling {name} {entry.label} with new weights, once", RuntimeWarning, stacklevel=2
            )
            built = compile_in_process(task)
            _LOG.info(
                "compiled %s %s with new weights in %.1f s", name, entry.label, time.monotonic() - start
            )
            (unfinished / "weights.npz").unlink()
            report = Path(f"{task.target}.json").rename(unfinished / "rebuilt.json")
            compiled = entry.model_copy(
                update={
                    "key": key,
                    "version": built.version,
                    "gpu": built.gpu,
                    "driver": built.driver,
                    "flags": built.flags,
                    "options": options,
                    "file": describe(unfinished, _ENGINE),
                    "report": describe(unfinished, report.name),
                    "weights": digest,
                }
            )
            (unfinished / _ENTRY).write_text(compiled.model_dump_json())
    written = _read_intact(folder)
    if written is None:
        raise BuildError(f"{folder} was changed while it was written: try again")
    return folder, written


def _read_intact(folder: Path) -> EngineEntry | None:
    """Read the entry of a cached engine; None if the engine is missing or damaged."""
    try:
        entry = EngineEntry.model_validate_json(read_regular(folder / _ENTRY, _MAX_ENTRY_BYTES), strict=True)
        if describe(folder, entry.file.path) != entry.file:
            return None
    except (OSError, ValidationError):
        return None
    with contextlib.suppress(OSError):
        # Pruning keeps the engines used last.
        os.utime(folder)
    return entry


def _prune(folder: Path) -> None:
    """Make room for one engine: remove the least recently used ones."""
    with contextlib.suppress(OSError):
        engines = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for path in engines[: max(0, len(engines) - _ENGINES_KEPT + 1)]:
            remove_folder(path)
