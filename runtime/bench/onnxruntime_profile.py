"""Read ONNX Runtime's operator profiles and align them with the timeline's clock."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.temporary import scratch_folder
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime.bench.timed_engine import LAUNCH
from sd2rt.runtime.bench.timed_pipeline import TimedNetworks, TimedPipeline
from sd2rt.runtime.bench.timeline import Span
from sd2rt.runtime.networks.networks import Networks

_RUN = "model_run"
_KERNEL = "_kernel_time"
_EVENT_FIELDS = ("op_name", "provider", "input_type_shape", "output_type_shape")
"""The arguments kept from each event; most of the others concern memory and threads."""


class Operator(NamedTuple):
    """One execution of an operator, on the clock of ``time.perf_counter_ns``."""

    name: str
    start: int
    end: int
    args: dict[str, Any]


class Profile(NamedTuple):
    """Operators of a part, in order of execution."""

    operators: list[Operator]
    launches: int
    """Number of launches in the profiled period."""
    recorded: int
    """Number of launches with recorded operators; ONNX Runtime stops recording at a million events."""


class ProfiledNetworks(TimedNetworks):
    """Networks whose operators are also recorded if they run with ONNX Runtime on the CPU.

    Other backends are not profiled. On a GPU, operators are only enqueued. OpenVINO reports the duration of each
    operator but not its start, so it cannot be placed on a timeline.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._scratch = ExitStack()
        self._folder = self._scratch.enter_context(scratch_folder("profile"))
        try:
            super().__init__(*args, **options)
        except BaseException:
            self._scratch.close()
            raise

    def _profiles(self) -> Path:
        return self._folder

    def operators(self, before: Sequence[Span], spans: Sequence[Span]) -> dict[PartName, Profile]:
        """Stop profiling and return the operators of the launches in ``spans``, by part.

        Args:
            before: all spans recorded earlier.
        """
        profiles: dict[PartName, Profile] = {}
        for part, timed in self._timed.items():
            path = timed.inner.end_profile() if isinstance(timed.inner, OnnxRuntimeEngine) else None
            if path is not None:
                earlier, launches = ([*_launches(each, part)] for each in (before, spans))
                profiles[part] = read_profile(path, len(earlier), launches)
        return profiles

    def close(self) -> None:
        super().close()
        self._scratch.close()


class ProfiledPipeline(TimedPipeline):
    """A pipeline for recording one profile. Recording slows its operators down."""

    _networks_type: ClassVar[type[Networks]] = ProfiledNetworks

    def operators(self, before: Sequence[Span], spans: Sequence[Span]) -> dict[PartName, Profile]:
        """Forward to :meth:`ProfiledNetworks.operators`."""
        assert isinstance(self._networks, ProfiledNetworks)
        return self._networks.operators(before, spans)


def _launches(spans: Sequence[Span], part: PartName) -> Iterator[Span]:
    return (span for span in spans if span.name == LAUNCH and span.detail == part)


def read_profile(path: Path, earlier: int, launches: Sequence[Span]) -> Profile:
    """Read the operators of ``launches`` from the profile of all of an engine's runs.

    ONNX Runtime uses its own clock, in whole microseconds. Each of its runs lies within one launch and is placed
    at the launch's centre; the error is bounded by the rest of the launch, tens of microseconds. Runs are aligned
    individually, so drift between the clocks does not matter.

    Args:
        earlier: number of launches in the profile before these.

    Raises:
        ValueError: the profile has more runs than launches.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    runs = sorted((event for event in events if event.get("name") == _RUN), key=_start)
    if len(runs) > earlier + len(launches):
        raise ValueError(
            f"the profile has {len(runs)} runs, but there were {earlier + len(launches)} launches"
        )
    runs, starts = runs[earlier:], [_start(run) for run in runs[earlier:]]
    shifts = [_shift(run, launch) for run, launch in zip(runs, launches, strict=False)]
    operators = []
    for event in sorted(filter(_is_kernel, events), key=_start):
        index = bisect_right(starts, _start(event)) - 1
        if index >= 0:
            start = _start(event) + shifts[index]
            args: Mapping[str, Any] = event["args"]
            operators.append(
                Operator(
                    event["name"].removesuffix(_KERNEL),
                    start,
                    start + _length(event),
                    {name: args[name] for name in _EVENT_FIELDS if name in args},
                )
            )
    return Profile(operators, len(launches), len(runs))


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith(_KERNEL)


def _shift(run: Mapping[str, Any], launch: Span) -> int:
    """Return the offset in nanoseconds from the profile's clock to the launch's clock."""
    return launch.start - _start(run) + (launch.nanoseconds - _length(run)) // 2


def _start(event: Mapping[str, Any]) -> int:
    """Return an event's start in nanoseconds; profiles use microseconds."""
    return int(event["ts"]) * 1000


def _length(event: Mapping[str, Any]) -> int:
    return int(event["dur"]) * 1000
