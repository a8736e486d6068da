"""Engines added to a bundle: each compiled by a process of its own, and in the manifest as soon as it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineEntry
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.files import atomic_write, describe, sync, temporary_of
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import locate, open_bundle
from sd2rt.engines.bundle.schema import File, Part
from sd2rt.engines.bundle.writer import reported
from sd2rt.engines.cuda.gpu_info import GpuFacts, gpu_at_hand, sm_number
from sd2rt.engines.errors import BuildError, BundleError, RequestError
from sd2rt.engines.tensorrt.compile.profiles import EnginePlan, Shapes, plan_engines
from sd2rt.engines.tensorrt.compile.targets import targets_of
from sd2rt.engines.tensorrt.compile.worker_process import compile_in_process
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask, Built
from sd2rt.engines.tensorrt.packages import load_module, this_platform

Progress = Callable[[str, float], None]
"""Hears which engine is being built and the share of it that is done, 0 to 1."""

_UNFINISHED = ".building"


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """What became of a request for engines: those made now, and those that were there and are whole."""

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
    """Add engines to a bundle, one after another; what is there already is kept unless ``again``.

    Each engine is in the manifest as soon as it is built: an interruption, or a failure, loses the one that was
    being built and no other.

    Args:
        shapes: the sizes; without any the bundle's native ones.
        parts: all that the sizes take where empty.

    Raises:
        BundleError: the bundle is missing or damaged.
        BuildError: an engine cannot be built, another build is running, or the disk is full.
        RequestError: the options ask for what the backend cannot do.
        MissingDependencyError: the backend is not installed, or needs a GPU and there is none.
    """
    path = locate(bundle)
    manifest = read_manifest(path)
    for name in parts:
        if name not in manifest.parts:
            raise RequestError(f"--part {name}: {path} has {', '.join(sorted(manifest.parts))}")
    if not shapes.sizes:
        shapes = replace(shapes, sizes=manifest.native_sizes)
    everything = tuple(name for name in get_args(PartName) if name in manifest.parts)
    if not plan_engines(manifest, tuple(parts) or everything, shapes):
        sizes = ", ".join(f"{width}x{height}" for width, height in shapes.sizes)
        raise RequestError(f"--part {', '.join(parts)}: images of {sizes} take no such part")
    module = load_module(options.backend)
    # What cannot be is said before anything is begun.
    gpu = gpu_at_hand()
    targets_of(module, options, gpu)
    version = str(module.__version__)
    lock = FileLock(path.parent / f".{path.name}.lock")
    with reported(path):
        if not lock.acquire():
            raise BuildError(f"another build of {path} is running: wait for it, or stop it")
    made: list[EngineEntry] = []
    kept: list[EngineEntry] = []
    try:
        # Its ONNX is read by another process: what is not as the manifest says stops here.
        manifest = open_bundle(path).manifest
        with reported(path):
            _clear(path, manifest)
        for plan in plan_engines(manifest, tuple(parts) or everything, shapes):
            key = _key(manifest.parts[plan.part], plan, options, version, gpu)
            found = next((entry for entry in manifest.engines if entry.key == key), None)
            if found is not None and not again and _is_whole(path, found):
                kept.append(found)
                continue
            with reported(path):
                entry = _build(path, manifest, plan, options, key, gpu, progress)
                manifest = _add(path, entry)
            made.append(entry)
    finally:
        lock.release()
    return EngineBuild(path, manifest, tuple(made), tuple(kept))


def _key(part: Part, plan: EnginePlan, options: BuilderOptions, version: str, gpu: GpuFacts | None) -> str:
    # What is built for others is the same wherever it is built.
    own = None if options.compute_capabilities or options.portable else gpu
    facts = {
        "onnx": _hash_of(part, part.onnx),
        "weights": _weights(part),
        "profiles": [profile.model_dump(mode="json") for profile in plan.profiles],
        "options": options.model_dump(mode="json"),
        "version": version,
        "gpu": own and own.compute_capability,
        "platform": this_platform(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash_of(part: Part, path: str) -> str:
    return next(file.sha256 for file in part.files if file.path == path)


def _weights(part: Part) -> str:
    """Stands for all weights of a part: what lies beside its graphs."""
    data = sorted(file.sha256 for file in part.files if file.path.endswith(".data"))
    return hashlib.sha256("".join(data).encode()).hexdigest()


def _is_whole(path: Path, entry: EngineEntry) -> bool:
    try:
        return all(describe(path, file.path) == file for file in (entry.file, entry.report))
    except OSError:
        return False


def _clear(path: Path, manifest: Manifest) -> None:
    """Remove what a killed build left: unfinished manifests and engines, and engines that are in no manifest.

    Raises:
        BundleError: a part's folder is a link: nothing is written or removed through one.
    """
    for left in path.iterdir():
        if temporary_of(left.name) == MANIFEST and not left.is_dir():
            left.unlink(missing_ok=True)
    listed = {file.path for file in manifest.engine_files}
    for name in manifest.parts:
        folder = path / name
        if folder.is_symlink():
            raise BundleError(
                f"{folder} is a symbolic link: a bundle holds files only, copy it with 'cp -rL'"
            )
        for left in folder.glob("tensorrt*"):
            if left.relative_to(path).as_posix() not in listed and not left.is_dir():
                left.unlink(missing_ok=True)


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
    label = f"{plan.part} {plan.label}"
    progress(label, 0.0)
    try:
        built = compile_in_process(task, lambda fraction: progress(label, fraction))
        entry = _keep(path, plan, task, built, key)
    finally:
        for left in folder.glob(f"{target.name}*"):
            left.unlink(missing_ok=True)
    progress(label, 1.0)
    return entry


def _keep(path: Path, plan: EnginePlan, task: BuildTask, built: Built, key: str) -> EngineEntry:
    """Give the engine its name, which says what it is for and is no other engine's, and describe it."""
    capabilities = "".join(f"-sm{sm_number(item)}" for item in built.compute_capabilities)
    where = "-any" if built.hardware_compatible else capabilities
    unfinished = Path(task.target)
    digest = describe(path, unfinished.relative_to(path).as_posix())
    stem = f"{task.options.backend}{where}-{plan.label}-{digest.sha256[:8]}"
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
    """Write the manifest with the engine, in the place of one that was built for the same."""

    def purpose(one: EngineEntry) -> tuple[object, ...]:
        return (
            one.part,
            one.backend,
            one.version,
            one.compute_capabilities,
            one.hardware_compatible,
            one.profiles,
        )

    manifest = read_manifest(path)
    stays = [one for one in manifest.engines if purpose(one) != purpose(entry)]
    leaves = [one for one in manifest.engines if purpose(one) == purpose(entry)]
    changed = Manifest.model_validate({**dict(manifest), "engines": (*stays, entry)})
    with atomic_write(path / MANIFEST, durable=True, keep_mode=True) as temporary:
        temporary.write_text(changed.to_json())
    needed = {file.path for file in changed.engine_files}
    for one in leaves:
        for file in (one.file, one.report):
            if file.path not in needed:
                (path / file.path).unlink(missing_ok=True)
    return changed


def _timing_cache(options: BuilderOptions, gpu: GpuFacts | None) -> str | None:
    if options.backend != "tensorrt":
        return None
    with contextlib.suppress(BundleError):
        name = "none" if gpu is None else f"sm{sm_number(gpu.compute_capability)}"
        return str(cache_dir() / "timing" / f"{options.backend}-{name}.cache")
    # No home directory: every build measures anew.
    return None
