"""Admission of runs: many at once, or one change of the networks while none is in flight."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.networks.networks import CLOSED
from sd2rt.runtime.pipeline.run_state import RunState

_POLL_SECONDS = 0.02
"""Runs may end in a finalizer, which can notify nobody: it may take no lock."""
_IDLE_SECONDS = 0.1
"""After all runs in flight were idle for so long, they may be waiting for a new one, which then passes."""
_ABANDONED_SECONDS = 10.0
"""After a run was idle for so long, closing the pipeline ends it."""
_COLLECT_SECONDS = 1.0
"""Wait before garbage is collected, doubled each time: a run that was dropped in a cycle ends so."""


class Gate:
    """Lets runs in, and holds them up while a change waits for those in flight to end."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.RLock())
        self._runs: set[RunState] = set()
        self._changing = False
        self._changes = threading.Lock()
        self.closed = False

    def enter(self, run: RunState) -> None:
        """Let a run in, once no change waits or is made.

        A run may be started by one in flight, by a callback or by a thread that a callback waits for, so it passes a
        change that only waits, if all runs in flight have been idle for a while.

        Raises:
            RequestError: the pipeline is closed.
        """
        with self._condition:
            while not self.closed and self._changing and not (self._runs and self._all_idle()):
                self._condition.wait(_POLL_SECONDS)
            if self.closed:
                raise RequestError(CLOSED)
            self._runs.add(run)

    def leave(self, run: RunState) -> None:
        """Forget a run that has ended. Takes no lock: a finalizer may call it at any time."""
        self._runs.discard(run)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Wait until no run is in flight, and let none in within a ``with`` block.

        Raises:
            RequestError: the calling thread is in the middle of a run, or the pipeline is closed.
        """
        self.require_no_run_of(threading.current_thread())
        with self._changes:
            if self.closed:
                raise RequestError(CLOSED)
            with self._without_runs(end_idle=False):
                yield

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Let no run in from now on, end the runs of the calling thread, and wait for those of others.

        Those that have asked for nothing for ten seconds are ended too: nobody may be left who asks.
        """
        for run in self._runs_of(threading.current_thread()):
            run.end()
        with self._changes, self._without_runs(end_idle=True):
            self.closed = True
            yield

    def require_no_run_of(self, user: object) -> None:
        """Raise RequestError if a thread or task is in the middle of a run: it would wait for itself."""
        if self._runs_of(user):
            raise RequestError(
                "this pipeline is in the middle of another run: take that run's result or close it first"
            )

    def _runs_of(self, user: object) -> list[RunState]:
        """Runs that a thread or task was the last to use."""
        if any(run.user is user for run in tuple(self._runs)):
            # A run that an exception's traceback held may be dropped, but not collected yet.
            gc.collect()
        return [run for run in tuple(self._runs) if run.user is user]

    @contextmanager
    def _without_runs(self, *, end_idle: bool) -> Iterator[None]:
        collect, patience = time.monotonic() + _COLLECT_SECONDS, _COLLECT_SECONDS
        self._changing = True
        try:
            with self._condition:
                while self._runs:
                    self._condition.wait(_POLL_SECONDS)
                    for run in tuple(self._runs) if end_idle else ():
                        if run.idle_for > _ABANDONED_SECONDS:
                            run.end()
                    if time.monotonic() > collect:
                        gc.collect()
                        patience *= 2
                        collect = time.monotonic() + patience
                # Held to the end: nobody enters.
                yield
        finally:
            self._changing = False
            with self._condition:
                self._condition.notify_all()

    def _all_idle(self) -> bool:
        return all(run.idle_for > _IDLE_SECONDS for run in tuple(self._runs))
