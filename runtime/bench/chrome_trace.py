"""Export recorded spans as a Chrome trace for chrome://tracing and Perfetto.

Format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.runtime.bench.onnxruntime_profile import Profile
from sd2rt.runtime.bench.recording import STEP
from sd2rt.runtime.bench.timeline import Span

if TYPE_CHECKING:
    from sd2rt.runtime.bench.timeline import Ranges

_THREAD = 1
_NO_PROFILES: Mapping[PartName, Profile] = MappingProxyType({})


def chrome_trace(
    spans: Sequence[Span], about: dict[str, Any], profiles: Mapping[PartName, Profile] = _NO_PROFILES
) -> dict[str, Any]:
    """Build a trace of complete events (``ph`` X); ``ts`` and ``dur`` are microseconds from the first span's start.

    In each step, the gaps between recorded spans become ``host`` events.

    Args:
        about: metadata stored in ``otherData``.
        profiles: operators by part; each part gets its own row.
    """
    pid, origin = os.getpid(), min(span.start for span in spans)
    events = [
        _metadata("process_name", "sd2rt", pid, _THREAD),
        _metadata("thread_name", "host", pid, _THREAD),
    ]
    # If two spans start together, the longer one encloses the other.
    ordered = sorted([*spans, *_host(spans)], key=lambda span: (span.start, -span.end))
    events += [
        {
            "ph": "X",
            "name": f"{span.name} {span.detail}".strip(),
            "cat": span.name,
            "ts": (span.start - origin) / 1e3,
            "dur": span.nanoseconds / 1e3,
            "pid": pid,
            "tid": _THREAD,
        }
        for span in ordered
    ]
    for tid, (part, profile) in enumerate(profiles.items(), _THREAD + 1):
        events += _row(part, profile, pid, tid, origin)
    recorded = {part: {"launches": p.launches, "recorded": p.recorded} for part, p in profiles.items()}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {**about, "operators": recorded or None},
    }


def _metadata(kind: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _row(part: PartName, profile: Profile, pid: int, tid: int, origin: int) -> Iterator[dict[str, Any]]:
    yield _metadata("thread_name", f"{part}, operators by ONNX Runtime", pid, tid)
    for operator in profile.operators:
        yield {
            "ph": "X",
            "name": operator.name,
            "cat": operator.args.get("op_name", "operator"),
            "ts": (operator.start - origin) / 1e3,
            "dur": (operator.end - operator.start) / 1e3,
            "pid": pid,
            "tid": tid,
            "args": operator.args,
        }


def _host(spans: Sequence[Span]) -> Iterator[Span]:
    """Yield the gaps of each step that no other span covers."""
    ordered = sorted(spans, key=lambda span: span.start)
    for step in (span for span in ordered if span.name == STEP):
        inner = [
            span for span in ordered if span is not step and step.start <= span.start and span.end <= step.end
        ]
        covered_until = step.start
        for span in inner:
            if span.start > covered_until:
                yield Span("host", "before" if span is inner[0] else "between", covered_until, span.start)
            covered_until = max(covered_until, span.end)
        if step.end > covered_until and inner:
            yield Span("host", "after", covered_until, step.end)


def nvtx_ranges() -> Ranges | None:
    """Import the package ``nvtx``, which marks ranges for NVIDIA's profilers; None if it is not installed."""
    if find_spec("nvtx") is None:
        return None
    return cast("Ranges", import_module("nvtx"))
