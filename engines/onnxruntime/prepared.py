"""Save graphs as ONNX Runtime optimised them for this CPU, with weights in the layout its kernels read.

Optimising takes most of the time to open a part: ten seconds at Stable Diffusion's size, and a copy of every weight
in the process's memory. A prepared graph is mapped into memory instead and shared between processes. It takes as much
disk as the bundle and fits only this CPU and this version of ONNX Runtime, so it is kept in the cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_folder, remove_folder
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.temporary import sweep
from sd2rt.engines.bundle.writer import os_errors_as_build_errors
from sd2rt.engines.errors import BuildError, BundleError, RequestError
from sd2rt.engines.fallback_warning import warn_of_fallback
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.opening import (
    CPU_PROVIDER,
    import_onnxruntime,
    require_cpu_address_space,
    session_options,
)
from sd2rt.engines.onnxruntime.prepared_files import (
    GRAPH,
    WEIGHTS,
    PreparedFiles,
    open_prepared_files,
    read_record,
    write_record,
)
from sd2rt.engines.onnxruntime.session_config import set_session_config

_LOG = logging.getLogger(__name__)

_FORMAT = 2
# Disk space per byte of weights: some are saved twice, as they are and in a kernel's layout.
_SPACE_FACTOR = 1.6


@dataclass(frozen=True, slots=True)
class Prepared:
    """The prepared graph of one part."""

    part: PartName
    path: Path
    bytes: int
    made: bool
    """False if it existed already."""


def open_prepared(part: Part, *, trust_receipts: bool = True) -> PreparedFiles | None:
    """Open and verify the prepared graph of a part for this CPU and this ONNX Runtime; None if there is none.

    Raises:
        BundleError: a file is missing or damaged.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    try:
        folder = _folder(part)
    except BundleError:
        # There is no cache directory.
        return None
    sweep(folder.parent)
    return open_prepared_files(folder, trust_receipts=trust_receipts)


def find_prepared(part: Part) -> PreparedFiles | None:
    """Open the prepared graph of a part like :func:`open_prepared`; warns if it is damaged, and returns None."""
    try:
        return open_prepared(part)
    except BundleError as error:
        warn_of_fallback(_LOG, f"the prepared graph is not used: {error}", stacklevel=2)
        return None


def prepare(
    bundle: str | os.PathLike[str],
    *,
    parts: Sequence[str] = (),
    progress: Callable[[PartName], None] = lambda part: None,
) -> list[Prepared]:
    """Prepare the graphs of a bundle's parts for this CPU; existing ones are kept.

    Graphs of deleted bundles and of other versions of ONNX Runtime are removed first.

    Args:
        parts: the parts to prepare; empty for all of the bundle's.
        progress: called with each part before it is prepared.

    Raises:
        BundleError: the bundle is missing or damaged, or there is no cache directory.
        BuildError: the disk is full, or the cache cannot be written.
        RequestError: the bundle does not have one of the parts.
        MissingDependencyError: ONNX Runtime is not installed.
        EngineError: the address space is limited to less than ONNX Runtime needs.
    """
    require_cpu_address_space(None)
    import_onnxruntime(Device("cpu"))
    opened = open_bundle(bundle)
    if unknown := set(parts) - set(opened.manifest.parts):
        raise RequestError(
            f"--part {min(unknown)}: {opened.path} has {', '.join(sorted(opened.manifest.parts))}"
        )
    names = [name for name in get_args(PartName) if name in (parts or opened.manifest.parts)]
    with os_errors_as_build_errors(_root()):
        prune_prepared()
        prepared = []
        for name in names:
            progress(name)
            prepared.append(_prepare(opened, name))
    return prepared


def remove(bundle: str | os.PathLike[str]) -> int:
    """Remove a bundle's prepared graphs, and return the number of bytes freed.

    Raises:
        BundleError: the bundle is missing or damaged.
    """
    opened = open_bundle(bundle)
    candidates = {_folder(part) for part in opened.manifest.parts.values()}
    folders = [folder for folder in candidates if os.path.isdir(folder)]
    freed = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    for folder in folders:
        remove_folder(folder)
    sweep(_root())
    return freed


def _prepare(bundle: Bundle, name: PartName) -> Prepared:
    part = bundle.part(name)
    folder = _folder(part)
    existing = _is_intact(part)
    if not existing:
        folder.parent.mkdir(parents=True, exist_ok=True)
        weights = sum(file.size for file in part.files if file.path.endswith(".data"))
        free = shutil.disk_usage(folder.parent).free
        if free < weights * _SPACE_FACTOR:
            raise BuildError(
                f"{folder.parent} has {free / 1e9:.1f} GB free, and the graph of {name} takes up to "
                f"{weights * _SPACE_FACTOR / 1e9:.1f} GB: make room"
            )
        start = time.monotonic()
        with atomic_folder(folder) as unfinished:
            bundle.load(part.files, lambda opened: _save(opened / part.onnxruntime, unfinished))
            write_record(unfinished, folder, bundle=bundle.path, version=_version())
        _LOG.info("%s: saved the prepared graph in %.1f s: %s", name, time.monotonic() - start, folder)
    else:
        _LOG.info("%s: kept the prepared graph: %s", name, folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return Prepared(name, folder, size, not existing)


def _is_intact(part: Part) -> bool:
    try:
        # Receipts cannot show what a failing disk has changed, and this command is the remedy.
        return open_prepared(part, trust_receipts=False) is not None
    except BundleError:
        return False


def _save(source: Path, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    ort = import_onnxruntime(Device("cpu"))
    options = session_options(threads=None)
    options.optimized_model_filepath = str(folder / GRAPH)
    set_session_config(options, "session.optimized_model_external_initializers_file_name", WEIGHTS)
    set_session_config(options, "session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    set_session_config(options, "session.save_external_prepacked_constant_initializers", "1")
    try:
        ort.InferenceSession(source, options, providers=[CPU_PROVIDER], enable_fallback=0)
    except Exception as error:
        raise BuildError(f"{source} cannot be saved to {folder}: {str(error).splitlines()[0]}") from error


def _root() -> Path:
    return cache_dir() / "prepared"


def _folder(part: Part) -> Path:
    """The cache folder of a part, named by a hash of everything that a prepared graph depends on."""
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
    """Architecture and instruction sets of the CPU, by which ONNX Runtime chooses kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(flags.split()))}"


def prune_prepared() -> int:
    """Remove the prepared graphs of deleted bundles and of other versions of ONNX Runtime; returns their number.

    Raises:
        BundleError: there is no cache directory.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    root, removed = _root(), 0
    if not os.path.isdir(root):
        return 0
    sweep(root)
    for folder in root.iterdir():
        if folder.name.startswith("."):
            # Another process is writing it.
            continue
        try:
            record = read_record(folder)
            keep = record.version == _version() and os.path.exists(Path(record.bundle) / "bundle.json")
        except (OSError, BundleError):
            keep = False
        if not keep:
            with contextlib.suppress(OSError):
                remove_folder(folder)
                removed += 1
    return removed
