"""Speed of an engine with every shape fixed against a bucketed one, in alternating turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.gpu.bundles import bundle_of, sides
from benchmarks.gpu.launching import Launched, denoisers
from benchmarks.gpu.part_inputs import dims_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import CannotRunError, Record
from benchmarks.gpu.timing import interleaved, ratios, spread
from sd2rt.engines.bundle.engine_entry import EngineBackend
from sd2rt.engines.bundle.reader import open_bundle


def compare(settings: Settings, variant: str, backend: EngineBackend) -> Iterator[Record]:
    """Time one guided image on each engine, with and without a CUDA graph."""
    bundle = open_bundle(bundle_of(settings, variant))
    for side in sides(settings, variant):
        dims = dims_of(bundle.manifest, "denoiser", side)
        entries = denoisers(bundle, backend, lambda profile, dims=dims: profile.takes(dims))  # type: ignore[misc]
        if len(entries) < 2:
            raise CannotRunError(
                f"{len(entries)} engines of {variant} take one guided image of {side}x{side}: run the stage "
                f"engines-{backend} first"
            )
        with ExitStack() as stack:
            sides_of = {
                f"{entry.label}{'' if graph else ', no graph'}": stack.enter_context(
                    Launched(bundle, entry, side, 1, graph)
                )
                for entry in entries
                for graph in (True, False)
            }
            walls = interleaved({name: side.wall_ms for name, side in sides_of.items()}, settings.rounds)
            devices = interleaved({name: side.device_ms for name, side in sides_of.items()}, settings.rounds)
        first = next(iter(walls))
        for name, times in walls.items():
            yield {
                "engine": name,
                "side": side,
                "wall_ms": spread(times),
                "device_ms": spread(devices[name]),
                "times_of_the_first": ratios(walls[first], times),
            }
