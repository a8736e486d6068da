"""Engines with other weights than the bundle's: compiled once for each set of weights, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from sd2rt.engines.build_task import BuildTask
from sd2rt.engines.engine_build import compile_in_process
from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import EngineEntry, Part
from sd2rt.engines.session import Array
from sd2rt.engines.store import cache_dir
from sd2rt.engines.weights import Weights
from sd2rt.engines.writer import describe, reported

_KEPT = 4
"""Engines of a full-size denoiser are 1.8 GB each."""
_ENTRY, _ENGINE = "entry.json", "rebuilt.engine"


def weights_digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 over weights by name: their names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def rebuilt_engine(
    bundle: Path, name: PartName, part: Part, entry: EngineEntry, weights: Mapping[str, Array]
) -> tuple[Path, EngineEntry]:
    """The same engine with other weights: its folder, and its entry as a manifest would have it.

    It is compiled where the cache has none for these weights, which takes as long as any engine of the part; the
    four used last are kept.

    Args:
        weights: by PyTorch name, in PyTorch's orientation.

    Raises:
        BuildError: it cannot be compiled, or the disk is full.
        BundleError: the part's map of its weights cannot be read.
    """
    # Each value may be made where it is asked for.
    weights = dict(weights)
    digest = weights_digest(weights)
    key = hashlib.sha256(f"{entry.key} {digest}".encode()).hexdigest()
    folder = cache_dir() / "rebuilt" / key
    with contextlib.suppress(OSError, ValidationError):
        found = EngineEntry.model_validate_json((folder / _ENTRY).read_bytes(), strict=True)
        # What was used last stays longest.
        os.utime(folder)
        return folder, found
    folder.parent.mkdir(parents=True, exist_ok=True)
    _prune(folder.parent)
    own = Weights.of(part, bundle / part.onnx)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        with reported(folder):
            replaced = dict(own.replacement(weight, value) for weight, value in weights.items())
            np.savez(unfinished / "weights.npz", allow_pickle=False, **replaced)
            task = BuildTask(
                name=name,
                part=part,
                onnx=str(bundle / part.onnx),
                profiles=entry.profiles,
                options=entry.options,
                target=str(unfinished / _ENGINE),
                replaced=str(unfinished / "weights.npz"),
            )
            built = compile_in_process(task)
            (unfinished / "weights.npz").unlink()
            report = Path(f"{task.target}.json").rename(unfinished / "rebuilt.json")
            made = entry.model_copy(
                update={
                    "key": key,
                    "version": built.version,
                    "file": describe(unfinished, _ENGINE),
                    "report": describe(unfinished, report.name),
                    "weights": digest,
                }
            )
            (unfinished / _ENTRY).write_text(made.model_dump_json())
            with contextlib.suppress(OSError):
                # Another process may have been first: then its one is as good.
                unfinished.rename(folder)
        return folder, EngineEntry.model_validate_json((folder / _ENTRY).read_bytes(), strict=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _prune(folder: Path) -> None:
    """Make room: all but the engines used last go."""
    with contextlib.suppress(OSError):
        known = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for path in known[: max(0, len(known) - _KEPT + 1)]:
            shutil.rmtree(path, ignore_errors=True)
