"""A run of requests: its steps one by one, and its output."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.denoising.batch import Batch, Use
from sd2rt.runtime.denoising.stepper import run_steps
from sd2rt.runtime.denoising.trajectory import Latents, Trajectory, batchable
from sd2rt.runtime.images.write import NotFiniteError, to_pil, to_unit, write_png
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.networks import Networks
from sd2rt.runtime.pipeline.prepare import prepare
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image


_SEEDS_SHOWN = 8
"""Seeds in the ``repr`` of an output."""


@dataclass(frozen=True, slots=True, repr=False)
class Output(Generic[Images]):
    """Images of a call in the order of its prompts, with the seed that reproduces each.

    With a variation all images have the same seed, and image i has ``variation_seed + i``.

    ``images`` is a list of PIL images, or an array: [n, H, W, 3] in [0, 1] for output type ``np``,
    [n, C, h, w] for ``latent``.
    """

    images: Images
    seeds: list[int]

    def __repr__(self) -> str:
        count, shown = len(self.seeds), ", ".join(map(str, self.seeds[:_SEEDS_SHOWN]))
        more = ", ..." if count > _SEEDS_SHOWN else ""
        return f"Output({_described(self.images)}, seeds=[{shown}{more}])"

    def _repr_html_(self) -> str | None:
        """Show the images side by side with their seeds, in notebooks; None for latents."""
        images: object = self.images
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3:
                return None
            images = [to_pil(unit) for unit in images]
        assert isinstance(images, list)
        return "".join(
            f'<figure style="display: inline-block; margin: 4px"><img src="data:image/png;base64,{_base64(image)}">'
            f"<figcaption>seed {seed}</figcaption></figure>"
            for image, seed in zip(images, self.seeds, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run after a denoiser call. Its latents can be read and replaced until the next one."""

    batch: Batch
    done: int
    """Steps made so far, over all images of the run."""
    total: int
    """Steps of the whole run, over all images."""
    _launches: int | None
    """Launches of the batch when this was made: it is out of date once they differ."""

    @property
    def step(self) -> int:
        """Steps made for the first image in the batch, counted from 1."""
        return self.batch.active[0].done

    @property
    def steps(self) -> int:
        """Steps that the first image in the batch takes in total."""
        return self.batch.active[0].length

    @property
    def timestep(self) -> float:
        """Training timestep of the first image's last call."""
        first = self.batch.active[0]
        return float(first.timesteps[first.done - 1])

    def latents(self) -> Latents:
        """Copy the latents of the images in the batch, [B, C, h, w].

        Raises:
            RequestError: the run has made another step, or is closed.
        """
        with self.batch.use():
            self._require_current()
            return self.batch.latents()

    def replace(self, latents: Latents) -> None:
        """Replace the latents of the images in the batch, [B, C, h, w], for the next step.

        Raises:
            RequestError: the shape differs, the run has made another step, or it is closed.
        """
        with self.batch.use():
            self._require_current()
            self.batch.replace(latents)

    def _require_current(self) -> None:
        if self.batch.launches != self._launches:
            raise RequestError("the run has made another step: use the latents of a step before the next one")


