"""Worker process of a peer: reads requests and writes replies, one JSON object per line.

    {"do": "prepare", "job": {...}}                     -> {"version": {...}, "prepare_seconds": 1.2}
    {"do": "open", "job": {...}}                        -> {"version": {...}, "open_seconds": 1.2}
    {"do": "make", "steps": 4, "seed": 1, "path": "a.npy"}
        -> {"seconds_per_image": 1.2, "step_seconds": [...], "peak_rss_bytes": 1}, the image in ``path``
    any failure                                         -> {"error": "..."}, or {"unavailable": "..."}

Exits at the end of its standard input. Runs in the peer's environment, so it imports only the peer's packages.
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

from benchmarks.peers.job import Adapter, Generate, Job, UnavailableError


def main() -> None:
    # Libraries print to standard output at any time: replies go to a private copy of it.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, replies)


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until the input ends."""
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
        self._generate: Generate | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "make":
            return self._image(request["steps"], request["seed"], request["path"])
        start = time.perf_counter()
        job = Job(**request["job"])
        adapter: Adapter = importlib.import_module(f"benchmarks.peers.{job.adapter}")
        if request["do"] == "prepare":
            prepare(adapter, job)
        else:
            self._generate = adapter.open_pipeline(job)
        seconds = time.perf_counter() - start
        return {f"{request['do']}_seconds": seconds, "version": _versions(adapter.PACKAGES)}

    def _image(self, steps: int, seed: int, path: str) -> dict[str, Any]:
        if self._generate is None:
            raise RuntimeError("no pipeline is open")
        start = time.perf_counter()
        image, step_seconds = self._generate(steps, seed)
        seconds = time.perf_counter() - start
        np.save(path, np.asarray(image, np.float32))
        return {"seconds_per_image": seconds, "step_seconds": step_seconds, "peak_rss_bytes": _peak()}


def prepare(adapter: Adapter, job: Job) -> None:
    """Prepare the adapter; its folder gets its final name only when complete."""
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
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _peak() -> int | None:
    """Peak resident bytes of this process; None if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _line(error: Exception) -> str:
    """The first line of an error's message, or its type's name if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
