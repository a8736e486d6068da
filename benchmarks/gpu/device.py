"""Launch times and memory use, as measured on the GPU while sd2rt runs."""

from __future__ import annotations

import resource
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sd2rt.engines.cuda.session import CudaSession


def used_bytes() -> int | None:
    """GPU memory in use by all processes; None without cuda-python or a GPU."""
    try:
        from cuda.bindings import driver

        if int(driver.cuInit(0)[0]):
            return None
        _, context = driver.cuDevicePrimaryCtxRetain(0)
        driver.cuCtxSetCurrent(context)
        result, free, total = driver.cuMemGetInfo()
    except Exception:
        return None
    return None if int(result) else int(total) - int(free)


def host_bytes() -> dict[str, int]:
    """Resident memory of this process: current and peak."""
    now = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            now = int(line.split()[1]) * 1024
    return {"now": now, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


class Stopwatch:
    """Times intervals by pairs of CUDA events on one stream."""

    def __init__(self, stream: int) -> None:
        from cuda.bindings import driver

        self._driver, self._stream = driver, stream
        self._pairs: list[tuple[str, Any, Any]] = []

    def start(self, label: str) -> None:
        self._pairs.append((label, self._event(), None))

    def stop(self) -> None:
        label, start, _ = self._pairs[-1]
        self._pairs[-1] = (label, start, self._event())

    def _event(self) -> Any:
        event = self._checked(self._driver.cuEventCreate(0))
        self._checked(self._driver.cuEventRecord(event, self._stream))
        return event

    def milliseconds(self) -> list[tuple[str, float]]:
        """Wait for the device; return and clear all intervals, in order."""
        times = []
        for label, start, end in self._pairs:
            self._checked(self._driver.cuEventSynchronize(end))
            times.append((label, float(self._checked(self._driver.cuEventElapsedTime(start, end)))))
            self._checked(self._driver.cuEventDestroy(start))
            self._checked(self._driver.cuEventDestroy(end))
        self._pairs.clear()
        return times

    @staticmethod
    def _checked(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise RuntimeError(f"CUDA reported {result[0].name}")
        return result[1] if len(result) > 1 else None


class DeviceClock:
    """Context manager that times every launch of a CUDA session on the device.

    While the host runs ahead, a time is the launch's work alone; otherwise it includes waits for the host
    between the launch's first and last enqueue.
    """

    def __init__(self) -> None:
        self._watches: dict[int, Stopwatch] = {}

    def __enter__(self) -> Self:
        self._launch = launch = CudaSession.launch
        watches = self._watches

        def timed(session: CudaSession) -> None:
            device, part = session._device, session._label.split(" ")[0]
            watch = watches.setdefault(device.stream, Stopwatch(device.stream))
            device.enter("timing")
            watch.start(part)
            launch(session)
            watch.stop()

        CudaSession.launch = timed  # type: ignore[assignment,method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CudaSession.launch = self._launch  # type: ignore[method-assign]

    def take(self) -> dict[str, list[float]]:
        """Return and clear the launch times, in milliseconds by part."""
        times: dict[str, list[float]] = {}
        for watch in self._watches.values():
            for part, time in watch.milliseconds():
                times.setdefault(part, []).append(time)
        return times
