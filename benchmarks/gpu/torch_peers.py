"""Steps of diffusers' UNet in PyTorch against sd2rt's engines, in one process and in alternating turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.gpu.bundles import bundle_of, sides
from benchmarks.gpu.launching import LAUNCHES, Launched, denoisers
from benchmarks.gpu.part_inputs import dims_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import COMPILED, CannotRunError, Record
from benchmarks.gpu.timing import interleaved, ratios, spread
from sd2rt.engines.bundle.engine_entry import EngineBackend
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.errors import Sd2rtError

Step = Callable[[], float]
"""Measures a step's wall time in milliseconds."""


def eager(settings: Settings, variant: str) -> Iterator[Record]:
    """Time diffusers' UNet with guidance at every size and batch, then whole images of its pipeline."""
    unet, bundle = _unet(settings, variant), _bundle(settings, variant)
    for side in sides(settings, variant):
        for batch in settings.batches:
            # Contiguous weights here; the second pass converts them to channels_last.
            steps: dict[str, Step] = {"diffusers eager": _stepper(settings, unet, bundle, side, batch, False)}
            yield from _compared(settings, bundle, steps, side, batch)
    import torch

    unet.to(memory_format=torch.channels_last)
    for side in sides(settings, variant):
        for batch in settings.batches:
            steps = {"diffusers eager, channels_last": _stepper(settings, unet, bundle, side, batch, True)}
            yield from _compared(settings, bundle, steps, side, batch)
    del unet
    yield from _images(settings, variant)


def compiled(settings: Settings, variant: str) -> Iterator[Record]:
    """Time the UNet under torch.compile; compilation is recorded apart."""
    import torch

    unet, bundle = _unet(settings, variant), _bundle(settings, variant)
    unet.to(memory_format=torch.channels_last)
    for side in sides(settings, variant):
        for batch in settings.compile_batches:
            torch._dynamo.reset()
            # A dry run tests this script, not the compiler.
            compile_options = {"backend": "eager"} if settings.device == "cpu" else {"mode": "max-autotune"}
            step = _stepper(settings, unet, bundle, side, batch, True, compile_options)
            began = time.perf_counter()
            step()
            yield {"compile": side, "batch": batch, "seconds": round(time.perf_counter() - began, 1)}
            yield from _compared(settings, bundle, {"diffusers torch.compile": step}, side, batch)


def _unet(settings: Settings, variant: str) -> Any:
    import torch

    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError(f"torch {torch.__version__} sees no GPU")
    source = settings.checkpoint(variant)
    if not source.is_dir():
        raise CannotRunError(f"no checkpoint of {variant}: run the stage checkpoint first")
    dtype = torch.float16 if settings.device == "cuda" else torch.float32
    unet = open_checkpoint(str(source), variant=variant).unet(dtype).to(settings.device).eval()
    return unet.requires_grad_(False)


def _bundle(settings: Settings, variant: str) -> Bundle:
    return open_bundle(bundle_of(settings, variant))


def _stepper(
    settings: Settings,
    unet: Any,
    bundle: Bundle,
    side: int,
    batch: int,
    channels_last: bool,
    compile_options: dict[str, Any] | None = None,
) -> Step:
    """A step as in diffusers' loop without the scheduler: the UNet on two rows of each image, then guidance."""
    import torch

    latent, width = side // bundle.manifest.latents.vae_factor, bundle.manifest.embeddings.width
    device, dtype = settings.device, unet.dtype
    x = torch.randn(2 * batch, unet.config.in_channels, latent, latent, device=device, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    text = torch.randn(2 * batch, 77, width, device=device, dtype=dtype)
    times = torch.full((2 * batch,), 501.0, device=device)

    def step(x: Any, times: Any, text: Any) -> Any:
        uncond, cond = unet(x, times, text, return_dict=False)[0].chunk(2)
        return uncond + 7.5 * (cond - uncond)

    run: Any = step if compile_options is None else torch.compile(step, fullgraph=False, **compile_options)
    count = LAUNCHES if settings.device == "cuda" else 2

    def wait() -> None:
        if settings.device == "cuda":
            torch.cuda.synchronize()

    def milliseconds() -> float:
        with torch.inference_mode():
            wait()
            began = time.perf_counter()
            for _ in range(count):
                run(x, times, text)
            wait()
        return (time.perf_counter() - began) / count * 1e3

    return milliseconds


def _compared(
    settings: Settings, bundle: Bundle, steps: dict[str, Step], side: int, batch: int
) -> Iterator[Record]:
    """Compare PyTorch's steps with the narrowest engine of each backend that takes these shapes."""
    with ExitStack() as stack:
        sides_of = dict(steps)
        for backend in COMPILED if settings.device == "cuda" else ():
            try:
                sides_of[f"sd2rt {backend}"] = stack.enter_context(
                    _engine(bundle, backend, side, batch)  # type: ignore[arg-type]
                ).wall_ms
            except (Sd2rtError, LookupError) as error:
                yield {"peer": f"sd2rt {backend}", "side": side, "batch": batch, "refused": str(error)}
        times_by_peer = interleaved(sides_of, settings.rounds)
    first = next(iter(times_by_peer))
    for name, times in times_by_peer.items():
        yield {
            "peer": name,
            "side": side,
            "batch": batch,
            "it_s": spread((batch / t * 1e3 for t in times), 3),
            "wall_ms": spread(times),
            "times_as_fast": ratios(times, times_by_peer[first]),
            "as": first,
        }


def _engine(bundle: Bundle, backend: EngineBackend, side: int, batch: int) -> Launched:
    """Open the engine with the narrowest fitting profile.

    Raises:
        LookupError: no engine takes these shapes.
    """
    dims = dims_of(bundle.manifest, "denoiser", side, batch)
    entries = denoisers(bundle, backend, lambda profile: profile.takes(dims))
    if not entries:
        raise LookupError(f"no engine for {batch} guided images of {side}x{side}")
    narrowest = min(entries, key=lambda entry: min(p.width for p in entry.profiles if p.takes(dims)))
    return Launched(bundle, narrowest, side, batch)


def _images(settings: Settings, variant: str) -> Iterator[Record]:
    import torch
    import transformers

    from sd2rt.export.checkpoints.checkpoint import open_checkpoint
    from sd2rt.export.reference import reference_pipeline

    transformers.logging.set_verbosity_error()
    checkpoint = open_checkpoint(str(settings.checkpoint(variant)), variant=variant)
    pipeline = reference_pipeline(checkpoint, task="text-to-image")
    if settings.device == "cuda":
        pipeline = pipeline.to("cuda", torch.float16)
    for side in sides(settings, variant):

        def image(side: int = side) -> float:
            began = time.perf_counter()
            # The call returns when the image is on the host.
            pipeline(
                "a lighthouse on a cliff",
                num_inference_steps=settings.steps,
                guidance_scale=7.5,
                width=side,
                height=side,
                generator=torch.Generator().manual_seed(1),
            )
            return time.perf_counter() - began

        times = interleaved({"diffusers": image}, max(3, settings.rounds // 2))["diffusers"]
        peak = torch.cuda.max_memory_allocated() / 1e9 if settings.device == "cuda" else None
        yield {
            "images": "diffusers eager",
            "side": side,
            "steps": settings.steps,
            "seconds": spread(times),
            "device_peak_gb": peak,
        }
