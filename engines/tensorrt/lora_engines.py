"""Engines with other weights than the bundle's: compiled once for each set of weights, and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.files import atomic_folder, describe
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.writer import reported
from sd2rt.engines.errors import BuildError
from sd2rt.engines.interface import Array
from sd2rt.engines.tensorrt.compile.worker_process import compile_in_process
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask
from sd2rt.engines.tensorrt.packages import load_module
from sd2rt.engines.weights.initializers import Weights

_KEPT = 8
"""Two sizes and the text encoder are three; those of a full-size denoiser are 1.8 GB each."""
_DAY = 24 * 3600
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
    eight used last are kept.

    Args:
        weights: by PyTorch name, in PyTorch's orientation.

    Raises:
        BuildError: it cannot be compiled, or the disk is full.
        BundleError: the part's map of its weights cannot be read.
    """
    # Each value may be made where it is asked for.
    weights = dict(weights)
    digest, module = weights_digest(weights), load_module(entry.backend)
    # Nothing of its own can be refitted: a plan without weights would take the bundle's again.
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
    if (found := _whole(folder)) is not None:
        return folder, found
    with reported(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _prune(folder.parent)
        # What was there is damaged; where another process was first, its one is as good.
        with atomic_folder(folder) as unfinished:
            own = Weights.of(part, bundle / part.onnx)
            replaced = dict(own.replacement(weight, value) for weight, value in weights.items())
            np.savez(unfinished / "weights.npz", allow_pickle=False, **replaced)
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
                f"compiling {name} {entry.label} with other weights, once", RuntimeWarning, stacklevel=2
            )
            built = compile_in_process(task)
            (unfinished / "weights.npz").unlink()
            report = Path(f"{task.target}.json").rename(unfinished / "rebuilt.json")
            made = entry.model_copy(
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
            (unfinished / _ENTRY).write_text(made.model_dump_json())
    found = _whole(folder)
    if found is None:
        raise BuildError(f"{folder} was changed while it was written: try again")
    return folder, found


def _whole(folder: Path) -> EngineEntry | None:
    """The entry of a finished engine whose file is what it says."""
    try:
        found = EngineEntry.model_validate_json((folder / _ENTRY).read_bytes(), strict=True)
        if describe(folder, found.file.path) != found.file:
            return None
    except (OSError, ValidationError):
        return None
    with contextlib.suppress(OSError):
        # What was used last stays longest.
        os.utime(folder)
    return found


def _prune(folder: Path) -> None:
    """Make room: all but the engines used last go, and what was left unfinished a day ago."""
    with contextlib.suppress(OSError):
        for left in folder.glob(".*.part"):
            if left.stat().st_mtime < time.time() - _DAY:
                shutil.rmtree(left, ignore_errors=True)
        known = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        for path in known[: max(0, len(known) - _KEPT + 1)]:
            shutil.rmtree(path, ignore_errors=True)
