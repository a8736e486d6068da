"""A thread that makes the calls of all runs, for callers that must not block."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from sd2rt.runtime.pipeline.step_loop import StepLoop


class DeviceThread:
    """Makes calls whenever runs want them, until it is stopped."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._wanted = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sd2rt-device", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have it look for wanted calls; does not wait."""
        self._wanted.set()

    def run(self, call: Callable[[], None]) -> None:
        """Have it make a call after its current one, and wait for that; raises what the call raises."""
        made: Future[None] = Future()
        self._calls.append((call, made))
        self._wanted.set()
        made.result()

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
            while self._calls:
                call, made = self._calls.popleft()
                try:
                    made.set_result(call())
                except BaseException as error:
                    made.set_exception(error)
            self._loop.make_wanted()
