"""Add engines to a bundle: each is compiled in a child process and listed in the manifest once it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineEntry
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.files import atomic_write, describe, sync
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import locate, open_bundle
from sd2rt.engines.bundle.schema import File, Part
from sd2rt.engines.bundle.temporary import temporary_of
from sd2rt.engines.bundle.writer import os_errors_as_build_errors
from sd2rt.engines.cuda.gpu_info import GpuFacts, gpu_at_hand, sm_number
from sd2rt.engines.errors import BuildError, BundleError, RequestError
from sd2rt.engines.tensorrt.compile.profiles import EnginePlan, Shapes, plan_engines
from sd2rt.engines.tensorrt.compile.targets import targets_of
from sd2rt.engines.tensorrt.compile.worker_process import compile_in_process
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask, Built
from sd2rt.engines.tensorrt.packages import load_module, this_platform

_LOG = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Called with the name of the engine being built and the fraction completed, 0 to 1."""

_UNFINISHED = ".building"


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """The result of :func:`build_engines`: the engines built, and the intact ones that existed already."""

    path: Path
    manifest: Manifest
    made: tuple[EngineEntry, ...]
    kept: tuple[EngineEntry, ...]


def build_engines(
    bundle: str | os.PathLike[str],
    shapes: Shapes,
    options: BuilderOptions,
    *,
    parts: Sequence[PartName] = (),
    again: bool = False,
    progress: Progress = lambda engine, fraction: None,
) -> EngineBuild:
    """Add engines to a bundle, one after another; existing engines are kept unless ``again``.

    The manifest is updated after each engine, so an interruption or failure loses only the engine being built.

    Args:
        shapes: the sizes to build for; without sizes, the bundle's native ones.
        parts: the parts to build; empty for all that the sizes need.
        again: rebuild existing engines.

    Raises:
        BundleError: the bundle is missing or damaged.
        BuildError: an engine cannot be built, another build is running, or the disk is full.
        RequestError: the backend does not support the options.
        MissingDependencyError: the backend is not installed, or needs a GPU and there is none.
    """
    path = locate(bundle)
    manifest = read_manifest(path)
    for name in parts:
        if name not in manifest.parts:
            raise RequestError(f"--part {name}: {path} has {', '.join(sorted(manifest.parts))}")
    if not shapes.sizes:
        shapes = replace(shapes, sizes=manifest.native_sizes)
    all_parts = tuple(name for name in get_args(PartName) if name in manifest.parts)
    if not plan_engines(manifest, tuple(parts) or all_parts, shapes):
        sizes = ", ".join(f"{width}x{height}" for width, height in shapes.sizes)
        raise RequestError(f"--part {', '.join(parts)}: images of {sizes} do not use this part")
    module = load_module(options.backend)
    # Reject unsupported options before changing anything.
    gpu = gpu_at_hand()
    targets_of(module, options, gpu)
    version = str(module.__version__)
    lock = FileLock(path.parent / f".{path.name}.lock")
    with os_errors_as_build_errors(path):
        if not lock.acquire():
            raise BuildError(f"another build of {path} is running: wait for it, or stop it")
    made: list[EngineEntry] = []
    kept: list[EngineEntry] = []
    try:
        # Verify the ONNX files here: the child process reads them unchecked.
        manifest = open_bundle(path).manifest
        with os_errors_as_build_errors(path):
            _remove_leftovers(path, manifest)
        for plan in plan_engines(manifest, tuple(parts) or all_parts, shapes):
            key = _key(manifest.parts[plan.part], plan, options, version, gpu)
            existing = next((entry for entry in manifest.engines if entry.key == key), None)
            if existing is not None and not again and _is_intact(path, existing):
                _LOG.info("kept the engine %s of %s", existing.label, plan.part)
                kept.append(existing)
                continue
            with os_errors_as_build_errors(path):
                entry = _build(path, manifest, plan, options, key, gpu, progress)
                manifest = _add(path, entry)
            made.append(entry)
    finally:
        lock.release()
    return EngineBuild(path, manifest, tuple(made), tuple(kept))


