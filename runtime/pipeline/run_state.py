"""State of a run that its thread and the threads that make its steps share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.snapshot import Snapshot
from sd2rt.runtime.scheduling.lingering import Pace
from sd2rt.runtime.scheduling.work import NO_TERMS, Terms, Work


@dataclass(slots=True, eq=False)
class RunState:
    """Trajectories of a run, its wishes and what came of them.

    Does not refer to the run, which ends it when dropped.
    """

    request_id: str
    """Name in the log."""
    on_end: Callable[[RunState], None]
    """Called once when the run ends, possibly by a finalizer: may take no lock."""
    terms: Terms = NO_TERMS
    user: object = field(default_factory=threading.current_thread)
    """Thread or task that used the run last."""
    on_change: Callable[[RunState], None] | None = None
    """Called by the thread that has the turn, after each call for the run and when it fails; must be quick."""
    idle_since: float | None = None
    """Time from which on the run has asked for nothing; None while it does."""
    ended: bool = False
    trajectories: Sequence[Trajectory] = ()
    works: dict[Trajectory, Work] = field(default_factory=dict)
    to_the_end: bool = False
    """True if steps are made without being asked for one by one."""
    pace: Pace | None = None
    first_call: float | None = None
    """Time at which the run's first denoiser call began; None before."""
    calls: int = 0
    """Denoiser calls so far in which a trajectory of the run took part."""
    active: tuple[Trajectory, ...] = ()
    """The run's trajectories in the last such call."""
    done: int = 0
    """Steps made so far, over all trajectories."""
    error: Exception | None = None
    """The error that ended all trajectories of the run."""
    decoded: dict[ImageJob | Snapshot, Float32Array | EngineError] = field(default_factory=dict)
    """Results of decodes: the run's images, and previews until they are taken."""

    @property
    def finished(self) -> bool:
        """True if no step is left."""
        return not self.works

    @property
    def idle_for(self) -> float:
        """Seconds since the run has asked for anything; 0 while it does."""
        since = self.idle_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def returns(self) -> bool:
        """True if steps are left, and the next has not been asked for."""
        ended = self.ended or self.error is not None
        return not ended and bool(self.works) and not all(work.ready for work in tuple(self.works.values()))

    def want(self, *, to_the_end: bool = False) -> None:
        """Ask for the next step, or for all that are left."""
        self.idle_since = None
        self.to_the_end = to_the_end
        if self.pace is not None:
            self.pace.ask(time.monotonic())
        for work in tuple(self.works.values()):
            work.ready = True

    def rest(self) -> None:
        """Ask for nothing, until the next :meth:`want`."""
        self.idle_since = time.monotonic()

    def advanced(self, active: tuple[Trajectory, ...], began: float) -> None:
        """Note a call with these of its trajectories, that began at a time of :func:`time.monotonic`."""
        if self.first_call is None:
            self.first_call = began
        if not self.to_the_end:
            for work in tuple(self.works.values()):
                work.ready = False
        self.active = active
        self.done += len(active)
        self.calls += 1
        if self.pace is not None:
            self.pace.advanced = time.monotonic()
        self.changed()

    def take_decoded(self, snapshots: Sequence[Snapshot]) -> list[Float32Array] | None:
        """Take the decoded images of snapshots; None if one is not decoded yet.

        Raises:
            EngineError: the error of the first that could not be decoded.
        """
        if not all(snapshot in self.decoded for snapshot in snapshots):
            return None
        images = []
        for result in [self.decoded.pop(snapshot) for snapshot in snapshots]:
            if isinstance(result, EngineError):
                raise result
            images.append(result)
        return images

    def require_open(self) -> None:
        """Raise RequestError if the run has ended."""
        if self.ended:
            raise RequestError("this run is closed: start another")

    def changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self)

    def end(self) -> None:
        """End the run; any thread, finalizer or signal handler may call it, at any time."""
        if not self.ended:
            self.ended = True
            self.on_end(self)
