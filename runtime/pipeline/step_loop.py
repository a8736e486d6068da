"""The loop over denoiser calls and decodes of all runs on one set of networks, driven by the threads that wait."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from sd2rt.engines.errors import EngineError, OutOfMemoryError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.denoising.trajectory import Trajectory, batchable
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.pipeline.snapshot import Snapshot
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Call, Decode, Work

_LOG = logging.getLogger(__name__)


class StepLoop:
    """Makes calls in the scheduler's order, one at a time, in the thread that has the turn.

    A thread that waits for its run takes a turn and makes calls, also those of other runs, until its wish is
    fulfilled; threads whose wishes are fulfilled meanwhile go on. There is no thread of its own, so a single caller
    pays for no switch between threads.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks, self._turns = networks, networks.turns
        self.turn = networks.turns.turn
        self.scheduler = Scheduler(settings)
        self.stepper = Stepper(lambda: networks.engine("denoiser"))
        self._members: dict[Work, tuple[Trajectory, RunState]] = {}
        self._decodes: dict[Decode, tuple[ImageJob | Snapshot, RunState]] = {}
        self.calls: Counter[int] = Counter()
        """Denoiser calls made, by number of images or tiles in them."""
        self.step_seconds: dict[int, float] = {}
        """Measured seconds of a call by that number, for the size of image that had the last such call."""
        self._ended: deque[RunState] = deque()
        """Runs that have ended since the last call; a finalizer may append."""

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

        while not fulfilled():
            if not self._turns.take(fulfilled):
                continue
            try:
                while not fulfilled():
                    self._call()
                    self._turns.wake()
                    if self._turns.wanted:
                        break
            finally:
                self._turns.give()

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
                self._turns.wake()

    def _call(self) -> bool:
        """Make the next denoiser call or decode. Returns False if no run wants one."""
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
            self.stepper.step([trajectory for trajectory, _ in members])
        except OutOfMemoryError as error:
            self.scheduler.failed(call)
            if len(members) > 1:
                limit = self.scheduler.halve(call.lane, len(members))
                named = ", ".join(dict.fromkeys(run.request_id for _, run in members))
                _LOG.warning(
                    "request %s: out of memory with %d images in a call: %d from now on",
                    named,
                    len(members),
                    limit,
                )
            else:
                self._fail(members, error)
            return
        except Exception as error:
            self.scheduler.failed(call)
            self._fail(members, error)
            return
        except BaseException:
            # The step may have been made in part: no picture may come of it.
            self.scheduler.failed(call)
            self._fail(members, EngineError("a thread was interrupted in this denoiser call: run again"))
            raise
        now = time.monotonic()
        self.scheduler.done(call, now - start, now)
        if _LOG.isEnabledFor(logging.DEBUG):
            named = ", ".join(dict.fromkeys(run.request_id for _, run in members))
            _LOG.debug("request %s: a step of %d images in %.3f s", named, len(members), now - start)
        self.calls[len(members)] += 1
        self.step_seconds[len(members)] = self.scheduler.curve(call.lane).seconds(len(members)) or 0.0
        active: dict[RunState, list[Trajectory]] = {}
        for trajectory, run in members:
            active.setdefault(run, []).append(trajectory)
            if trajectory.finished:
                self._forget(trajectory, run)
        for run, own in active.items():
            run.advanced(tuple(own), start)

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