class Run(Generic[Images]):
    """Generation of the images of one or several requests.

    Iterate over its steps (for progress, previews or stopping early), then take :meth:`result`. It has exclusive use
    of the networks until its result is taken, it is closed, its ``with`` block ends, a step fails, or neither it nor
    an iterator over its steps is referenced any more. Threads may share it: they take turns.
    """

    def __init__(self, networks: Networks, planned: Sequence[PlannedRequest[Images]], max_batch: int) -> None:
        self._networks = networks
        self.planned = list(planned)
        self._lease = networks.leases.acquire()
        try:
            self.seeds = [
                secrets.randbits(32) if each.request.seed is None else each.request.seed for each in planned
            ]
            with self._lease.use():
                self.jobs = [
                    prepare(networks, each, seed) for each, seed in zip(self.planned, self.seeds, strict=True)
                ]
        except BaseException:
            self.close()
            raise
        trajectories = [t for group in self.jobs for job in group for t in job.trajectories]
        self.total = sum(t.length for t in trajectories)
        self._batch: Batch | None = None
        self._steps = _steps(networks, trajectories, max_batch, self.total, self._lease.use)

    def __iter__(self) -> Iterator[Progress]:
        """Iterate over the remaining steps; ends early if the run is closed."""
        return _Steps(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Its batches know the lease, and callers may keep them.
        if hasattr(self, "_lease"):
            self.close()

    def close(self) -> None:
        """Release the networks and skip the remaining steps; another thread's step ends first.

        Does not wait. Any thread may call it.
        """
        self._lease.end()

    def _step(self) -> Progress | None:
        """Make a step; None if there is none left or the run is closed."""
        with self._networks.leases.turn():
            if self._lease.ended:
                return None
            with self._lease.use():
                try:
                    progress = next(self._steps, None)
                except BaseException:
                    # The latents are incomplete: no result may be made of them.
                    self.close()
                    raise
                if progress is not None:
                    self._batch = progress.batch
                return progress

    def result(self) -> list[Output[Images]]:
        """Make the remaining steps, decode, close, and return one output per request.

        Raises:
            EngineError: the device failed, or an image is not finite. The first error is raised, once all images are
                done.
        """
        return _unless_failed(self.outcomes())

    def outcomes(self) -> list[Output[Images] | EngineError]:
        """Like :meth:`result`, but with an error as the outcome of a request if one of its images is not finite.

        Raises:
            EngineError: the device failed.
        """
        while self._step() is not None:
            pass
        return self._decode()

    def stop(self) -> list[Output[Images]]:
        """Skip the remaining steps, decode the current latents, and close; raises like :meth:`result`."""
        with self._lease.use():
            self._steps.close()
            if self._batch is not None:
                self._batch.collect(everything=True)
        return _unless_failed(self._decode())

    def _decode(self) -> list[Output[Images] | EngineError]:
        try:
            with self._lease.use():
                return [
                    self._output(each.request, seed, group)
                    for each, seed, group in zip(self.planned, self.seeds, self.jobs, strict=True)
                ]
        finally:
            self.close()

    def _output(
        self, request: Request[Images], seed: int, group: list[ImageJob]
    ) -> Output[Any] | EngineError:
        for job in group:
            if job.error is not None:
                return job.error
        seeds = [request.seeds_of(seed, index)[0] for index in range(len(group))]
        if request.output_type == "latent":
            return Output(np.stack([job.latents() for job in group]), seeds)
        try:
            units = [job.finish(to_unit(self._networks.vae.decode(job.latents()))) for job in group]
        except NotFiniteError as error:
            return error
        if request.output_type == "np":
            return Output(np.stack(units), seeds)
        return Output([to_pil(unit) for unit in units], seeds)


def _described(images: object) -> str:
    """Summarize images: their number and size."""
    if isinstance(images, np.ndarray):
        return f"{images.dtype.name}{list(images.shape)}"
    assert isinstance(images, list)
    sizes = {f"{image.width}x{image.height}" for image in images}
    return (
        f"{len(images)} image{'' if len(images) == 1 else 's'} of {' and '.join(sorted(sizes)) or 'no size'}"
    )


def _base64(image: Image) -> str:
    file = BytesIO()
    write_png(image, file, {})
    return b64encode(file.getvalue()).decode()


def _unless_failed(outcomes: list[Output[Images] | EngineError]) -> list[Output[Images]]:
    outputs: list[Output[Images]] = []
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            raise outcome
        outputs.append(outcome)
    return outputs


class _Steps(Iterator[Progress]):
    """Iterator over the remaining steps of a run, which it keeps alive."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run

    def __next__(self) -> Progress:
        progress = self._run._step()
        if progress is None:
            raise StopIteration
        return progress


def _steps(
    networks: Networks, trajectories: list[Trajectory], max_batch: int, total: int, use: Use
) -> Generator[Progress]:
    # Not a method: the generator would keep its run alive, and a run that is dropped must release the networks.
    done = 0
    for group in batchable(trajectories):
        with closing(run_steps(networks.engine("denoiser"), group, max_batch, use)) as batches:
            for batch in batches:
                done += len(batch.active)
                yield Progress(batch, done, total, batch.launches)
