"""Stages that write a checkpoint of random weights, build its bundle, and compile engines: time, memory, bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import CannotRunError, Record, sides_of
from benchmarks.recording import process
from benchmarks.recording.process import sd2rt

FIXED, BUCKETS = "fixed", "buckets"


def checkpoint(settings: Settings, variant: str) -> Iterator[Record]:
    """Write random weights: they need the time and memory of trained ones."""
    from benchmarks.recording.published import write_command
    from sd2rt.export.checkpoints.variants import find_variant

    row, target = find_variant(variant), settings.checkpoint(variant)
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = write_command(row, unfinished, small=settings.small)
        target.parent.mkdir(parents=True, exist_ok=True)
        measured = process.measure(command, dict(os.environ))
        unfinished.rename(target)
        yield {"what": "written", "seconds": round(measured.seconds, 1), "bytes": size_of(target)}
    else:
        yield {"what": "existed", "bytes": size_of(target)}


def bundle(settings: Settings, variant: str, precision: Literal["fp16", "fp32"]) -> Iterator[Record]:
    """Run `sd2rt build`, which keeps a complete bundle from an earlier run."""
    source, target = settings.checkpoint(variant), settings.bundle(variant, precision)
    if not source.is_dir():
        raise CannotRunError(f"no checkpoint of {variant}: run the stage checkpoint first")
    target.parent.mkdir(parents=True, exist_ok=True)
    command = sd2rt("build", source, "-o", target, "--variant", variant, "--precision", precision)
    measured = process.measure(command, dict(os.environ))
    yield {
        "what": f"built, {precision}",
        "seconds": round(measured.seconds, 1),
        "peak_gb": measured.peak_rss_bytes / 1e9,
        "bytes": size_of(target),
    }


def engines(settings: Settings, variant: str, backend: str) -> Iterator[Record]:
    """Per size: engines with all shapes fixed for one guided image, then engines for buckets of batch sizes."""
    path = bundle_of(settings, variant)
    before = set[str]()
    for side in sides(settings, variant):
        for kind, arguments in (
            (FIXED, ["--batch", "1", "--rows", "guided"]),
            (BUCKETS, ["--batch", settings.buckets]),
        ):
            yield from build_engines(settings, path, backend, side, kind, arguments, before)


def build_engines(
    settings: Settings,
    path: Path,
    backend: str,
    side: int,
    kind: str,
    arguments: list[str],
    before: set[str],
) -> Iterator[Record]:
    """Run one build; a record for each engine whose key is not in ``before``, to which the new keys are added."""
    command = [
        "build",
        path,
        "--engines-only",
        "--json",
        "--backend",
        backend,
        "--size",
        str(side),
        *arguments,
    ]
    if settings.sm is not None and backend == "tensorrt-rtx":
        command += ["--sm", settings.sm]
    if settings.small:
        # No fused attention kernel exists for heads of width 8.
        command.append("--allow-decomposed")
    measured = process.measure(sd2rt(*map(str, command)), dict(os.environ))
    manifest = json.loads((path / "bundle.json").read_text())
    for entry in manifest["engines"]:
        if entry["backend"] != backend or entry["key"] in before:
            continue
        before.add(entry["key"])
        built = json.loads((path / entry["report"]["path"]).read_text())["built"]
        yield {
            "engine": f"{entry['part']} {entry['label']}",
            "kind": kind,
            "build_s": built["seconds"],
            "peak_gb": built["peak_bytes"] / 1e9,
            "bytes": entry["file"]["size"],
            "layers": built["layers"],
            "fused_attention": f"{built['fused']} of {built['attentions']} x {len(entry['profiles'])}",
            "refit": entry["options"]["refit"],
        }
    yield {"command": " ".join(map(str, command[2:])), "seconds": round(measured.seconds, 1)}


def bundle_of(settings: Settings, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> Path:
    """Path of a variant's bundle.

    Raises:
        CannotRunError: it does not exist.
    """
    path = settings.bundle(variant, precision)
    if not (path / "bundle.json").is_file():
        raise CannotRunError(f"no {precision} bundle of {variant}: run the stage bundle first")
    return path


def sides(settings: Settings, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> tuple[int, ...]:
    """Image sizes to test for a variant: sides in pixels."""
    manifest = json.loads((bundle_of(settings, variant, precision) / "bundle.json").read_text())
    return sides_of(settings, variant, manifest["native_sizes"][0][0])


def linked_copy(bundle: Path, target: Path, edit: Any = None) -> Path:
    """Copy a bundle as hard links; the manifest is a real copy, changed by ``edit``."""
    from sd2rt.engines.bundle.checksum import CHECKSUM, checksum

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target, copy_function=os.link)
    manifest = target / "bundle.json"
    content = json.loads(manifest.read_text())
    manifest.unlink()
    if edit is not None:
        edit(content)
        content[CHECKSUM] = checksum(content)
    manifest.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return target


def size_of(path: Path) -> int:
    """Total bytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
