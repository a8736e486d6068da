"""The same step by PyTorch, as diffusers' users run it, beside sd2rt's engines in one process and in turns."""

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
"""Milliseconds of a step by the wall."""


def eager(settings: Settings, variant: str) -> Iterator[Record]:
    """diffusers' UNet with guidance, at every size and batch; and its pipeline's whole images."""
    unet, bundle = _unet(settings, variant), _bundle(settings, variant)
    for side in sides(settings, variant):
        for batch in settings.batches:
            # Weights stay as they are here: whether they are channels_last too is the second side's difference.
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
    """torch.compile, whose time is told and is no part of the speed."""
    import torch

    unet, bundle = _unet(settings, variant), _bundle(settings, variant)
    unet.to(memory_format=torch.channels_last)
    for side in sides(settings, variant):
        for batch in settings.compile_batches:
            torch._dynamo.reset()
            # A dry run is to see that the script works, and not that the compiler does.
            how = {"backend": "eager"} if settings.device == "cpu" else {"mode": "max-autotune"}
            step = _stepper(settings, unet, bundle, side, batch, True, how)
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
        raise CannotRunError(f"there is no checkpoint of {variant}: run the stage checkpoint first")
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
    """The UNet on two rows of each image, and guidance: what diffusers' loop does, without its scheduler."""
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
    """PyTorch's sides, and the fastest kind of engine of each backend that the bundle has for this."""
    with ExitStack() as stack:
        sides_of = dict(steps)
        for backend in COMPILED if settings.device == "cuda" else ():
            try:
                sides_of[f"sd2rt {backend}"] = stack.enter_context(
                    _engine(bundle, backend, side, batch)  # type: ignore[arg-type]
                ).wall_ms
            except (Sd2rtError, LookupError) as error:
                yield {"peer": f"sd2rt {backend}", "side": side, "batch": batch, "refused": str(error)}
        found = interleaved(sides_of, settings.rounds)
    first = next(iter(found))
    for name, taken in found.items():
        yield {
            "peer": name,
            "side": side,
            "batch": batch,
            "it_s": spread((batch / t * 1e3 for t in taken), 3),
            "wall_ms": spread(taken),
            "times_as_fast": ratios(taken, found[first]),
            "as": first,
        }


def _engine(bundle: Bundle, backend: EngineBackend, side: int, batch: int) -> Launched:
    """Raises LookupError where no engine takes this."""
    dims = dims_of(bundle.manifest, "denoiser", side, batch)
    found = denoisers(bundle, backend, lambda profile: profile.takes(dims))
    if not found:
        raise LookupError(f"no engine for {batch} guided images of {side}x{side}")
    narrowest = min(found, key=lambda entry: min(p.width for p in entry.profiles if p.takes(dims)))
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
            # The image is on the host when it returns.
            pipeline(
                "a lighthouse on a cliff",
                num_inference_steps=settings.steps,
                guidance_scale=7.5,
                width=side,
                height=side,
                generator=torch.Generator().manual_seed(1),
            )
            return time.perf_counter() - began

        found = interleaved({"diffusers": image}, max(3, settings.rounds // 2))["diffusers"]
        peak = torch.cuda.max_memory_allocated() / 1e9 if settings.device == "cuda" else None
        yield {
            "images": "diffusers eager",
            "side": side,
            "steps": settings.steps,
            "seconds": spread(found),
            "device_peak_gb": peak,
        }
