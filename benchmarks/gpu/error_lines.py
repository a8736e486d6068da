"""What a user is told when it cannot work: the line and the exit code of a process in trouble."""

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
"""Of the device's memory: less than weights and activations of a full-size image take, and less than CUDA likes."""


def provoke(settings: Settings, variant: str, backend: str) -> Iterator[Record]:
    """Each in a process of its own: after some of these errors it could not go on."""
    path, side = bundle_of(settings, variant), sides(settings, variant)[0]
    compiled = backend != "onnxruntime"
    for left in _LEFT_BYTES:
        with little_memory(left) as free:
            what = f"{free / 1e9:.2f} GB of device memory are free"
            yield provoked(settings, what, path, backend, side, expected=5)
    if compiled:
        edited = settings.folder / "bundles" / f"edited-{backend}"
        trials: tuple[tuple[str, str, Any], ...] = (
            ("another GPU's engines", "compute_capabilities", ["5.0"]),
            ("another version's engines", "version", "1.0.0.1"),
        )
        for what, key, value in trials:

            def edit(manifest: dict[str, Any], key: str = key, value: Any = value) -> None:
                for entry in manifest["engines"]:
                    entry[key] = value

            yield provoked(settings, what, linked_copy(path, edited, edit), backend, side, expected=3)
        yield provoked(settings, "a size without engines", path, backend, side + 64, expected=3)
        yield from _damaged(settings, path, edited, backend, side)
        shutil.rmtree(edited)
    yield provoked(settings, "a GPU that is not there", path, backend, side, expected=6, device="cuda:63")


def _damaged(settings: Settings, path: Path, edited: Path, backend: str, side: int) -> Iterator[Record]:
    """An engine with one byte changed, of the same size."""
    copy = linked_copy(path, edited)
    for engine in copy.glob(f"denoiser/{backend}-*.engine"):
        content = bytearray(engine.read_bytes())
        content[len(content) // 2] ^= 1
        # The file is a link to the bundle's own, which must stay as it is.
        engine.unlink()
        engine.write_bytes(content)
    yield provoked(settings, "a damaged engine", copy, backend, side, expected=3)


def provoked(
    settings: Settings, what: str, path: Path, backend: str, side: int, *, expected: int, device: str = "cuda"
) -> Record:
    command = [sys.executable, "-m", "benchmarks.gpu.first_image", str(path), backend, device, str(side), "2"]
    ran = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("sd2rt: ")]
    return {
        "trouble": what,
        "exit_code": ran.returncode,
        "expected": expected,
        "holds": ran.returncode == expected and len(own) == 1,
        "line": (own or lines or ["nothing"])[-1].replace(settings.workdir, "..."),
    }


@contextmanager
def little_memory(left: int) -> Iterator[int]:
    """All of the device's memory but this much taken by this process, in plain allocations."""
    from cuda.bindings import driver

    def checked(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]):
            raise RuntimeError(f"CUDA reported {answer[0].name}")
        return answer[1] if len(answer) == 2 else answer[1:]

    checked((*driver.cuInit(0), None))
    checked((*driver.cuCtxSetCurrent(checked(driver.cuDevicePrimaryCtxRetain(0))), None))
    held = []
    try:
        free, _ = checked(driver.cuMemGetInfo())
        piece = 8 << 30
        while free > left + (64 << 20) and piece >= 16 << 20:
            result, address = driver.cuMemAlloc(min(free - left, piece))
            if int(result):
                # What is free may lie in pieces.
                piece //= 2
                continue
            held.append(address)
            free, _ = checked(driver.cuMemGetInfo())
        yield int(free)
    finally:
        for address in held:
            driver.cuMemFree(address)
