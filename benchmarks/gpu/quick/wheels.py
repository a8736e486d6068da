"""Wheels for another Python, unpacked without pip and grouped by the stages that need them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

KITS: dict[str, tuple[str, ...]] = {
    "ort": ("onnxruntime_gpu", "flatbuffers"),
    "rtx": ("tensorrt_rtx", "cuda_core", "cuda_pathfinder"),
}
"""Groups by the beginning of a wheel's name; all other wheels are ``base``, which travels first."""
BASE = "base"


def group(wheels: Path) -> dict[str, list[Path]]:
    """The wheels of a folder by kit, those of ``base`` first.

    Raises:
        ValueError: the folder has none, or two versions of one package.
    """
    files = sorted(wheels.glob("*.whl"))
    names = [file.name.split("-")[0].lower() for file in files]
    if not files:
        raise ValueError(f"{wheels} holds no wheels")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{wheels} holds {min(twice)} twice: keep one version of each package")
    grouped: dict[str, list[Path]] = {BASE: [], **{kit: [] for kit in KITS}}
    for name, file in zip(names, files, strict=True):
        kit = next((kit for kit, starts in KITS.items() if name.startswith(starts)), BASE)
        grouped[kit].append(file)
    return {kit: files for kit, files in grouped.items() if files}


def unzip(wheels: Sequence[Path], folder: Path) -> None:
    """Unpack wheels as an installer does, but for scripts, headers and data."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for item in archive.infolist():
                path = Path(item.filename)
                if path.parts[0].endswith(".data"):
                    if path.parts[1] not in ("purelib", "platlib"):
                        continue
                    path = Path(*path.parts[2:])
                if item.is_dir():
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(item))
