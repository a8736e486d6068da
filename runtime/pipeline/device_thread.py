"""A thread that makes the calls of all runs, for callers that must not block."""

from __future__ import annotations

import threading

from sd2rt.runtime.pipeline.step_loop import StepLoop


class DeviceThread:
    """Makes calls whenever runs want them, until it is stopped."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sd2rt-device", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have it look for wanted calls; does not wait."""
        self._wanted.set()

    def stop(self) -> None:
        """End the thread after its current call."""
        self._stopped = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopped:
                return
            self._loop.make_wanted()
