"""What ONNX Runtime says of its operators, on the clock of everything else that is recorded."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime.bench.timed_engine import LAUNCH
from sd2rt.runtime.bench.timed_pipeline import TimedNetworks, TimedPipeline
from sd2rt.runtime.bench.timeline import Span
from sd2rt.runtime.pipeline.networks import Networks

_RUN = "model_run"
_KERNEL = "_kernel_time"
_EVENT_FIELDS = ("op_name", "provider", "input_type_shape", "output_type_shape")
"""Of some twenty arguments that each event has: most are of memory and threads."""


class Operator(NamedTuple):
    """One execution of an operator, on the clock of ``time.perf_counter_ns``."""

    name: str
    start: int
    end: int
    told: dict[str, Any]


class Profile(NamedTuple):
    """A part's operators, in order."""

    operators: list[Operator]
    launches: int
    """Launches that they might be of."""
    recorded: int
    """Those that they are of: ONNX Runtime stops at a million events."""


class ProfiledNetworks(TimedNetworks):
    """A bundle's networks whose operators are recorded, too, where ONNX Runtime runs them on the CPU.

    Other backends are left alone. On a GPU operators are enqueued only. OpenVINO tells how long each of its operators
    took, and not when it began: nothing that a timeline could show without making it up.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._folder = TemporaryDirectory(prefix="sd2rt-profile-")
        try:
            super().__init__(*args, **options)
        except BaseException:
            self._folder.cleanup()
            raise

    def _profiles(self) -> Path:
        return Path(self._folder.name)

    def operators(self, before: Sequence[Span], spans: Sequence[Span]) -> dict[PartName, Profile]:
        """The operators of what was recorded in ``spans``, by part. They are recorded no longer.

        Args:
            before: all that was recorded earlier.
        """
        found: dict[PartName, Profile] = {}
        for part, timed in self._timed.items():
            path = timed.inner.end_profile() if isinstance(timed.inner, OnnxRuntimeEngine) else None
            if path is not None:
                earlier, launches = ([*_launches(each, part)] for each in (before, spans))
                found[part] = read_profile(path, len(earlier), launches)
        return found

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class ProfiledPipeline(TimedPipeline):
    """A pipeline for one profile: its operators take longer than those of others, as each is recorded."""

    _networks_type: ClassVar[type[Networks]] = ProfiledNetworks

    def operators(self, before: Sequence[Span], spans: Sequence[Span]) -> dict[PartName, Profile]:
        """See :meth:`ProfiledNetworks.operators`."""
        assert isinstance(self._networks, ProfiledNetworks)
        return self._networks.operators(before, spans)


def _launches(spans: Sequence[Span], part: PartName) -> Iterator[Span]:
    return (span for span in spans if span.name == LAUNCH and span.detail == part)


def read_profile(path: Path, earlier: int, launches: Sequence[Span]) -> Profile:
    """The operators of an engine's ``launches``, from the profile of all that it ran.

    ONNX Runtime has a clock of its own, in whole microseconds. What it calls a run lies within the launch that asked
    for it, and is put into its middle: what the launch takes besides, tens of microseconds, bounds the error. Each
    run by itself, so that two clocks that drift make no difference.

    Args:
        earlier: launches that the profile has before these.

    Raises:
        ValueError: the profile has more runs than there were launches.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    runs = sorted((event for event in events if event.get("name") == _RUN), key=_start)
    if len(runs) > earlier + len(launches):
        raise ValueError(f"{len(runs)} runs are in the profile of {earlier + len(launches)} launches")
    runs, starts = runs[earlier:], [_start(run) for run in runs[earlier:]]
    shifts = [_shift(run, launch) for run, launch in zip(runs, launches, strict=False)]
    operators = []
    for event in sorted(filter(_is_kernel, events), key=_start):
        index = bisect_right(starts, _start(event)) - 1
        if index >= 0:
            start = _start(event) + shifts[index]
            told: Mapping[str, Any] = event["args"]
            operators.append(
                Operator(
                    event["name"].removesuffix(_KERNEL),
                    start,
                    start + _length(event),
                    {name: told[name] for name in _EVENT_FIELDS if name in told},
                )
            )
    return Profile(operators, len(launches), len(runs))


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith(_KERNEL)


def _shift(run: Mapping[str, Any], launch: Span) -> int:
    """Nanoseconds from the profile's clock to that of the launch."""
    return launch.start - _start(run) + (launch.nanoseconds - _length(run)) // 2


def _start(event: Mapping[str, Any]) -> int:
    """In nanoseconds; the profile has microseconds."""
    return int(event["ts"]) * 1000


def _length(event: Mapping[str, Any]) -> int:
    return int(event["dur"]) * 1000