def _key(part: Part, plan: EnginePlan, options: BuilderOptions, version: str, gpu: GpuFacts | None) -> str:
    # An engine for explicit targets does not depend on the GPU it is built on.
    target = None if options.compute_capabilities or options.portable else gpu
    facts = {
        "onnx": _hash_of(part, part.onnx),
        "weights": _weights(part),
        "profiles": [profile.model_dump(mode="json") for profile in plan.profiles],
        "options": options.model_dump(mode="json"),
        "version": version,
        "gpu": target and target.compute_capability,
        "platform": this_platform(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash_of(part: Part, path: str) -> str:
    return next(file.sha256 for file in part.files if file.path == path)


def _weights(part: Part) -> str:
    """Hash of all weight files of a part."""
    data = sorted(file.sha256 for file in part.files if file.path.endswith(".data"))
    return hashlib.sha256("".join(data).encode()).hexdigest()


def _is_intact(path: Path, entry: EngineEntry) -> bool:
    try:
        return all(describe(path, file.path) == file for file in (entry.file, entry.report))
    except OSError:
        return False


def _remove_leftovers(path: Path, manifest: Manifest) -> None:
    """Remove leftovers of a killed build: unfinished manifests and engines, and engines not in the manifest.

    Raises:
        BundleError: a part's folder is a symbolic link; nothing is written or removed through one.
    """
    for leftover in path.iterdir():
        if temporary_of(leftover.name) == MANIFEST and not leftover.is_dir():
            leftover.unlink(missing_ok=True)
    listed = {file.path for file in manifest.engine_files}
    for name in manifest.parts:
        folder = path / name
        if folder.is_symlink():
            raise BundleError(
                f"{folder} is a symbolic link: a bundle must not contain links, copy it with 'cp -rL'"
            )
        for leftover in folder.glob("tensorrt*"):
            if leftover.relative_to(path).as_posix() not in listed and not leftover.is_dir():
                leftover.unlink(missing_ok=True)


def _build(
    path: Path,
    manifest: Manifest,
    plan: EnginePlan,
    options: BuilderOptions,
    key: str,
    gpu: GpuFacts | None,
    progress: Progress,
) -> EngineEntry:
    part = manifest.parts[plan.part]
    weights = sum(file.size for file in part.files if file.path.endswith(".data"))
    folder = path / plan.part
    folder.mkdir(exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < weights * 1.3:
        raise BuildError(
            f"{path} has {free / 1e9:.1f} GB free, and an engine of {plan.part} takes up to "
            f"{weights * 1.3 / 1e9:.1f} GB: make room"
        )
    target = folder / f"{options.backend}-{plan.label}-{os.getpid()}{_UNFINISHED}"
    task = BuildTask(
        name=plan.part,
        part=part,
        onnx=str(path / part.onnx),
        profiles=plan.profiles,
        options=options,
        target=str(target),
        timing_cache=_timing_cache(options, gpu),
    )
    label, start = f"{plan.part} {plan.label}", time.monotonic()
    progress(label, 0.0)
    try:
        built = compile_in_process(task, lambda fraction: progress(label, fraction))
        entry = _move_into_place(path, plan, task, built, key)
    finally:
        for leftover in folder.glob(f"{target.name}*"):
            leftover.unlink(missing_ok=True)
    progress(label, 1.0)
    _LOG.info("compiled the engine %s of %s in %.1f s", plan.label, plan.part, time.monotonic() - start)
    return entry


def _move_into_place(path: Path, plan: EnginePlan, task: BuildTask, built: Built, key: str) -> EngineEntry:
    """Rename the engine and its report to a unique, descriptive name, and return the manifest entry."""
    capabilities = "".join(f"-sm{sm_number(item)}" for item in built.compute_capabilities)
    targets = "-any" if built.hardware_compatible else capabilities
    unfinished = Path(task.target)
    digest = describe(path, unfinished.relative_to(path).as_posix())
    stem = f"{task.options.backend}{targets}-{plan.label}-{digest.sha256[:8]}"
    name = f"{plan.part}/{stem}.engine"
    report = f"{plan.part}/{stem}.json"
    for source, final in ((unfinished, name), (Path(f"{unfinished}.json"), report)):
        sync(source)
        source.replace(path / final)
    part = task.part
    return EngineEntry(
        part=plan.part,
        key=key,
        backend=task.options.backend,
        version=built.version,
        compute_capabilities=built.compute_capabilities,
        gpu=built.gpu,
        driver=built.driver,
        platform=this_platform(),
        precision=part.precision,
        version_compatible=built.version_compatible,
        hardware_compatible=built.hardware_compatible,
        options=task.options,
        flags=built.flags,
        label=plan.label,
        profiles=plan.profiles,
        file=File(path=name, size=digest.size, sha256=digest.sha256),
        report=describe(path, report),
        onnx=_hash_of(part, part.onnx),
        weights=_weights(part),
    )


def _add(path: Path, entry: EngineEntry) -> Manifest:
    """Write the manifest with the engine, replacing engines built for the same purpose."""

    def purpose(engine: EngineEntry) -> tuple[object, ...]:
        return (
            engine.part,
            engine.backend,
            engine.version,
            engine.compute_capabilities,
            engine.hardware_compatible,
            engine.profiles,
        )

    manifest = read_manifest(path)
    kept = [engine for engine in manifest.engines if purpose(engine) != purpose(entry)]
    replaced = [engine for engine in manifest.engines if purpose(engine) == purpose(entry)]
    updated = Manifest.model_validate({**dict(manifest), "engines": (*kept, entry)})
    with atomic_write(path / MANIFEST, durable=True, keep_mode=True) as temporary:
        temporary.write_text(updated.to_json())
    needed = {file.path for file in updated.engine_files}
    for engine in replaced:
        for file in (engine.file, engine.report):
            if file.path not in needed:
                (path / file.path).unlink(missing_ok=True)
    return updated


def _timing_cache(options: BuilderOptions, gpu: GpuFacts | None) -> str | None:
    if options.backend != "tensorrt":
        return None
    with contextlib.suppress(BundleError):
        name = "none" if gpu is None else f"sm{sm_number(gpu.compute_capability)}"
        return str(cache_dir() / "timing" / f"{options.backend}-{name}.cache")
    # Without a cache directory every build measures its kernels again.
    return None
