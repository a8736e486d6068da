"""Images being made: the steps, one by one, and what comes of them."""

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
from sd2rt.runtime.denoising.batch import Batch
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
"""Of an output, in one line."""


@dataclass(frozen=True, slots=True, repr=False)
class Output(Generic[Images]):
    """The images of a call, in the order of its prompts, and the seed that makes each again alone; with a
    variation, that seed is every image's, and image i has ``variation_seed + i``.

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
        """The images side by side, with their seeds, for notebooks; None for latents, which are no picture."""
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


@dataclass(slots=True)
class Progress:
    """One denoiser call, just made. What it tells is of the moment: it is read before the next step is asked for."""

    batch: Batch
    done: int
    """Steps made over all images of the run."""
    total: int
    """Steps that all images of the run take together."""

    @property
    def step(self) -> int:
        """Calls made for the first image in the batch, from 1."""
        return self.batch.active[0].done

    @property
    def steps(self) -> int:
        """Calls that this image takes."""
        return self.batch.active[0].length

    @property
    def timestep(self) -> float:
        """The training timestep at which the network was called for it."""
        first = self.batch.active[0]
        return float(first.timesteps[first.done - 1])

    def latents(self) -> Latents:
        """A copy of the latents of the images in the batch, [B, C, h, w]."""
        return self.batch.latents()


class Run(Generic[Images]):
    """Images being made. Iterate for the steps (progress, preview, stopping), then take :meth:`result`.

    It has the networks to itself until its result is taken or it is closed, which leaving a ``with`` block does.
    """

    def __init__(self, networks: Networks, planned: Sequence[PlannedRequest[Images]], max_batch: int) -> None:
        self._networks = networks
        self._open = False
        self.planned = list(planned)
        networks.acquire()
        self._open = True
        try:
            self.seeds = [
                secrets.randbits(32) if each.request.seed is None else each.request.seed for each in planned
            ]
            self.pictures = [
                prepare(networks, each, seed) for each, seed in zip(self.planned, self.seeds, strict=True)
            ]
        except BaseException:
            self.close()
            raise
        trajectories = [t for group in self.pictures for picture in group for t in picture.trajectories]
        self.total = sum(t.length for t in trajectories)
        self._steps = _steps(networks, trajectories, max_batch, self.total)

    def __iter__(self) -> Iterator[Progress]:
        return self._steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the networks back; steps not made by now will not be."""
        if self._open:
            self._open = False
            self._networks.release()

    def result(self) -> list[Output[Images]]:
        """Make the steps that remain, decode, and close; one output for each request.

        Raises:
            EngineError: the device failed, or an image is not finite; the first one's, when all are done.
        """
        return _unless_failed(self.outcomes())

    def outcomes(self) -> list[Output[Images] | EngineError]:
        """As :meth:`result`, with a request's error in its place where one of its images is not finite.

        Raises:
            EngineError: the device failed.
        """
        for _ in self._steps:
            pass
        return self._decode()

    def stop(self) -> list[Output[Images]]:
        """Decode what there is so far, without the steps that remain, and close; raises as :meth:`result`."""
        self._steps.close()
        return _unless_failed(self._decode())

    def _decode(self) -> list[Output[Images] | EngineError]:
        if not self._open:
            raise RequestError("this run is closed: make another")
        try:
            return [
                self._output(each.request, seed, group)
                for each, seed, group in zip(self.planned, self.seeds, self.pictures, strict=True)
            ]
        finally:
            self.close()

    def _output(
        self, request: Request[Images], seed: int, group: list[ImageJob]
    ) -> Output[Any] | EngineError:
        for picture in group:
            if picture.error is not None:
                return picture.error
        seeds = [request.seeds_of(seed, index)[0] for index in range(len(group))]
        if request.output_type == "latent":
            return Output(np.stack([picture.latents() for picture in group]), seeds)
        try:
            units = [
                picture.finished(to_unit(self._networks.vae.decode(picture.latents()))) for picture in group
            ]
        except NotFiniteError as error:
            return error
        if request.output_type == "np":
            return Output(np.stack(units), seeds)
        return Output([to_pil(unit) for unit in units], seeds)


def _described(images: object) -> str:
    """Images in a few words: how many, and of which size."""
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


def _steps(
    networks: Networks, trajectories: list[Trajectory], max_batch: int, total: int
) -> Generator[Progress]:
    # Not a method: a generator that held its run would keep a forgotten one, and so the networks, from release.
    done = 0
    for group in batchable(trajectories):
        with closing(run_steps(networks.engine("denoiser"), group, max_batch)) as batches:
            for batch in batches:
                done += len(batch.active)
                yield Progress(batch, done, total)
