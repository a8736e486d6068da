"""diffusers' UNet with guidance under PyTorch: eager, channels_last, compiled in the default mode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record
from benchmarks.gpu.timing import spread

_TOKENS = 77


def measure(settings: QuickSettings, mode: str) -> Iterator[Record]:
    """Milliseconds of a guided step of one image: the UNet on two rows, without a scheduler."""
    import torch
    from diffusers import UNet2DConditionModel

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError(f"torch {torch.__version__} sees no GPU")
    dtype = torch.float16 if settings.device == "cuda" else torch.float32
    config = dict(settings.facts["unet"])
    began = time.perf_counter()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(settings.device):
        unet: Any = UNet2DConditionModel.from_config(config)
    torch.set_default_dtype(torch.float32)
    unet.eval().requires_grad_(False)
    if mode != "eager":
        unet.to(memory_format=torch.channels_last)
    yield {"mode": mode, "made_s": round(time.perf_counter() - began, 1), "dtype": str(dtype)}
    generator = torch.Generator().manual_seed(1)
    latent = settings.side // settings.facts["factor"]

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(settings.device, dtype)

    x, text = drawn(2, 4, latent, latent), drawn(2, _TOKENS, config["cross_attention_dim"])
    if mode != "eager":
        x = x.contiguous(memory_format=torch.channels_last)
    times = torch.full((2,), 501.0, device=settings.device)

    def step(x: Any, times: Any, text: Any) -> Any:
        uncond, cond = unet(x, times, text, return_dict=False)[0].chunk(2)
        return uncond + 7.5 * (cond - uncond)

    run: Any = step
    if mode == "compiled":
        # On the CPU a dry run tries this script, not the compiler.
        run = torch.compile(step, backend="eager" if settings.device == "cpu" else "inductor")

    def wait() -> None:
        if settings.device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        began = time.perf_counter()
        run(x, times, text)
        wait()
        yield {"mode": mode, "first_call_s": round(time.perf_counter() - began, 1)}
        for _ in range(3):
            run(x, times, text)
        times_ms = []
        for _ in range(settings.rounds):
            wait()
            began = time.perf_counter()
            for _ in range(settings.steps):
                run(x, times, text)
            wait()
            times_ms.append((time.perf_counter() - began) / settings.steps * 1e3)
    peak = torch.cuda.max_memory_allocated() / 1e9 if settings.device == "cuda" else None
    yield {"mode": mode, "ms": spread(times_ms), "peak_gb": peak}
