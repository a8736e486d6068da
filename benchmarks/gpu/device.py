"""What the device itself says while sd2rt runs on it: the time of each launch, and memory."""

from __future__ import annotations

import resource
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sd2rt.engines.cuda.session import CudaSession


def used_bytes() -> int | None:
    """Of the GPU's memory, over all processes; None without cuda-python or a GPU."""
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
    """This process's memory in core: now, and at its most."""
    now = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            now = int(line.split()[1]) * 1024
    return {"now": now, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


class Stopwatch:
    """Events on a stream of CUDA, and the time between them."""

    def __init__(self, stream: int) -> None:
        from cuda.bindings import driver

        self._driver, self._stream = driver, stream
        self._pairs: list[tuple[str, Any, Any]] = []

    def start(self, what: str) -> None:
        self._pairs.append((what, self._event(), None))

    def stop(self) -> None:
        what, start, _ = self._pairs[-1]
        self._pairs[-1] = (what, start, self._event())

    def _event(self) -> Any:
        event = self._checked(self._driver.cuEventCreate(0))
        self._checked(self._driver.cuEventRecord(event, self._stream))
        return event

    def milliseconds(self) -> list[tuple[str, float]]:
        """Each start to its stop, in order, when the device is past them; they are forgotten then."""
        found = []
        for what, start, end in self._pairs:
            self._checked(self._driver.cuEventSynchronize(end))
            found.append((what, float(self._checked(self._driver.cuEventElapsedTime(start, end)))))
            self._checked(self._driver.cuEventDestroy(start))
            self._checked(self._driver.cuEventDestroy(end))
        self._pairs.clear()
        return found

    @staticmethod
    def _checked(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]):
            raise RuntimeError(f"CUDA reported {answer[0].name}")
        return answer[1] if len(answer) > 1 else None


class DeviceClock:
    """The device's time of every launch of a CUDA session, while this lasts: a context manager.

    While the host is ahead of the device, that is the launch's work alone. Where the host is slower, it holds the
    waiting for the host between its first and its last enqueue, too.
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
        """Milliseconds by part, since the last time."""
        found: dict[str, list[float]] = {}
        for watch in self._watches.values():
            for part, taken in watch.milliseconds():
                found.setdefault(part, []).append(taken)
        return found
