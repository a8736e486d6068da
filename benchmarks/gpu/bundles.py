"""A checkpoint of random weights, its bundle, and its engines: seconds, memory and bytes of each."""

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
    """Random weights take the time and the memory of trained ones."""
    from benchmarks.recording.published import write_command
    from sd2rt.export.checkpoints.variants import find_variant

    row, target = find_variant(variant), settings.checkpoint(variant)
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = write_command(row, unfinished, small=settings.small)
        target.parent.mkdir(parents=True, exist_ok=True)
        took = process.measure(command, dict(os.environ))
        unfinished.rename(target)
        yield {"what": "written", "seconds": round(took.seconds, 1), "bytes": size_of(target)}
    else:
        yield {"what": "was there", "bytes": size_of(target)}


def bundle(settings: Settings, variant: str, precision: Literal["fp16", "fp32"]) -> Iterator[Record]:
    """The command, in a process of its own; a bundle that is whole is kept by the command itself."""
    source, target = settings.checkpoint(variant), settings.bundle(variant, precision)
    if not source.is_dir():
        raise CannotRunError(f"there is no checkpoint of {variant}: run the stage checkpoint first")
    target.parent.mkdir(parents=True, exist_ok=True)
    command = sd2rt("build", source, "-o", target, "--variant", variant, "--precision", precision)
    took = process.measure(command, dict(os.environ))
    yield {
        "what": f"built, {precision}",
        "seconds": round(took.seconds, 1),
        "peak_gb": took.peak_rss_bytes / 1e9,
        "bytes": size_of(target),
    }


def engines(settings: Settings, variant: str, backend: str) -> Iterator[Record]:
    """For each size first what is fixed in everything, for one guided image, then buckets of images."""
    path = bundle_of(settings, variant)
    before = set[str]()
    for side in sides(settings, variant):
        for kind, asked in (
            (FIXED, ["--batch", "1", "--rows", "guided"]),
            (BUCKETS, ["--batch", settings.buckets]),
        ):
            yield from build_engines(settings, path, backend, side, kind, asked, before)


def build_engines(
    settings: Settings,
    path: Path,
    backend: str,
    side: int,
    kind: str,
    asked: list[str],
    before: set[str],
) -> Iterator[Record]:
    """One command, and what it says of each engine that is not in ``before``, which they are added to."""
    words = ["build", path, "--engines-only", "--json", "--backend", backend, "--size", str(side), *asked]
    if settings.sm is not None and backend == "tensorrt-rtx":
        words += ["--sm", settings.sm]
    if settings.small:
        # Heads of 8 numbers are narrower than any kernel made for attention.
        words.append("--allow-decomposed")
    took = process.measure(sd2rt(*map(str, words)), dict(os.environ))
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
    yield {"command": " ".join(map(str, words[2:])), "seconds": round(took.seconds, 1)}


def bundle_of(settings: Settings, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> Path:
    """Where a variant's bundle lies. Raises CannotRunError where there is none."""
    path = settings.bundle(variant, precision)
    if not (path / "bundle.json").is_file():
        raise CannotRunError(f"there is no {precision} bundle of {variant}: run the stage bundle first")
    return path


def sides(settings: Settings, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> tuple[int, ...]:
    """The sides of a variant's images, in pixels."""
    manifest = json.loads((bundle_of(settings, variant, precision) / "bundle.json").read_text())
    return sides_of(settings, variant, manifest["native_sizes"][0][0])


def linked_copy(bundle: Path, target: Path, edit: Any = None) -> Path:
    """The bundle again, its files hard links, its manifest a copy that ``edit`` may have changed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target, copy_function=os.link)
    manifest = target / "bundle.json"
    told = json.loads(manifest.read_text())
    manifest.unlink()
    if edit is not None:
        edit(told)
    manifest.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return target


def size_of(path: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
