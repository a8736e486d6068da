"""diffusers' StableDiffusionPipeline in PyTorch: the reference, and its usual speed-ups.

Options: ``dtype`` (default: float32), ``device`` (cpu), ``compile`` (false): torch.compile of the UNet as in
diffusers' documentation; the first image includes the compilation.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.peers.diffusers_call import maker
from benchmarks.peers.job import Generate, Job, UnavailableError, require

PACKAGES = ("diffusers", "torch", "transformers", "triton")
_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def prepare(job: Job) -> None:
    require("diffusers", "torch")
    check_device(job)
    compiler = os.environ.get("CXX", "g++")
    if job.options.get("compile") and on_cpu(job) and shutil.which(compiler) is None:
        raise UnavailableError(f"torch.compile needs a C++ compiler, but {compiler} is not installed")


def open_pipeline(job: Job) -> Generate:
    device, dtype = job.options.get("device", "cpu"), torch_dtype(job)
    pipeline = load(job).to(device)
    if job.options.get("compile"):
        pipeline.unet.compile()
    return maker(pipeline, job, dtype=dtype, device=device)


def load(job: Job, **components: Any) -> Any:
    """Load the checkpoint's pipeline in the job's precision; ``components`` replace its own."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(
        job.checkpoint, torch_dtype=torch_dtype(job), local_files_only=True, **components
    )


def torch_dtype(job: Job) -> Any:
    import torch

    return getattr(torch, job.options.get("dtype", "float32"))


def on_cpu(job: Job) -> bool:
    return bool(job.options.get("device", "cpu") == "cpu")


def check_device(job: Job) -> None:
    """Raise UnavailableError if the hardware lacks the device or precision of the options."""
    if not on_cpu(job):
        import torch

        if not torch.cuda.is_available():
            raise UnavailableError(f"torch {torch.__version__} finds no GPU")
    elif job.options.get("dtype") == "bfloat16" and not _BF16_FLAGS & _cpu_flags():
        raise UnavailableError(f"the CPU has none of {', '.join(sorted(_BF16_FLAGS))}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
