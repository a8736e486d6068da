"""Error lines and exit codes of sd2rt when memory is short or an engine does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.bundles import bundle_of, linked_copy, sides
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import Record

_LEFT_BYTES = (3 << 29, 1 << 28)
"""Free device memory to test with: too little for a full-size image, and too little for CUDA itself."""


def provoke(settings: Settings, variant: str, backend: str) -> Iterator[Record]:
    """Provoke each error in its own process: a process cannot continue after some of them."""
    path, side = bundle_of(settings, variant), sides(settings, variant)[0]
    compiled = backend != "onnxruntime"
    for left in _LEFT_BYTES:
        with little_memory(left) as free:
            trouble = f"{free / 1e9:.2f} GB of device memory are free"
            yield provoked(settings, trouble, path, backend, side, expected=5)
    if compiled:
        edited = settings.folder / "bundles" / f"edited-{backend}"
        trials: tuple[tuple[str, str, Any], ...] = (
            ("another GPU's engines", "compute_capabilities", ["5.0"]),
            ("another version's engines", "version", "1.0.0.1"),
        )
        for trouble, key, value in trials:

            def edit(manifest: dict[str, Any], key: str = key, value: Any = value) -> None:
                for entry in manifest["engines"]:
                    entry[key] = value

            yield provoked(settings, trouble, linked_copy(path, edited, edit), backend, side, expected=3)
        yield provoked(settings, "a size without engines", path, backend, side + 64, expected=3)
        yield from _damaged(settings, path, edited, backend, side)
        shutil.rmtree(edited)
    yield provoked(settings, "a GPU that is not there", path, backend, side, expected=6, device="cuda:63")


def _damaged(settings: Settings, path: Path, edited: Path, backend: str, side: int) -> Iterator[Record]:
    """Change one byte of an engine, which keeps its size."""
    copy = linked_copy(path, edited)
    for engine in copy.glob(f"denoiser/{backend}-*.engine"):
        content = bytearray(engine.read_bytes())
        content[len(content) // 2] ^= 1
        # The file is a hard link to the original, which must not change.
        engine.unlink()
        engine.write_bytes(content)
    yield provoked(settings, "a damaged engine", copy, backend, side, expected=3)


def provoked(
    settings: Settings,
    trouble: str,
    path: Path,
    backend: str,
    side: int,
    *,
    expected: int,
    device: str = "cuda",
) -> Record:
    """Make an image in another process and record its error line and exit code."""
    command = [sys.executable, "-m", "benchmarks.gpu.first_image", str(path), backend, device, str(side), "2"]
    process = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    sd2rt_lines = [line for line in lines if line.startswith("sd2rt: ")]
    return {
        "trouble": trouble,
        "exit_code": process.returncode,
        "expected": expected,
        "holds": process.returncode == expected and len(sd2rt_lines) == 1,
        "line": (sd2rt_lines or lines or ["nothing"])[-1].replace(settings.workdir, "..."),
    }


@contextmanager
def little_memory(left: int) -> Iterator[int]:
    """Allocate all device memory but ``left`` bytes in this process; yields the bytes that are free."""
    from cuda.bindings import driver

    def checked(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]):
            raise RuntimeError(f"CUDA reported {answer[0].name}")
        return answer[1] if len(answer) == 2 else answer[1:]

    checked((*driver.cuInit(0), None))
    checked((*driver.cuCtxSetCurrent(checked(driver.cuDevicePrimaryCtxRetain(0))), None))
    allocated = []
    try:
        free, _ = checked(driver.cuMemGetInfo())
        piece = 8 << 30
        while free > left + (64 << 20) and piece >= 16 << 20:
            result, address = driver.cuMemAlloc(min(free - left, piece))
            if int(result):
                # The free memory may be fragmented.
                piece //= 2
                continue
            allocated.append(address)
            free, _ = checked(driver.cuMemGetInfo())
        yield int(free)
    finally:
        for address in allocated:
            driver.cuMemFree(address)
