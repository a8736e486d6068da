"""A peer's process: reads requests and writes replies, each an object of JSON on a line.

    {"do": "prepare", "job": {...}}                     -> {"version": {...}, "prepare_seconds": 1.2}
    {"do": "open", "job": {...}}                        -> {"version": {...}, "open_seconds": 1.2}
    {"do": "make", "steps": 4, "seed": 1, "path": "a.npy"}
        -> {"seconds_per_image": 1.2, "step_seconds": [...], "peak_rss_bytes": 1}, the image in ``path``
    anything that fails                                 -> {"error": "..."}, or {"unavailable": "..."}

Ends with its standard input. Runs in the interpreter of the peer's packages, so it imports no others.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.peers.job import Adapter, Job, Make, UnavailableError


def main() -> None:
    # Libraries print to standard output whenever they like; replies have a copy of it to themselves.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, replies)


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer every request until there are no more."""
    worker = _Worker()
    for line in requests:
        request = json.loads(line)
        try:
            reply = worker.answer(request)
        except (ImportError, UnavailableError) as error:
            reply = {"unavailable": _line(error)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {_line(error)}"}
        print(json.dumps(reply), file=replies, flush=True)


class _Worker:
    def __init__(self) -> None:
        self._make: Make | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "make":
            return self._image(request["steps"], request["seed"], request["path"])
        start = time.perf_counter()
        job = Job(**request["job"])
        adapter: Adapter = importlib.import_module(f"benchmarks.peers.{job.adapter}")
        if request["do"] == "prepare":
            prepare(adapter, job)
        else:
            self._make = adapter.open_pipeline(job)
        seconds = time.perf_counter() - start
        return {f"{request['do']}_seconds": seconds, "version": _versions(adapter.PACKAGES)}

    def _image(self, steps: int, seed: int, path: str) -> dict[str, Any]:
        if self._make is None:
            raise RuntimeError("nothing is open")
        start = time.perf_counter()
        image, step_seconds = self._make(steps, seed)
        seconds = time.perf_counter() - start
        np.save(path, np.asarray(image, np.float32))
        return {"seconds_per_image": seconds, "step_seconds": step_seconds, "peak_rss_bytes": _peak()}


def prepare(adapter: Adapter, job: Job) -> None:
    """Have the adapter write its folder, which is there under its name when it is whole."""
    if job.folder.exists():
        adapter.prepare(job)
        return
    unfinished = job.folder.with_name(f"{job.folder.name}.unfinished-{os.getpid()}")
    adapter.prepare(Job(**{**_fields(job), "prepared": str(unfinished)}))
    if unfinished.exists():
        unfinished.rename(job.folder)


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__slots__}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _peak() -> int | None:
    """Most memory that this process ever had in core; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _line(error: Exception) -> str:
    """The first line of an error that has several, with its cause's where a library wrapped an import."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
