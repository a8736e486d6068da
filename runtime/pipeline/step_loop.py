"""The loop over denoiser calls and decodes of all runs on one set of networks, driven by the threads that wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sd2rt.engines.errors import EngineError, OutOfMemoryError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.batch import Batch
from sd2rt.runtime.denoising.buckets import Buckets
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.denoising.trajectory import Trajectory, batchable
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.pipeline.snapshot import Snapshot
from sd2rt.runtime.scheduling.lingering import Pace, patience
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Call, Decode, Work

_LOG = logging.getLogger(__name__)
Lane = tuple[tuple[int, ...], int]
"""Shape of latents [C, h, w] and tokens of texts in calls that can be shared."""
_STEP = "request %s: a step of %d images in %.3f s"


@dataclass(slots=True, eq=False)
class _Lone:
    """The last call, if its works are all there is: repeated without the scheduler until something changes.

    Asking the scheduler costs a lone caller 0.1 ms a step, since the engine has emptied the CPU's caches.
    """

    call: Call
    run: RunState
    batch: Batch
    own: tuple[Trajectory, ...]
    further: int
    """Calls after which a work is finished, less one."""
    made: int = 0
    seconds: float = 0.0


class StepLoop:
    """Makes calls in the scheduler's order, one at a time, in the thread that has the turn.

    A thread that waits for its run takes a turn and makes calls, also those of other runs, until its wish is
    fulfilled; threads whose wishes are fulfilled meanwhile go on. There is no thread of its own, so a single caller
    pays for no switch between threads.

    Args:
        buckets: sizes that denoiser calls are padded to; None for exact sizes.
    """

    def __init__(self, networks: Networks, settings: Settings, buckets: Buckets | None = None) -> None:
        self.networks, self._turns = networks, networks.turns
        self.turn = networks.turns.turn
        self._scheduler = Scheduler(settings)
        self.stepper = Stepper(lambda: networks.engine("denoiser"), buckets)
        self._members: dict[Work, tuple[Trajectory, RunState]] = {}
        self._decodes: dict[Decode, tuple[ImageJob | Snapshot, RunState]] = {}
        self.calls: Counter[int] = Counter()
        """Denoiser calls made, by images or tiles in them; those of a lone run are added when it ends."""
        self.step_seconds: dict[int, float] = {}
        """Measured seconds of a call by that number, for the size of image that had the last such call."""
        self._ended: deque[RunState] = deque()
        """Runs that have ended since the last call; a finalizer may append."""
        self._lone: _Lone | None = None
        self._last: tuple[RunState, ...] = ()
        """Runs of the last denoiser call."""
        self._lingering = None if settings.max_batch == 1 else threading.Condition()
        """Condition of threads that wait for others to share their call; None if calls are never shared."""

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler; use it within a turn."""
        self._end_lone()
        return self._scheduler

    def calibrate(self, lanes: Mapping[Lane, Mapping[int, float]]) -> None:
        """Start lanes with measured seconds of a call by images."""
        with self._turns.turn():
            for lane, seconds in lanes.items():
                self.scheduler.calibrate(lane, seconds)

    def ended(self, run: RunState) -> None:
        """Give up the places of a run's trajectories before the next call; takes no lock."""
        self._ended.append(run)

    def submit(self, run: RunState, trajectories: Iterable[Trajectory]) -> None:
        """Add a run's trajectories, which take steps once the run wants them.

        Raises:
            DeadlineUnreachableError: they would be finished after the run's deadline.
        """
        with self._turns.turn():
            self._remove_ended()
            run.pace = None if self._lingering is None else Pace()
            run.trajectories = tuple(trajectories)
            now, works, terms = time.monotonic(), [], run.terms
            for group in batchable(run.trajectories):
                lane = group[0].latents.shape, max(trajectory.group[1] for trajectory in group)
                for trajectory in group:
                    work = Work(
                        lane=lane,
                        group=run,
                        arrival=now,
                        priority=terms.priority,
                        key=terms.key,
                        deadline=terms.deadline,
                        ready=False,
                        steps_left=trajectory.length,
                    )
                    works.append(work)
                    self._members[work] = trajectory, run
                    run.works[trajectory] = work
                    self.stepper.join(trajectory)
            self.scheduler.submit(works, now)

    def drive(self, run: RunState, until: Callable[[], bool]) -> None:
        """Make calls until ``until`` is true, which a call of any thread may bring about, or the run has ended."""

        def fulfilled() -> bool:
            return run.ended or run.error is not None or until()

        lingering = self._lingering
        wait = 0.0 if lingering is None else None
        while not fulfilled():
            if wait and lingering is not None:
                # Without the turn: whoever is waited for may make the call, and may use it before.
                with lingering:
                    lingering.wait_for(fulfilled, wait)
                wait = 0.0
            if not self._turns.take(fulfilled):
                continue
            try:
                while not fulfilled():
                    if wait is None and (wait := self._patience(run)):
                        break
                    self._call()
                    self._wake()
                    if self._turns.wanted:
                        break
            finally:
                self._turns.give()

    def _patience(self, run: RunState) -> float:
        """Seconds to wait for runs of the last call, so that they share the next one with a run; mostly 0."""
        others = [other for other in self._last if other is not run and other.returns]
        if not others or run.pace is None or run.to_the_end or not run.works:
            return 0.0
        lane = next(iter(run.works.values())).lane
        return patience(
            time.monotonic(),
            run.pace,
            sum(work.ready and work.lane == lane for work in self._members),
            [
                (each.pace, sum(work.lane == lane for work in each.works.values()))
                for each in others
                if each.pace is not None
            ],
            self.scheduler.curve(lane),
            self.scheduler.limit(lane),
        )

    def _wake(self) -> None:
        """Let threads go on whose wish is fulfilled."""
        self._turns.wake()
        if self._lingering is not None:
            with self._lingering:
                self._lingering.notify_all()

    def decode(self, run: RunState, jobs: Iterable[ImageJob | Snapshot]) -> None:
        """Have images of a run, or snapshots of them, decoded into ``run.decoded``: one between two steps."""
        now, terms = time.monotonic(), run.terms
        with self._turns.turn():
            for job in jobs:
                decode = Decode(
                    lane=job.trajectories[0].group,
                    group=run,
                    arrival=now,
                    priority=terms.priority,
                    key=terms.key,
                    deadline=terms.deadline,
                )
                self._decodes[decode] = job, run
                self.scheduler.submit_decode(decode)

    def decode_now(self, run: RunState, snapshots: Sequence[Snapshot]) -> list[Float32Array]:
        """Decode snapshots of a run's images, [3, H, W] each, in the thread that waits for them.

        Raises:
            RequestError: the run has ended.
            EngineError: the device failed or ran out of memory.
        """
        self.decode(run, snapshots)
        resting, run.idle_since = run.idle_since is not None, None
        try:
            self.drive(run, lambda: all(snapshot in run.decoded for snapshot in snapshots))
        finally:
            if resting:
                run.rest()
        decoded = run.take_decoded(snapshots)
        if decoded is None:
            if run.error is not None:
                raise run.error
            run.require_open()
        assert decoded is not None
        return decoded

    def settle(self) -> None:
        """Wait for the device, if a trajectory of the last call has finished, and set its latents."""
        with self._turns.turn():
            self.stepper.settle()

    def collect(self, run: RunState) -> None:
        """Give up a run's further steps, and set the latents of its trajectories to the current ones."""
        with self._turns.turn():
            self.stepper.settle()
            self.stepper.collect([t for t in run.works if t.done])
            self._remove(run)

    def make_wanted(self) -> None:
        """Make calls as long as any run wants one, for a thread that does nothing else."""
        made = True
        while made:
            with self._turns.turn():
                made = self._call()
                self._wake()

    def _call(self) -> bool:
        """Make the next denoiser call or decode. Returns False if no run wants one."""
        lone = self._lone
        if lone is not None and lone.further and not self._ended:
            if not all(work.ready for work in lone.call.works):
                return False
            self._step_lone(lone)
            return True
        self._remove_ended()
        self.stepper.settle()
        call = self.scheduler.next_call(time.monotonic())
        if call is None:
            return False
        if call.decode is not None:
            self._decode(call, *self._decodes.pop(call.decode))
        else:
            self._step(call)
        return True

    def _step(self, call: Call) -> None:
        members = [self._members[work] for work in call.works]
        start = time.monotonic()
        try:
            batch = self.stepper.step([trajectory for trajectory, _ in members])
        except BaseException as error:
            self.scheduler.failed(call)
            self._step_failed(call, members, error)
            if isinstance(error, Exception):
                return
            raise
        now = time.monotonic()
        self.scheduler.done(call, now - start, now)
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug(_STEP, _named(members), len(members), now - start)
        self.calls[len(members)] += 1
        self._note_cost(call)
        active: dict[RunState, list[Trajectory]] = {}
        for trajectory, run in members:
            active.setdefault(run, []).append(trajectory)
            if trajectory.finished:
                self._forget(trajectory, run)
        self._last = tuple(active)
        for run, own in active.items():
            run.advanced(tuple(own), start)
        if len(active) == 1 and not self._decodes and self._members.keys() == {*call.works}:
            self._lone = _Lone(call, run, batch, tuple(own), min(work.steps_left for work in call.works) - 1)

    def _step_lone(self, lone: _Lone) -> None:
        """Repeat the last call: its works are all there is, so that the scheduler could choose no other."""
        start = time.monotonic()
        try:
            lone.batch = self.stepper.step(lone.batch.active)
        except BaseException as error:
            self._end_lone()
            self._step_failed(lone.call, [(trajectory, lone.run) for trajectory in lone.own], error)
            if isinstance(error, Exception):
                return
            raise
        lone.further -= 1
        lone.made += 1
        seconds = time.monotonic() - start
        lone.seconds += seconds
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug(_STEP, lone.run.request_id, len(lone.own), seconds)
        if any(trajectory.finished for trajectory in lone.own):
            # Not finite: the steps that remain are not made.
            self._end_lone()
            for trajectory in lone.own:
                if trajectory.finished:
                    self._forget(trajectory, lone.run)
        lone.run.advanced(lone.own, start)

    def _end_lone(self) -> None:
        """Report the calls that were made without the scheduler."""
        lone, self._lone = self._lone, None
        if lone is not None and lone.made:
            self._scheduler.repeated(lone.call, lone.made, lone.seconds / lone.made)
            self.calls[len(lone.call.works)] += lone.made
            self._note_cost(lone.call)

    def _note_cost(self, call: Call) -> None:
        images = len(call.works)
        self.step_seconds[images] = self._scheduler.curve(call.lane).seconds(images) or 0.0

    def _step_failed(
        self, call: Call, members: list[tuple[Trajectory, RunState]], error: BaseException
    ) -> None:
        if isinstance(error, OutOfMemoryError) and len(members) > 1:
            limit = self.scheduler.halve(call.lane, len(members))
            _LOG.warning(
                "request %s: out of memory with %d images in a call: %d from now on",
                _named(members),
                len(members),
                limit,
            )
        elif isinstance(error, Exception):
            self._fail(members, error)
        else:
            # The step may have been made in part: no picture may come of it.
            self._fail(members, EngineError("a thread was interrupted in this denoiser call: run again"))

    def _decode(self, call: Call, job: ImageJob | Snapshot, run: RunState) -> None:
        start = time.monotonic()
        try:
            run.decoded[job] = self.networks.vae.decode(job.latents())
        except EngineError as error:
            run.decoded[job] = error
        except BaseException as error:
            self.scheduler.failed(call)
            interrupted = EngineError("a thread was interrupted while this image was decoded: run again")
            run.error = error if isinstance(error, Exception) else interrupted
            run.changed()
            if isinstance(error, Exception):
                return
            raise
        now = time.monotonic()
        self.scheduler.done(call, now - start, now)
        what = "a preview" if isinstance(job, Snapshot) else "an image"
        _LOG.debug("request %s: decoded %s in %.3f s", run.request_id, what, now - start)
        run.changed()

    def _fail(self, members: Iterable[tuple[Trajectory, RunState]], error: Exception) -> None:
        for run in {run for _, run in members}:
            _LOG.error("request %s: %s", run.request_id, error)
            run.error = error
            self._remove(run)
            run.changed()

    def _remove_ended(self) -> None:
        while self._ended:
            run = self._ended.popleft()
            if run.works:
                _LOG.info("request %s: ended after %d steps", run.request_id, run.done)
            self._remove(run)

    def _remove(self, run: RunState) -> None:
        for trajectory in tuple(run.works):
            self._forget(trajectory, run)
        for decode in [decode for decode, (_, other) in self._decodes.items() if other is run]:
            del self._decodes[decode]
            self.scheduler.leave(decode)

    def _forget(self, trajectory: Trajectory, run: RunState) -> None:
        """Take a trajectory that has finished or failed, or whose run has ended, out of all calls."""
        work = run.works.pop(trajectory)
        del self._members[work]
        self.scheduler.leave(work)
        self.stepper.leave(trajectory)


def _named(members: Iterable[tuple[Trajectory, RunState]]) -> str:
    """Request ids of a call's runs, for the log."""
    return ", ".join(dict.fromkeys(run.request_id for _, run in members))
