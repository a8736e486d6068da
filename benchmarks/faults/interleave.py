"""Interleave runs, calls, closings and dropped iterators of several threads on one pipeline.

Every picture and every step's latents must be those of the same request alone, or a refusal in one line. Scripts are
drawn at random; :func:`play` also runs those that a test draws.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording.bundle import build_demo
from sd2rt.engines.errors import RequestError
from sd2rt.runtime import Pipeline

CASES = 1000
LIMIT_SECONDS = 120.0
"""Time for a script: its threads make a few dozen steps of a tiny network."""

_REFUSALS = ("in the middle of another run", "is closed", "has made another step")
_TOLERANCE = 1e-3
"""Of the largest value: requests that share a batch differ by rounding."""

Difference = str | None


@dataclass(frozen=True, slots=True)
class Action:
    """One thread's use of the pipeline.

    Args:
        name: key of ``ACTIONS``.
        seed: index of the request, see :data:`REQUESTS`.
        at: step at which something happens to the run.
        pause: milliseconds before it.
    """

    name: str
    seed: int
    at: int
    pause: int


REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red circle", "sampler": "ddim", "num_inference_steps": 3},
    {"prompt": "a blue square", "sampler": "euler-a", "num_inference_steps": 5},
    {"prompt": "", "sampler": "dpmpp-2m", "num_inference_steps": 4, "guidance_scale": 1.0},
    {"prompt": "a wide view", "sampler": "ddim", "num_inference_steps": 4, "width": 128},
)
"""Requests of different prompts, samplers, numbers of steps, guidance and sizes; the index is the seed."""
STEPS = 5
"""Most steps of a request."""


@dataclass(slots=True)
class Alone:
    """Pictures and latents of each request, made without any other: by seed and step."""

    latents: list[list[NDArray[np.float32]]] = field(default_factory=list)
    decoded: list[list[NDArray[np.float32]]] = field(default_factory=list)
    """[H, W, 3] in [0, 1], as :meth:`Run.stop` returns them after each step."""

    @classmethod
    def of(cls, pipe: Pipeline) -> Alone:
        alone = cls()
        for seed in range(len(REQUESTS)):
            with stream(pipe, seed) as run:
                latents = [progress.latents()[0] for progress in run]
            decoded = []
            for step in range(len(latents)):
                with stream(pipe, seed) as run:
                    for progress in run:
                        if progress.step == step + 1:
                            break
                    decoded.append(run.stop()[0].images[0])
            alone.latents.append(latents)
            alone.decoded.append(decoded)
        return alone


@dataclass(slots=True)
class Scene:
    """A pipeline that threads share, with the pictures to compare with."""

    pipe: Pipeline
    alone: Alone
    differences: list[str] = field(default_factory=list)
    """Differences found in any thread."""

    def compare(self, what: str, actual: NDArray[Any], expected: NDArray[Any]) -> None:
        """Record a difference beyond rounding."""
        error = float(np.abs(actual - expected).max()) if actual.shape == expected.shape else np.inf
        if not error <= _TOLERANCE * max(float(np.abs(expected).max()), 1.0):
            self.differences.append(f"{what} differs by {error:.3g}")

    def step(self, action: Action, progress: Any) -> None:
        """Compare the latents after a step."""
        expected = self.alone.latents[action.seed][progress.step - 1]
        self.compare(
            f"{action.name}: latents of step {progress.step}",
            progress.latents()[0],
            expected,
        )

    def picture(self, action: Action, image: NDArray[Any], step: int = -1) -> None:
        """Compare a finished picture, or one that was stopped after a step, counted from 0."""
        self.compare(f"{action.name}: picture", image, self.alone.decoded[action.seed][step])


def stream(pipe: Pipeline, seed: int) -> Any:
    return pipe.stream(seed=seed, output_type="np", **REQUESTS[seed])


def _call(scene: Scene, action: Action) -> None:
    images = scene.pipe(seed=action.seed, output_type="np", **REQUESTS[action.seed]).images
    scene.picture(action, images[0])


def _iterator_alone(scene: Scene, action: Action) -> None:
    for progress in stream(scene.pipe, action.seed):
        scene.step(action, progress)


def _abandoned(scene: Scene, action: Action) -> None:
    for progress in stream(scene.pipe, action.seed):
        scene.step(action, progress)
        if progress.step > action.at:
            return


def _result(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        for progress in run:
            scene.step(action, progress)
            if progress.step > action.at:
                break
        scene.picture(action, run.result()[0].images[0])


def _stopped(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        step = -1
        for progress in run:
            step = progress.step - 1
            if step >= action.at:
                break
        scene.picture(action, run.stop()[0].images[0], step)


def _closed_elsewhere(scene: Scene, action: Action) -> None:
    run = stream(scene.pipe, action.seed)
    started = threading.Event()

    def close() -> None:
        started.wait()
        time.sleep(action.pause / 1000)
        run.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        for progress in run:
            if progress.step > action.at:
                started.set()
            scene.step(action, progress)
        scene.picture(action, run.result()[0].images[0])
    finally:
        started.set()
        closer.join()
        run.close()


def _after_block(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        steps = iter(run)
        progress = next(steps)
    if (more := next(steps, None)) is not None:
        scene.differences.append(f"after its block a run made step {more.step}")
    time.sleep(action.pause / 1000)
    scene.step(action, progress)


def _raising(scene: Scene, action: Action) -> None:
    kept: list[BaseException] = []
    try:
        for progress in stream(scene.pipe, action.seed):
            scene.step(action, progress)
            if progress.step > action.at:
                raise ValueError("of the caller")
    except ValueError as error:
        # A cycle: the traceback holds this frame, which holds the list.
        kept.append(error)


def _nested(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        for progress in run:
            if progress.step == action.at + 1:
                inner = Action(action.name, (action.seed + 1) % len(REQUESTS), 0, 0)
                _refusable(scene, lambda inner=inner: _call(scene, inner))  # type: ignore[misc]
                _refusable(scene, lambda inner=inner: _iterator_alone(scene, inner))  # type: ignore[misc]
            scene.step(action, progress)
        scene.picture(action, run.result()[0].images[0])


def _preview(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        for progress in run:
            decoded = scene.pipe.decode(progress.latents()[0])
            unit = np.clip(decoded.transpose(1, 2, 0) / 2 + 0.5, 0, 1)
            scene.picture(action, unit, progress.step - 1)


def _decode(scene: Scene, action: Action) -> None:
    step = action.at % len(scene.alone.latents[action.seed])
    decoded = scene.pipe.decode(scene.alone.latents[action.seed][step])
    scene.picture(action, np.clip(decoded.transpose(1, 2, 0) / 2 + 0.5, 0, 1), step)


def _handed_over(scene: Scene, action: Action) -> None:
    run = stream(scene.pipe, action.seed)
    next(iter(run))

    def finish() -> None:
        _refusable(scene, lambda: scene.picture(action, run.result()[0].images[0]))

    other = threading.Thread(target=finish)
    other.start()
    other.join()


def _old_progress(scene: Scene, action: Action) -> None:
    with stream(scene.pipe, action.seed) as run:
        steps = iter(run)
        first = next(steps)
        for _ in steps:
            _refusable(scene, lambda: scene.step(action, first))
        scene.picture(action, run.result()[0].images[0])
    _refusable(scene, lambda: scene.step(action, first))


ACTIONS: dict[str, Callable[[Scene, Action], None]] = {
    "call": _call,
    "iterator alone": _iterator_alone,
    "abandoned": _abandoned,
    "result": _result,
    "stopped": _stopped,
    "closed elsewhere": _closed_elsewhere,
    "after its block": _after_block,
    "exception kept": _raising,
    "nested": _nested,
    "preview": _preview,
    "decode": _decode,
    "handed over": _handed_over,
    "old progress": _old_progress,
}

Script = Sequence[Sequence[Action]]
"""Actions of each thread."""


def play(scene: Scene, script: Script, limit: float = LIMIT_SECONDS) -> tuple[Outcome, str]:
    """Run a script's threads to their end, and return its outcome with the first difference.

    Args:
        limit: seconds after which threads are given up as hanging.
    """
    scene.differences.clear()

    def act(actions: Sequence[Action]) -> None:
        for action in actions:
            time.sleep(action.pause / 1000)
            _refusable(scene, lambda action=action: ACTIONS[action.name](scene, action))  # type: ignore[misc]

    threads = [threading.Thread(target=act, args=(actions,), daemon=True) for actions in script]
    end = time.monotonic() + limit
    with _frequent_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
    if any(thread.is_alive() for thread in threads):
        return "hang", f"threads still run after {limit:.0f} s"
    if scene.differences:
        unexpected = any("raised" in difference for difference in scene.differences)
        return "exit 1" if unexpected else "wrong", scene.differences[0]
    # The pipeline is free again, and whole.
    _refusable(scene, lambda: _call(scene, Action("call", 0, 0, 0)), refusable=False)
    return ("wrong", scene.differences[0]) if scene.differences else ("held", "")


def _refusable(scene: Scene, act: Callable[[], None], *, refusable: bool = True) -> None:
    try:
        act()
    except RequestError as error:
        if not (refusable and any(refusal in str(error) for refusal in _REFUSALS)):
            scene.differences.append(f"raised {error}")
    except Exception as error:
        scene.differences.append(f"raised {type(error).__name__}: {error}")


@contextmanager
def _frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def draw(source: random.Random) -> Script:
    """Draw a script: two to four threads of one to three actions."""
    names = list(ACTIONS)
    return [
        [
            Action(
                source.choice(names),
                source.randrange(len(REQUESTS)),
                source.randrange(STEPS),
                source.randrange(4),
            )
            for _ in range(source.randint(1, 3))
        ]
        for _ in range(source.randint(2, 4))
    ]


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Play ``cases`` random scripts on the demo."""
    with (
        tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as folder,
        Pipeline.open(build_demo(Path(folder)), threads=1) as pipe,
    ):
        scene = Scene(pipe, Alone.of(pipe))
        for case in range(cases):
            script = draw(random.Random(f"{seed} {case}"))
            outcome, detail = play(scene, script)
            names = "; ".join(", ".join(action.name for action in actions) for actions in script)
            recorder.record(f"{len(script)} threads", outcome, f"{case}: {names}", detail)
            if outcome == "hang":
                return
