"""One profile of the denoiser under ONNX Runtime: operators by its own profiler, kernels by torch's."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.quick.ort_options import OPTIONS
from benchmarks.gpu.quick.ort_session import Denoiser
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import Record

_LAUNCHES = 3
_SHOWN = 25
_LARGEST_FILE = 15 << 20
"""A file of 16 MiB comes back."""


def profile(settings: QuickSettings) -> Iterator[Record]:
    """Operators and their provider, copies among them; on a GPU the kernels by time."""
    denoiser = Denoiser(settings, OPTIONS["default"], graph=False, profile=Path(settings.workdir) / "profile")
    for _ in range(_LAUNCHES):
        denoiser.run()
    path = Path(denoiser.session.end_profiling())
    if path.stat().st_size <= _LARGEST_FILE:
        shutil.copyfile(path, Path(settings.output) / "profile.json")
    yield from operators(json.loads(path.read_text()))
    if settings.device == "cuda":
        unprofiled = Denoiser(settings, OPTIONS["default"], graph=False)
        yield from _kernels(unprofiled)


def operators(events: list[dict[str, object]]) -> Iterator[Record]:
    """Launches and host microseconds of a run by operator, largest first."""
    counts: Counter[tuple[str, str]] = Counter()
    times: Counter[tuple[str, str]] = Counter()
    for event in events:
        name, arguments = str(event.get("name")), event.get("args")
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and isinstance(arguments, dict):
            key = (str(arguments.get("op_name")), str(arguments.get("provider")))
            counts[key] += 1
            times[key] += int(str(event["dur"]))
    yield {
        "copies": sum(count for (name, _), count in counts.items() if name.startswith("Memcpy")) / _LAUNCHES
    }
    for key, total in times.most_common(_SHOWN):
        yield {
            "operator": key[0],
            "provider": key[1],
            "per_run": counts[key] / _LAUNCHES,
            "host_us_per_run": total // _LAUNCHES,
        }


def _kernels(denoiser: Denoiser) -> Iterator[Record]:
    """GPU kernels of a launch: torch's profiler sees all of the process."""
    import torch
    from torch.profiler import ProfilerActivity

    for _ in range(3):
        denoiser.run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_LAUNCHES):
            denoiser.run()
        torch.cuda.synchronize()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.device_time_total)
    total = sum(row.device_time_total for row in rows)
    count = sum(row.count for row in rows)
    yield {"kernel": "all", "per_run": count / _LAUNCHES, "us_per_run": total / _LAUNCHES, "share": 1.0}
    for row in rows[:_SHOWN]:
        yield {
            "kernel": row.key[:160],
            "per_run": row.count / _LAUNCHES,
            "us_per_run": row.device_time_total / _LAUNCHES,
            "share": row.device_time_total / total if total else None,
        }
