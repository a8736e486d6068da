"""Warm-up: launch what requests may run, so that steady traffic captures, compiles and allocates nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.part_interface import TEXT_LENGTH
from sd2rt.engines.bundle.sizes import LARGEST_SIDE, check_side
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.denoising.buckets import Bucket, Buckets, batch_sizes, sizes_between
from sd2rt.runtime.denoising.measured_call import launch, measured_seconds
from sd2rt.runtime.networks.networks import Networks

_LOG = logging.getLogger(__name__)

Advance = Callable[[int, int], object]
"""Called with the number of launches made and of all; what it raises ends the warm-up."""

_MOST = 64
"""Upper limit of prompts and of chunks: above what a request can mean, below what would take hours."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to be ready for.

    Raises:
        RequestError: a number is outside its range, or a size is none.
    """

    sizes: tuple[tuple[int, int], ...]
    """Width and height of images, in pixels."""
    prompts: int = 1
    """The most prompts composed in one image (``AND``)."""
    chunks: int = 1
    """The longest prompt, in chunks of 77 tokens."""
    image_inputs: bool = False
    """Requests with input images, which need the encoder, and for a depth bundle the depth estimator."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        sizes: Sequence[tuple[int, int]] | None,
        prompts: Any,
        chunks: Any,
        image_inputs: bool,
    ) -> Traffic:
        """Check what a caller passes; without sizes, the bundle's first native size is used."""
        checked = tuple(
            _size(manifest, size) for size in (manifest.native_sizes[:1] if sizes is None else sizes)
        )
        if not checked:
            raise RequestError("no size to warm up for: give at least one, or None for the bundle's own")
        for name, value in (("prompts", prompts), ("chunks", chunks)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
                raise RequestError(
                    f"{name} is {shown(repr_of(value))}: give a whole number from 1 to {_MOST}"
                )
        return cls(tuple(dict.fromkeys(checked)), prompts, chunks, bool(image_inputs))


class WarmUp:
    """Launches of one warm-up. No run may be in flight.

    Args:
        buckets: filled with the buckets that are ready; None on CPUs, where sizes are exact, and one call of one
            guided image loads and compiles what there is to load.
    """

    def __init__(self, networks: Networks, buckets: Buckets | None, traffic: Traffic) -> None:
        self._networks, self._buckets, self._traffic = networks, buckets, traffic
        self._done = self._total = 0
        self._advance: Advance | None = None

    def run(self, advance: Advance | None) -> None:
        """Make all launches. If it is interrupted, what was launched is ready, and the rest is not.

        Raises:
            EngineError: the device failed or ran out of memory.
        """
        self._advance = advance
        parts, candidates = list(self._parts()), list(self._candidates())
        self._total = len(parts) + len(candidates)
        if self._buckets is not None:
            self._total += len(parts) + 2 * len(candidates)
        try:
            # The memory for activations takes its final size first: a graph that was captured before is lost.
            for call in parts:
                self._make(call)
            for bucket in sorted(candidates, reverse=True):
                self._make(partial(self._launch, bucket, 1))
            if self._buckets is not None:
                self._measure(candidates)
                # A size in between may have moved it once more.
                for bucket in self._buckets.measured:
                    self._make(partial(self._launch, bucket, 2))
                for call in parts:
                    self._make(call, calls=2)
        finally:
            self._networks.keep_sessions()

    def _make(self, call: Callable[[], object], calls: int = 1) -> None:
        # Other bundles may share the device's turns.
        with self._networks.turns.turn():
            for _ in range(calls):
                call()
        self._done += 1
        if self._advance is not None:
            self._advance(self._done, max(self._done, self._total))

    def _launch(self, bucket: Bucket, calls: int) -> None:
        launch(self._networks.engine("denoiser"), bucket.dims, calls)

    def _measure(self, candidates: Sequence[Bucket]) -> None:
        """Measure the candidates, and sizes between them that save enough."""
        for bucket in candidates:
            self._make(partial(self._measured, bucket))
        further = [
            bucket
            for like in dict.fromkeys(_without_samples(bucket) for bucket in candidates)
            for bucket in self._between(like, candidates)
        ]
        self._total += 2 * len(further)
        for bucket in further:
            self._make(partial(self._measured, bucket))

    def _measured(self, bucket: Bucket) -> None:
        assert self._buckets is not None
        # An interruption in the middle leaves a bucket unknown, not one that is not captured.
        self._launch(bucket, 2)
        denoiser = self._networks.engine("denoiser")
        self._buckets.measure(bucket, measured_seconds(denoiser, bucket.dims))
        denoiser.keep_sessions()

    def _between(self, like: Bucket, candidates: Sequence[Bucket]) -> Iterator[Bucket]:
        assert self._buckets is not None
        seconds = {
            bucket.samples: self._buckets.measured[bucket]
            for bucket in candidates
            if _without_samples(bucket) == like
        }
        for samples in sizes_between(seconds):
            bucket = replace(like, rows=like.rows * samples, samples=samples)
            if self._networks.engine("denoiser").takes(bucket.dims):
                yield bucket

    def _candidates(self) -> Iterator[Bucket]:
        """Buckets that the denoiser takes: powers of two of samples, of equally many rows each."""
        takes = self._networks.engine("denoiser").takes
        for h, w in dict.fromkeys(latent_size(self._networks, *size) for size in self._traffic.sizes):
            if self._buckets is None:
                yield Bucket(2, 1, 1, TEXT_LENGTH, h, w)
                continue
            for samples in batch_sizes(self._buckets.limit):
                for prompts in sorted({1, self._traffic.prompts}):
                    # A composition of prompts has an unconditional row, so one row for each is too few.
                    for each in range(1 if prompts == 1 else 2, prompts + 2):
                        for chunks in range(1, self._traffic.chunks + 1):
                            bucket = Bucket(samples * each, samples, prompts, TEXT_LENGTH * chunks, h, w)
                            if takes(bucket.dims):
                                yield bucket

    def _parts(self) -> Iterator[Callable[[], object]]:
        """Calls of the other parts."""
        networks, latents = self._networks, self._networks.bundle.manifest.latents
        for width, height in self._traffic.sizes:
            h, w = latents.sides(width, height)
            zeros = np.zeros((latents.channels, h, w), np.float32)
            yield partial(networks.vae.decode, zeros)
            if self._traffic.image_inputs and "encoder" in networks.bundle.manifest.parts:
                image = np.zeros((3, h * latents.vae_factor, w * latents.vae_factor), np.float32)
                yield partial(networks.vae.encode, image)
        yield networks.text.launch
        if self._traffic.image_inputs and networks.bundle.manifest.depth_input is not None:
            from PIL import Image

            black = Image.new("RGB", networks.bundle.manifest.depth_input.size)
            yield partial(networks.depth, black)


def latent_size(networks: Networks, width: int, height: int) -> tuple[int, int]:
    """Height and width of the latents that a denoiser call has for images of this size in pixels."""
    manifest = networks.bundle.manifest
    h, w = manifest.latents.sides(width, height)
    # The upscaler denoises in tiles.
    return (h, w) if manifest.low_resolution is None else (min(h, networks.tile), min(w, networks.tile))


def _without_samples(bucket: Bucket) -> Bucket:
    """The bucket's sizes for one sample."""
    return replace(bucket, rows=bucket.rows // bucket.samples, samples=1)


def _size(manifest: Manifest, size: Any) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(type(side) is int for side in size):
        raise RequestError(f"size {shown(repr_of(size))} is not a pair of width and height in pixels")
    for name, side in zip(("width", "height"), size, strict=True):
        if manifest.low_resolution is None:
            check_side(name, side, manifest.latents.size_multiple)
        elif not 1 <= side <= LARGEST_SIDE * manifest.latents.vae_factor:
            raise RequestError(f"{name} {side} is out of range")
    return size[0], size[1]
