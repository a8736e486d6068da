"""Images of a denoiser call: the default, and the choice by measured cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from sd2rt.engines.bundle.part_interface import TEXT_LENGTH
from sd2rt.engines.errors import OutOfMemoryError
from sd2rt.runtime.denoising.buckets import Bucket, Buckets, batch_sizes
from sd2rt.runtime.denoising.measured_call import launch, measured_seconds
from sd2rt.runtime.networks.networks import Networks
from sd2rt.runtime.pipeline.step_loop import Lane
from sd2rt.runtime.pipeline.warm_up import latent_size
from sd2rt.runtime.scheduling.cost_curve import CostCurve

_LOG = logging.getLogger(__name__)

DEFAULT_BATCH = 4
"""Images per denoiser call: on a CPU, more cost memory without a gain in speed."""
_LARGEST = 16
_SECONDS = 10.0
"""No larger batch is measured after this time."""
_FALLING = 0.95
"""A larger batch is measured if an image costs less than this share of its cost in the best one so far."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Images of one run, and of different runs, in a call, with the seconds of a call by images if measured."""

    group: int
    shared: int
    seconds: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def choose(cls, networks: Networks, asked: int | Literal["auto"] | None) -> BatchSize:
        """Choose the sizes: as asked for, by measured costs, or four.

        On a CPU, images of different runs in a call save no time, and would differ by rounding. Those of one run
        would too if their number was measured, since another start could measure another one: it stays the default.

        Raises:
            EngineError: the device failed.
        """
        cuda = networks.device.kind == "cuda"
        default = min(DEFAULT_BATCH, networks.max_batch or DEFAULT_BATCH)
        if asked != "auto":
            group = default if asked is None else asked
            return cls(group, group if cuda else 1)
        curve = measured_costs(networks, min(_LARGEST, networks.max_batch or _LARGEST))
        if not curve.measured:
            _LOG.warning("no engine runs the bundle's default size: batch size %d, not measured", default)
            return cls(default, default if cuda else 1)
        best = curve.best_batch(_LARGEST)
        chosen = cls(best, best, curve.measured) if cuda else cls(default, 1, curve.measured)
        costs = ", ".join(f"{batch}: {1e3 * seconds:.4g}" for batch, seconds in chosen.seconds.items())
        _LOG.info(
            "batch size %d, %d of one run; milliseconds of a call by images: %s",
            chosen.shared,
            chosen.group,
            costs,
        )
        return chosen

    def lanes(self, networks: Networks, buckets: Buckets | None) -> dict[Lane, dict[int, float]]:
        """Seconds of a call by images, in each lane of the scheduler that was measured.

        On a GPU a call costs what the size that it is padded to costs.
        """
        channels = networks.bundle.manifest.latents.channels
        lanes: dict[Lane, dict[int, float]] = {}
        if self.seconds:
            h, w = latent_size(networks, *networks.bundle.manifest.native_sizes[0])
            lanes[(channels, h, w), TEXT_LENGTH] = padded = dict(self.seconds)
            if buckets is not None:
                for batch in range(max(self.seconds) - 1, 0, -1):
                    padded.setdefault(batch, padded[batch + 1])
        measured = () if buckets is None else tuple(buckets.measured)
        for like in {Bucket(2, 1, 1, each.length, each.h, each.w) for each in measured}:
            costs = lanes[(channels, like.h, like.w), like.length] = {}
            for batch in range(1, self.group + 1):
                assert buckets is not None
                seconds = buckets.seconds(replace(like, samples=batch, rows=2 * batch))
                if seconds is not None:
                    costs[batch] = seconds
        return lanes


def measured_costs(networks: Networks, limit: int) -> CostCurve:
    """Measure calls of 1, 2, 4, ... guided images of the bundle's default size, as long as an image gets cheaper."""
    denoiser, curve, start = networks.engine("denoiser"), CostCurve(), time.monotonic()
    h, w = latent_size(networks, *networks.bundle.manifest.native_sizes[0])
    least = float("inf")
    for batch in batch_sizes(limit):
        choices = (Bucket(batch * each, batch, 1, TEXT_LENGTH, h, w).dims for each in (2, 1))
        dims = next((dims for dims in choices if denoiser.takes(dims)), None)
        if dims is None:
            continue
        try:
            # Other bundles may share the device's turns.
            with networks.turns.turn():
                # A graph is captured at the second launch.
                launch(denoiser, dims, 2 if networks.device.kind == "cuda" else 1)
                seconds = measured_seconds(denoiser, dims)
        except OutOfMemoryError as error:
            if not curve.measured:
                raise
            _LOG.warning("%d images in a call are not measured: %s", batch, error)
            break
        curve.measure(batch, seconds)
        falls = seconds / batch < _FALLING * least
        least = min(least, seconds / batch)
        if not falls or time.monotonic() - start > _SECONDS:
            break
    return curve
