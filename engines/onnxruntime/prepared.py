"""Graphs as ONNX Runtime optimised them for this CPU, saved with their weights as its kernels read them.

Opening a part is mostly that: at Stable Diffusion's size ten seconds of work, and a copy of every weight in the
memory of the process. What is saved is mapped into memory instead, and shared by all processes that open it. It
takes as much disk as the bundle, and is good for this CPU and this version of ONNX Runtime alone: so it lies in the
cache directory, not in the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_folder
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.writer import reported
from sd2rt.engines.errors import BuildError, BundleError, RequestError
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.engine import cpu_options, import_onnxruntime

GRAPH, WEIGHTS, FACTS = "model.onnx", "model.onnx.data", "prepared.json"
_FORMAT = 1
# Weights, those in the order of a kernel beside them where both are kept, and some.
_SPACE = 1.6


@dataclass(frozen=True, slots=True)
class Prepared:
    """A part's saved graph."""

    part: PartName
    path: Path
    bytes: int
    made: bool
    """False where it was there already."""


def find_prepared(part: Part) -> Path | None:
    """The graph of a part that was saved for this CPU and this ONNX Runtime, whole and unchanged; else None."""
    try:
        folder = _folder(part)
        known = json.loads((folder / FACTS).read_bytes())
        whole = known["files"] == _stamps(folder)
    except (OSError, ValueError, KeyError, TypeError, BundleError):
        return None
    return folder / GRAPH if whole else None


def prepare(
    bundle: str | os.PathLike[str],
    *,
    parts: Sequence[str] = (),
    progress: Callable[[PartName], None] = lambda part: None,
) -> list[Prepared]:
    """Save the graphs of a bundle's parts as this CPU's; those that are there stay.

    Graphs of bundles that are gone, and of other versions of ONNX Runtime, are removed first.

    Args:
        parts: all that the bundle has where empty.
        progress: hears each part before it is worked on.

    Raises:
        BundleError: the bundle is missing or damaged, or there is no cache directory.
        BuildError: the disk is full, or the cache cannot be written.
        RequestError: the bundle has no such part.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    import_onnxruntime(Device("cpu"))
    opened = open_bundle(bundle)
    if strangers := set(parts) - set(opened.manifest.parts):
        raise RequestError(
            f"--part {min(strangers)}: {opened.path} has {', '.join(sorted(opened.manifest.parts))}"
        )
    names = [name for name in get_args(PartName) if name in (parts or opened.manifest.parts)]
    with reported(_root()):
        _prune()
        made = []
        for name in names:
            progress(name)
            made.append(_prepare(opened, name))
    return made


def remove(bundle: str | os.PathLike[str]) -> int:
    """Remove what was saved of a bundle; how many bytes that were.

    Raises:
        BundleError: the bundle is missing or damaged.
    """
    opened = open_bundle(bundle)
    folders = {_folder(part) for part in opened.manifest.parts.values()}
    found = [folder for folder in folders if folder.is_dir()]
    freed = sum(file.stat().st_size for folder in found for file in folder.iterdir())
    for folder in found:
        shutil.rmtree(folder)
    return freed


def _prepare(bundle: Bundle, name: PartName) -> Prepared:
    part = bundle.part(name)
    folder = _folder(part)
    found = find_prepared(part)
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        source = bundle.file(part.onnxruntime)
        weights = sum(file.size for file in part.files if file.path.endswith(".data"))
        free = shutil.disk_usage(folder.parent).free
        if free < weights * _SPACE:
            raise BuildError(
                f"{folder.parent} has {free / 1e9:.1f} GB free, and the graph of {name} takes up to "
                f"{weights * _SPACE / 1e9:.1f} GB: make room"
            )
        with atomic_folder(folder) as unfinished:
            _save(source, unfinished)
            facts = {"bundle": str(bundle.path), "version": _version(), "files": _stamps(unfinished)}
            (unfinished / FACTS).write_text(json.dumps(facts))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Prepared(name, folder, size, found is None)


def _save(source: Path, folder: Path) -> None:
    ort = import_onnxruntime(Device("cpu"))
    options = cpu_options(threads=None)
    options.optimized_model_filepath = str(folder / GRAPH)
    for entry, value in (
        ("optimized_model_external_initializers_file_name", WEIGHTS),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{entry}", value)
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise BuildError(f"{source} cannot be saved to {folder}: {str(error).splitlines()[0]}") from error


def _stamps(folder: Path) -> dict[str, list[int]]:
    """What tells that files are those that were written; they are not read again to be sure."""
    found = {name: (folder / name).stat() for name in (GRAPH, WEIGHTS)}
    return {name: [status.st_size, status.st_mtime_ns, status.st_ino] for name, status in found.items()}


def _root() -> Path:
    return cache_dir() / "prepared"


def _folder(part: Part) -> Path:
    """Named by all that a saved graph depends on."""
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "files": sorted(
            file.sha256 for file in part.files if file.path == part.onnxruntime or file.path.endswith(".data")
        ),
        "onnxruntime": _version(),
        "cpu": _cpu(),
    }
    return _root() / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version() -> str:
    ort = import_onnxruntime(Device("cpu"))
    return f"{ort.__version__} {ort.get_build_info()}"


def _cpu() -> str:
    """What kernels are chosen by: the architecture, and the instructions that the CPU has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(flags.split()))}"


def _prune() -> None:
    root = _root()
    if not root.is_dir():
        return
    for folder in root.iterdir():
        try:
            known = json.loads((folder / FACTS).read_bytes())
            stays = known["version"] == _version() and (Path(known["bundle"]) / "bundle.json").exists()
        except FileNotFoundError:
            # Another process may be writing it.
            stays = folder.name.startswith(".")
        except (OSError, ValueError, KeyError, TypeError):
            stays = False
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)
