"""Compare latents of the grid a1111 with AUTOMATIC1111's samplers as plain loops, on the same networks.

    python -m benchmarks.compatibility [--steps 8 17 20 30] [--bundle demo] [--output]

Every sampler of AUTOMATIC1111 1.10 with each of its schedule types, from text and from an image.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.compatibility import a1111_reference as reference
from benchmarks.compatibility.k_diffusion_levels import signal_of
from benchmarks.compatibility.k_diffusion_loops import Array
from benchmarks.recording import machine, report
from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.errors import RequestError
from sd2rt.runtime import Pipeline, Request
from sd2rt.runtime.denoising.batch_rows import BatchRows
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.metadata.sampler_names import find_sampler
from sd2rt.runtime.rng.torch_cpu import Generator

STEPS = (8, 17, 20, 30)
STRENGTH = 0.6
SEED = 5
SIDE = 64
"""Pixels along a side; the mathematics is that of any size."""
SAMPLERS = (*reference.SAMPLERS, *reference.LISTED)

Cases = dict[str, list[float | str]]
"""By the start, ``text`` or ``image``: the difference for each number of steps, or the refusal."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compatibility", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--bundle", default="demo", help="bundle in the cache")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    report.add_output(parser)
    options = parser.parse_args()
    # torchsde reports places that float32 puts beyond the ends of the path, and moves them there.
    warnings.filterwarnings("ignore", message="Should have t")
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "benchmark": "compatibility",
        "machine": machine.facts(),
        "steps": options.steps,
        "strength": STRENGTH,
        "bundle": options.bundle,
        "samplers": {},
    }
    with report.interruptible(result, parser.prog):
        for sampler in options.samplers:
            result["samplers"][sampler] = measure(options.bundle, options.steps, sampler)
    result["load_average_after"] = machine.load_average()
    report.finish(result, ("sampler", "schedule", "largest"), rows(result), options.output)


def rows(result: dict[str, Any]) -> list[list[object]]:
    return [
        [sampler, schedule, f"{largest(cases):.1e}"]
        for sampler, schedules in result["samplers"].items()
        for schedule, cases in schedules.items()
    ]


def largest(cases: Cases) -> float:
    """Largest difference of cases that are not refused."""
    return max((each for values in cases.values() for each in values if isinstance(each, float)), default=0.0)


def measure(bundle: str, counts: list[int], sampler: str) -> dict[str, Cases]:
    """Compare a sampler with each schedule type."""
    cases: dict[str, Cases] = {}
    with Pipeline.open(bundle, threads=1) as pipe, Pipeline.open(bundle, threads=1) as networks:
        for schedule in reference.SCHEDULES if sampler in reference.SAMPLERS else ("Automatic",):
            # The same rule by another name.
            twin = "Uniform" if schedule == "Normal" else "Automatic"
            if schedule == "Normal" or (
                sampler in reference.SAMPLERS and schedule == reference.SAMPLERS[sampler].automatic
            ):
                cases[schedule] = cases[twin]
                continue
            cases[schedule] = {
                start: [
                    compared(pipe, networks, sampler, schedule, steps, start == "image") for steps in counts
                ]
                for start in ("text", "image")
            }
            print(f"{bundle}: {sampler}, {schedule}: {largest(cases[schedule]):.1e}", flush=True)
    return cases


def compared(
    pipe: Pipeline, networks: Pipeline, sampler: str, schedule: str, steps: int, from_image: bool
) -> float | str:
    """Difference to two digits, or the refusal."""
    try:
        return float(f"{difference(pipe, networks, sampler, schedule, steps, from_image):.1e}")
    except RequestError as error:
        return str(error)


def difference(
    pipe: Pipeline,
    networks: Pipeline,
    sampler: str,
    schedule: str,
    steps: int,
    from_image: bool,
    *,
    masked: bool = False,
) -> float:
    """Largest difference of the latents, relative to the largest value."""
    request = request_of(pipe, sampler, schedule, steps, from_image, masked=masked)
    (output,) = pipe.generate([request])
    actual = np.asarray(output.images[0], np.float64)
    (job,) = networks.prepare(request, SEED)
    (trajectory,) = job.trajectories
    generator = Generator(SEED)

    def normals() -> Iterator[Array]:
        while True:
            yield generator.randn(actual.shape).astype(np.float64)

    noise = networks.manifest.noise
    image = trajectory.image_latents
    run = reference.Run(
        steps=steps,
        network=network_of(networks, trajectory),
        v_prediction=noise.prediction_type == "v_prediction",
        signal=signal_of((noise.beta_start, noise.beta_end)),
        normals=normals(),
        seed=SEED,
        image=None if image is None else image.astype(np.float64),
        strength=STRENGTH,
        mask=job.conditioning.latent_mask.astype(np.float64) if masked else None,
    )
    expected = reference.latents(sampler, schedule, run)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def request_of(
    pipe: Pipeline, sampler: str, schedule: str, steps: int, from_image: bool, *, masked: bool = False
) -> Request[Any]:
    """Make the request that a picture of AUTOMATIC1111's would be imported as."""
    found = find_sampler(sampler, schedule)
    assert found is not None
    width = next(tensor for tensor in pipe.manifest.parts["denoiser"].inputs if tensor.name == "text").shape[
        -1
    ]
    text = np.random.default_rng(2).standard_normal((77, int(width))).astype(np.float32)
    fields: dict[str, Any] = {
        "prompt_embeds": text,
        "num_inference_steps": steps,
        "guidance_scale": 1.0,
        "seed": SEED,
        "output_type": "latent",
        **found.fields,
    }
    if from_image:
        pixels = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[SIDE // 4 : -SIDE // 4, : SIDE // 2] = True
        return Request(image=pixels, mask_image=mask if masked else None, strength=STRENGTH, **fields)
    return Request(width=SIDE, height=SIDE, **fields)


def network_of(pipe: Pipeline, trajectory: Trajectory) -> reference.Network:
    """Return the denoiser's guided output; its sampling update is replaced by the output itself."""
    rows_ = BatchRows.from_samples([trajectory.texts[0]])
    channels, h, w = trajectory.latents.shape
    session = pipe.engine("denoiser").session({"B": 1, **rows_.dims, "h": h, "w": w})
    rows_.write(session.buffers, None)
    update = np.zeros((1, STATE_SLOTS, STATE_SLOTS + 2), np.float32)
    update[0, 0, STATE_SLOTS] = 1
    weights = np.zeros((1, STATE_SLOTS), np.float32)
    weights[0, 0] = 1
    session.buffers["update"].write(update)
    session.buffers["weights"].write(weights)
    session.buffers["guidance"].write(trajectory.guidance[:1])
    session.buffers["noise"].write(np.zeros((1, channels, h, w), np.float32))
    state = np.zeros((1, STATE_SLOTS, channels, h, w), np.float32)

    def network(x: Array, timestep: float) -> Array:
        state[0, 0] = x
        session.buffers["state"].write(state)
        session.buffers["timestep"].write(np.array([timestep], np.float32))
        session.launch()
        output: Array = session.buffers["state_out"].read()[0, 0].astype(np.float64)
        return output

    return network


if __name__ == "__main__":
    main()
